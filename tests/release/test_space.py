"""The Gradio Space: a folder that pins its model, holds the package, and is uploaded as it is."""

import ast
import json
import re
import runpy
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from hub_model import FolderRefused
from hub_model.refused import Refused
from tests.hub_standin import hub  # noqa: F401
from tests.made_run import make_run
from tests.static_page import NEEDED, runtime
from train.release import card, publish, space

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("runs") / "ct")
    card.card(run)
    return run


@pytest.fixture
def published(hub, finished, monkeypatch):  # noqa: F811
    """org/ct at v1, and a main branch that has moved on; returns the commit behind v1."""
    monkeypatch.setattr(publish, "check_loaders", lambda run: None)
    monkeypatch.delenv("COVID_XCT_CT", raising=False)
    publish.publish(finished, "org/ct", private=False, tag="v1")
    repo = hub.repos["models", "org/ct"]
    repo.add("main", "later", dict(repo.at("main").files))
    return repo.tags["v1"]


@pytest.fixture
def folder(published, tmp_path):
    return space.space("org/page", ["org/ct@v1"], out=tmp_path / "page", dry_run=True)


def front(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_the_front_matter_pins_everything(folder, published):
    head = front(folder)
    assert (head["sdk"], head["sdk_version"], head["app_file"]) == ("gradio", version("gradio"), "start.py")
    assert (
        head["models"] == ["org/ct"] and head["license"] == "apache-2.0" and head["python_version"] == "3.11"
    )
    repo, files, commit = head["preload_from_hub"][0].split(" ")
    assert (repo, commit) == ("org/ct", published)
    assert {"model.safetensors", "config.json", "screening.json", "guard.safetensors"} <= set(
        files.split(",")
    )
    assert len(head["short_description"]) <= 60


def test_the_requirements_are_pinned_and_light(folder):
    pins = (folder / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins)
    named = {line.partition("==")[0] for line in pins}
    assert {"onnxruntime", "gradio", "pydicom", "filelock"} <= named and not named & {
        "torch",
        "timm",
        "transformers",
        "datasets",
        "pytest",
        "onnx",
    }


def test_the_folder_holds_the_demo_and_the_package_and_nothing_else(folder):
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert {
        "app.py",
        "start.py",
        "hub_model/screener.py",
        "hub_model/__init__.py",
        "languages/en.json",
        "LICENSE",
    } <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".safetensors", ".pyc"))]
    app = space.ROOT / "demo" / "app.py"
    assert (folder / "app.py").read_bytes() == app.read_bytes()


def test_the_start_file_opens_the_pinned_commit(folder, published, finished, monkeypatch, capsys):
    """With a page that only says which folders it was given: the real one is started by tests/benchmarks."""
    (folder / "app.py").write_text("import sys\nprint(sys.argv[1:])")
    monkeypatch.setattr(sys, "argv", ["start.py"])
    runpy.run_path(str(folder / "start.py"), run_name="__main__")
    option, opened = ast.literal_eval(capsys.readouterr().out)
    assert option == "--model" and Path(opened).name == published
    assert (Path(opened) / "model.safetensors").is_file()
    monkeypatch.setattr(sys, "argv", ["start.py"])
    monkeypatch.setenv("COVID_XCT_CT", str(finished))
    runpy.run_path(str(folder / "start.py"), run_name="__main__")
    assert ast.literal_eval(capsys.readouterr().out) == ["--model", str(finished)], "a variable of the Space"


def test_the_upload_is_one_commit_of_the_very_folder(published, hub, tmp_path):  # noqa: F811
    folder = space.space("org/page", ["org/ct@v1"], out=tmp_path / "page", private=False)
    repo = hub.repos["spaces", "org/page"]
    assert len(repo.commits) == 2 and repo.asked["sdk"] == "gradio" and not repo.private
    sent = {name: blob.content for name, blob in repo.at("main").files.items() if name != ".gitattributes"}
    assert sent == {
        f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()
    }
    space.space("org/page", ["org/ct@v1"], out=tmp_path / "page", private=False)
    assert len(repo.commits) == 2, "nothing has changed, so nothing is sent"


def test_the_static_page_is_built_from_the_hub(published, hub, tmp_path):  # noqa: F811
    if runtime() is None:
        pytest.skip(NEEDED)
    space.space(
        "org/static", ["org/ct@v1"], static=True, out=tmp_path / "page", runtime=runtime(), private=False
    )
    repo = hub.repos["spaces", "org/static"]
    assert repo.asked["sdk"] == "static" and front(tmp_path / "page")["sdk"] == "static"
    told = json.loads(repo.at("main").files["space.json"].content)
    assert told["models"][0]["source"] == f"org/ct@{published}"
    assert set(told["files"]) <= set(repo.at("main").files)


def test_a_space_of_somebody_else_is_left_alone(published, hub, tmp_path):  # noqa: F811
    from huggingface_hub import HfApi

    HfApi().create_repo("org/page", repo_type="space", space_sdk="gradio")
    HfApi().upload_file(
        path_or_fileobj=b"x", path_in_repo="weights/cat.bin", repo_id="org/page", repo_type="space"
    )
    with pytest.raises(Refused, match="other content"):
        space.space("org/page", ["org/ct@v1"], out=tmp_path / "page")
    assert len(hub.repos["spaces", "org/page"].commits) == 2


@pytest.mark.parametrize("file", ["app.py", "index.html"])
def test_a_page_that_looks_like_ours_is_not_taken_for_ours(published, hub, tmp_path, file):  # noqa: F811
    from huggingface_hub import HfApi

    HfApi().create_repo("org/page", repo_type="space", space_sdk="gradio", private=True)
    HfApi().upload_file(path_or_fileobj=b"x", path_in_repo=file, repo_id="org/page", repo_type="space")
    with pytest.raises(Refused, match=r"another layout, without start.py or space.json"):
        space.space("org/page", ["org/ct@v1"], out=tmp_path / "page")
    assert set(hub.repos["spaces", "org/page"].at("main").files) == {".gitattributes", file}
    space.space("org/page", ["org/ct@v1"], out=tmp_path / "page", replace=True)
    assert "start.py" in hub.repos["spaces", "org/page"].at("main").files


def test_what_somebody_added_to_our_page_is_not_deleted_unasked(published, hub, tmp_path):  # noqa: F811
    from huggingface_hub import HfApi

    space.space("org/page", ["org/ct@v1"], out=tmp_path / "page")
    HfApi().upload_file(
        path_or_fileobj=b"x", path_in_repo="notes.txt.bak", repo_id="org/page", repo_type="space"
    )
    with pytest.raises(Refused, match=r"other content \(notes.txt.bak\)"):
        space.space("org/page", ["org/ct@v1"], out=tmp_path / "page")


def test_a_file_that_names_this_machine_does_not_go_out(published, hub, tmp_path, monkeypatch):  # noqa: F811
    own = tmp_path / "start.py"
    own.write_text(f"# {space.ROOT}/demo\n" + space.START.read_text())
    monkeypatch.setattr(space, "START", own)
    with pytest.raises(Refused, match=r"start.py names a folder of this machine"):
        space.space("org/page", ["org/ct@v1"], out=tmp_path / "page")
    assert ("spaces", "org/page") not in hub.repos


@pytest.mark.parametrize(
    ("models", "kind", "said"),
    [
        (["org/ct@v9"], FolderRefused, "v9"),
        (["org/nothing"], FolderRefused, "org/nothing"),
        (["org/ct@v1", "org/ct@main"], Refused, "Two models read ct"),
        (["ct model"], FolderRefused, "ct model"),
    ],
)
def test_models_that_a_page_cannot_have(published, tmp_path, models, kind, said):
    with pytest.raises(kind, match=said):
        space.space("org/page", models, out=tmp_path / "page", dry_run=True)
    assert not (tmp_path / "page").exists()


def test_a_folder_of_this_machine_is_no_model_for_a_server(hub, finished, tmp_path):  # noqa: F811
    with pytest.raises(Refused, match="Publish it first"):
        space.space("org/page", [str(finished)], out=tmp_path / "page", dry_run=True)
