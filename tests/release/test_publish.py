"""Publishing, against a Hub in memory and with the clients that people have."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from hub_model import FolderRefused, Screener, hub_folder
from hub_model.check.sources import DataRefused
from hub_model.refused import Failed, Refused
from tests.hub_standin import READER, hub  # noqa: F401
from tests.made_run import make_run, pictures
from train import __main__
from train.release import card, origins, publish
from train.release import hub as upload

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with its card, and what a trainer leaves behind."""
    run = make_run(tmp_path_factory.mktemp("runs") / "ct")
    card.card(run)
    (run / "optimizer.pt").write_bytes(b"pickle")
    (run / "trainer").mkdir()
    (run / "trainer" / "config.json").write_text("{}")
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A small prepared data set of drawn pictures; the pictures of one class are darker than those of the
    other.
    """
    from train.data.prepare import prepare

    root = tmp_path_factory.mktemp("data")
    for number, label in enumerate(("COVID", "Non-COVID")):
        folder = root / "phantom" / "CT" / label
        folder.mkdir(parents=True)
        for index, picture in enumerate(pictures(9, seed=number + 1)):
            picture.save(folder / f"{index}.png")
    return prepare(f"phantom={root / 'phantom'}", root / "prepared", families="known", jobs=1)


@pytest.fixture
def every_loader():
    """Asked for by the tests that are about the loaders."""


@pytest.fixture(autouse=True)
def loaders_tried_once(request, monkeypatch):
    """The real loaders take seconds; tests that are not about them leave them out."""
    if "every_loader" not in request.fixturenames:
        monkeypatch.setattr(publish, "check_loaders", lambda run: None)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(upload, "PAUSE", 0.0)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


CLIENTS = """
import json, sys
sys.modules["hub_model"] = None  # as where this package is not installed
import timm, torch, datasets
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

image, found = Image.open(sys.argv[1]).convert("RGB"), {}
classify = pipeline("image-classification", model="org/ct", revision="v1")
found["pipeline"] = {row["label"]: row["score"] for row in classify(image)}["COVID"]
model = AutoModelForImageClassification.from_pretrained("org/ct", revision="v1")
inputs = AutoImageProcessor.from_pretrained("org/ct", revision="v1")(image, return_tensors="pt")
with torch.inference_mode():
    found["AutoModel"] = float(model(**inputs).logits.softmax(1)[0, 1])
    for revision in ("@v1", ""):
        network = timm.create_model("hf-hub:org/ct" + revision, pretrained=True).eval()
        transform = create_transform(**resolve_model_data_config(network), is_training=False)
        found["timm" + revision] = float(network(transform(image)[None]).softmax(1)[0, 1])
data = datasets.load_dataset("org/data")
found["rows"] = {name: len(part) for name, part in data.items()}
found["label"] = data["train"].features["label"].names
if not datasets.config.HF_HUB_OFFLINE:
    first = next(iter(datasets.load_dataset("org/data", split="test", streaming=True)))
    found["streamed"] = [first["family"], list(first["image"].size)]
del sys.modules["hub_model"]
sys.path.insert(0, sys.argv[2])  # from here on with the package
from hub_model import Screener
finding = Screener.from_pretrained("org/ct", revision="v1").screen(sys.argv[1])
found["Screener"] = [finding.decision, finding.probability]
print(json.dumps(found))
"""


def head(hub, repo_id="org/ct", kind="models", revision="main"):  # noqa: F811
    return hub.repos[kind, repo_id].at(revision)


def clients(hub, picture, **variables):  # noqa: F811
    """What the stock clients say of a picture, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENTS, picture, card.TEMPLATE.parent], cwd=picture.parent,
        env={"PATH": "", "OMP_NUM_THREADS": "1", **hub.env, **variables}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_stock_clients_open_what_was_published(every_loader, hub, finished, prepared, tmp_path):  # noqa: F811
    """Online by a tag, while main has moved on; then offline, in a new process, from the cache alone."""
    publish.publish(finished, "org/ct", private=False, tag="v1")
    publish.publish_data(prepared, "org/data", private=False)
    for kind, name in (("models", "org/ct"), ("datasets", "org/data")):
        assert len(hub.repos[kind, name].commits) == 2, "the first one is the Hub's own"
    sent = head(hub).files
    assert {"README.md", "model.safetensors", "config.json", "guard.safetensors", "plots/roc.png"} < set(sent)
    assert not [name for name in sent if name.endswith((".pt", ".bin", ".pkl")) or name.startswith("trainer")]
    assert sent["model.safetensors"].large and not sent["config.json"].large
    assert (
        b"ORG/NAME" not in sent["README.md"].content
        and b'from_pretrained("org/ct")' in sent["README.md"].content
    )
    later = make_run(tmp_path / "later", seed=1)
    card.card(later)
    publish.publish(later, "org/ct", private=False)

    image = next(pictures(1, seed=5))
    image.save(tmp_path / "picture.png")
    online = clients(hub, tmp_path / "picture.png")
    screener = Screener.from_pretrained("org/ct", revision="v1")
    ours = publish._screener(screener.path)(image)
    for name in ("pipeline", "AutoModel", "timm@v1"):
        assert abs(online[name] - ours) < 1e-5, name
    assert abs(online["timm"] - publish._screener(later)(image)) < 1e-5 < abs(online["timm"] - ours)
    finding = screener.screen(image)
    assert online["Screener"] == [finding.decision, pytest.approx(finding.probability, abs=1e-6)]
    assert sum(online["rows"].values()) == 18 and online["label"] == list(hub_folder.LABELS)
    assert len(online.pop("streamed")[0]) == 16

    asked = len(hub.log)
    assert clients(hub, tmp_path / "picture.png", HF_HUB_OFFLINE="1") == online
    assert len(hub.log) == asked, "offline, nothing is asked of the Hub"


def test_a_screener_opens_it_again_without_the_hub(hub, finished, monkeypatch):  # noqa: F811
    publish.publish(finished, "org/ct", private=True)
    online = Screener.from_pretrained("org/ct")
    requests = len(hub.log)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert Screener.from_pretrained("org/ct").path == online.path
    assert len(hub.log) == requests
    with pytest.raises(FolderRefused, match="org/other"):
        Screener.from_pretrained("org/other")


def test_private_and_public(hub, finished, monkeypatch):  # noqa: F811
    publish.publish(finished, "org/hidden")
    publish.publish(finished, "org/shown", private=False)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FolderRefused, match="org/hidden"):
        Screener.from_pretrained("org/hidden")
    assert Screener.from_pretrained("org/shown").modality == "ct"


def test_a_revision_that_is_not_there(hub, finished):  # noqa: F811
    publish.publish(finished, "org/ct")
    with pytest.raises(FolderRefused, match="v9"):
        Screener.from_pretrained("org/ct", revision="v9")


def test_branches_and_tags(hub, finished):  # noqa: F811
    publish.publish(finished, "org/ct", tag="v1")
    publish.publish(finished, "org/ct", revision="next", tag="v2")
    repo = hub.repos["models", "org/ct"]
    assert set(repo.branches) == {"main", "next"}
    assert repo.tags["v1"] == repo.branches["main"]
    with pytest.raises(Refused, match="tag v1 already"):
        publish.publish(finished, "org/ct", tag="v1")


def test_a_second_upload_replaces_the_first_whole(hub, run):  # noqa: F811
    publish.publish(run, "org/ct")
    (run / "plots" / "roc.png").unlink()
    card.card(run)
    publish.publish(run, "org/ct")
    assert "plots/roc.png" not in head(hub).files
    assert len(hub.repos["models", "org/ct"].commits) == 3


def test_dry_run_lists_every_file_and_asks_nobody(hub, finished, capsys):  # noqa: F811
    assert publish.publish(finished, "org/ct", dry_run=True) is None
    said = capsys.readouterr().out
    size = (finished / "model.safetensors").stat().st_size
    for word in ("model.safetensors", f"{size:,}", "plots/worst_errors.png", ".eval_results/covid-xct.yaml"):
        assert word in said
    assert "optimizer.pt" not in said
    assert not hub.repos and not hub.log


# --- refusals -------------------------------------------------------------------------------------


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


SPOILT = {
    "card edited": (
        lambda run: (run / "README.md").write_text((run / "README.md").read_text().replace("0.9", "1.0")),
        "does not say what",
    ),
    "figures edited": (
        lambda run: edit(run / "evaluation.json", lambda e: e["test"]["auroc"].update(value=0.999)),
        "does not say what",
    ),
    "result file missing": (lambda run: shutil.rmtree(run / ".eval_results"), "does not say what"),
    "figures of other weights": (
        lambda run: edit(run / "evaluation.json", lambda e: e.update(weights_sha256="0" * 64)),
        "other weights",
    ),
    "other thresholds": (
        lambda run: edit(
            run / "screening.json", lambda s: s["operating_points"]["balanced"].update(threshold=0.2)
        ),
        "thresholds",
    ),
    "hash off": (
        lambda run: edit(run / "screening.json", lambda s: s.update(weights_sha256="0" * 64)),
        "SHA-256",
    ),
    "labels swapped": (
        lambda run: edit(run / "config.json", lambda c: c.update(label_names=["COVID", "Non-COVID"])),
        "label_names",
    ),
    "another layout": (lambda run: (run / "screening.json").unlink(), "screening.json"),
    "never evaluated": (lambda run: (run / "evaluation.json").unlink(), "evaluat"),
    "exported from other weights": (
        lambda run: (
            (run / "web").mkdir(),
            (run / "web" / "export.json").write_text('{"weights_sha256": "0"}'),
        ),
        "other weights",
    ),
    "names this machine": (
        lambda run: (run / "plots" / "roc.png").write_bytes(b'stack: File "/home/someone/covid/fit.py"'),
        "names a folder of this machine",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_run_stays_here(hub, run, what):  # noqa: F811
    spoil, said = SPOILT[what]
    spoil(run)
    with pytest.raises(Refused, match=said):
        publish.publish(run, "org/ct")
    assert not hub.repos and not hub.log


def test_a_run_that_a_loader_does_not_open_stays_here(every_loader, hub, run):  # noqa: F811
    (run / "model.onnx").write_bytes(b"no graph")
    card.card(run)
    with pytest.raises(Refused, match="ONNX Runtime does not open"):
        publish.publish(run, "org/ct")
    assert not hub.repos


def test_a_loader_that_answers_otherwise_is_found_out(every_loader, finished, monkeypatch):
    monkeypatch.setattr(
        publish, "LOADERS", {**publish.LOADERS, "transformers": lambda run: lambda image: 0.5}
    )
    with pytest.raises(Refused, match=r"transformers opens .* other probabilities"):
        publish.check_loaders(finished)


def test_patients_are_not_shown_to_everybody(hub, run, monkeypatch):  # noqa: F811
    closed = origins.Collection("secret films", "not stated", "none")
    monkeypatch.setitem(origins.COLLECTIONS, "phantom", closed)
    card.card(run)
    with pytest.raises(Refused, match=r"worst_errors.png shows pictures of phantom"):
        publish.publish(run, "org/ct", private=False)
    assert not hub.repos
    publish.publish(run, "org/hidden", private=True)
    publish.publish(run, "org/allowed", private=False, cleared=True)
    (run / publish.PATIENTS).unlink()
    card.card(run)
    publish.publish(run, "org/ct", private=False)
    assert publish.PATIENTS not in head(hub).files and publish.PATIENTS in head(hub, "org/allowed").files


@pytest.mark.parametrize(
    ("token", "repo_id", "said"),
    [
        (None, "org/ct", "hf auth login"),
        ("hf_wrong", "org/ct", "401"),
        (READER, "org/ct", "may not write"),
        ("hf_may_write", "stranger/ct", "may not write"),
        ("hf_may_write", "org/a/b", "no name for a repository"),
    ],
)
def test_who_may_not_write_is_told_so(hub, finished, monkeypatch, token, repo_id, said):  # noqa: F811
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: token)
    with pytest.raises(Refused, match=said):
        publish.publish(finished, repo_id)
    assert not hub.repos


def test_other_content_is_not_overwritten_unless_asked(hub, finished):  # noqa: F811
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo("org/ct")
    api.upload_file(path_or_fileobj=b"thesis", path_in_repo="thesis.tex", repo_id="org/ct")
    with pytest.raises(Refused, match=r"other content .*thesis.tex"):
        publish.publish(finished, "org/ct", private=False)
    assert "config.json" not in head(hub).files
    publish.publish(finished, "org/ct", private=False, replace=True)
    assert "thesis.tex" not in head(hub).files and "config.json" in head(hub).files


def test_what_was_to_be_private_does_not_go_to_a_public_place(hub, finished):  # noqa: F811
    publish.publish(finished, "org/ct", private=False)
    with pytest.raises(Refused, match="is public, and this was to be private"):
        publish.publish(finished, "org/ct", tag="v1")
    assert not hub.repos["models", "org/ct"].tags


def test_another_layout_is_not_overwritten(hub, finished):  # noqa: F811
    from huggingface_hub import HfApi

    HfApi().create_repo("org/ct")
    HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="org/ct")
    with pytest.raises(Refused, match="another layout"):
        publish.publish(finished, "org/ct")


def test_a_model_of_the_other_modality_is_not_overwritten(hub, finished, tmp_path):  # noqa: F811
    publish.publish(finished, "org/ct")
    other = make_run(tmp_path / "xray", modality="xray")
    card.card(other)
    with pytest.raises(Refused, match="not about chest-x-ray"):
        publish.publish(other, "org/ct")


# --- a bad line -----------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
def test_a_lost_connection_is_tried_again_and_makes_one_commit(hub, finished, after, monkeypatch):  # noqa: F811
    hub.break_next("/commit/", times=2 - after, after=after)
    monkeypatch.setattr(upload, "ATTEMPTS", 3 - 2 * after)  # the answer to the very last try is lost
    publish.publish(finished, "org/ct")
    assert len(hub.repos["models", "org/ct"].commits) == 2
    assert "model.safetensors" in head(hub).files


def test_a_line_that_stays_dead_announces_nothing(hub, finished, capsys):  # noqa: F811
    publish.publish(finished, "org/ct")
    before, said = head(hub).oid, capsys.readouterr().out
    assert "files are at" in said
    hub.break_next("/commit/", times=99)
    (finished / "collections.json").write_text("{}")
    try:
        with pytest.raises(Failed, match="No commit was made"):
            publish.publish(finished, "org/ct", tag="v2")
    finally:
        (finished / "collections.json").unlink()
    assert head(hub).oid == before and "v2" not in hub.repos["models", "org/ct"].tags
    assert "files are at" not in capsys.readouterr().out


@pytest.mark.parametrize("times", [1, 999])
def test_a_line_lost_while_a_large_file_is_sent(hub, finished, times, capsys):  # noqa: F811
    """huggingface_hub sends those in threads and wraps their failures."""
    hub.break_next("/lfs/", times=times, after=times > 1)
    if times == 1:
        publish.publish(finished, "org/ct")
        assert "model.safetensors" in head(hub).files
        return
    with pytest.raises(Failed, match="No commit was made"):
        publish.publish(finished, "org/ct")
    assert set(head(hub).files) == {".gitattributes"} and "files are at" not in capsys.readouterr().out


def test_a_tag_that_fails_is_not_announced(hub, finished, capsys):  # noqa: F811
    hub.break_next("/tag/", times=999)
    with pytest.raises(Failed, match=r"but the tag v1 could not be made.*hf repos tag create"):
        publish.publish(finished, "org/ct", tag="v1")
    assert "model.safetensors" in head(hub).files and "files are at" not in capsys.readouterr().out


def test_no_network_at_all(hub, finished, monkeypatch):  # noqa: F811
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Failed, match="cannot be reached"):
        publish.publish(finished, "org/ct")


def test_somebody_else_commits_meanwhile(hub, finished, monkeypatch):  # noqa: F811
    publish.publish(finished, "org/ct")
    (finished / "collections.json").write_text("{}")
    look = upload.Target._make_room

    def and_somebody_writes(target, api, there):
        look(target, api, there)
        sent = api.repo_info
        monkeypatch.setattr(api, "repo_info", lambda *a, **k: _then(sent(*a, **k)))

    def _then(info):
        repo = hub.repos["models", "org/ct"]
        repo.add("main", "theirs", dict(repo.at("main").files))
        return info

    monkeypatch.setattr(upload.Target, "_make_room", and_somebody_writes)
    try:
        with pytest.raises(Refused, match="somebody else has changed"):
            publish.publish(finished, "org/ct")
    finally:
        (finished / "collections.json").unlink()


# --- data sets ------------------------------------------------------------------------------------


def test_a_data_set_card_says_where_pictures_come_from(hub, prepared):  # noqa: F811
    publish.publish_data(prepared, "org/data", tag="v1")
    files = head(hub, "org/data", "datasets").files
    assert {"split.json", "manifest.parquet", "README.md"} < set(files)
    text = files["README.md"].content.decode()
    assert text.startswith("---\n") and "license: other" in text and "dataset_info:" in text
    assert "| phantom | 18 | synthetic drawings" in text and "Split `family`" in text


def test_pictures_that_may_not_be_passed_on_stay_private(hub, prepared, monkeypatch):  # noqa: F811
    closed = origins.Collection("secret films", "not stated", "none")
    monkeypatch.setitem(origins.COLLECTIONS, "phantom", closed)
    with pytest.raises(Refused, match="may not be passed on"):
        publish.publish_data(prepared, "org/data", private=False)
    assert not hub.repos
    publish.publish_data(prepared, "org/data", private=True)
    assert hub.repos["datasets", "org/data"].private


def test_names_of_files_stay_here_unless_somebody_says_otherwise(hub, prepared, tmp_path):  # noqa: F811
    published = publish.checked_data(prepared, "org/data", True)
    assert published
    copy = shutil.copytree(prepared, tmp_path / "copy")
    told = json.loads((copy / "split.json").read_text())
    for names in ({"names": "kept"}, {}):  # as another version wrote it
        (copy / "split.json").write_text(json.dumps({**{k: told[k] for k in told if k != "names"}, **names}))
        with pytest.raises(Refused, match="may name patients"):
            publish.publish_data(copy, "org/data")
        assert not hub.repos
        assert publish.publish_data(copy, "org/data", keep_names=True, dry_run=True) is None


def test_a_folder_nobody_prepared(hub, finished):  # noqa: F811
    with pytest.raises(Refused, match="prepare"):
        publish.publish_data(finished, "org/data")


def test_a_data_set_with_a_part_missing(hub, prepared, tmp_path):  # noqa: F811
    copy = shutil.copytree(prepared, tmp_path / "copy")
    next((copy / "data").glob("test-*")).unlink()
    with pytest.raises(DataRefused, match="do not belong together"):
        publish.publish_data(copy, "org/data")


# --- the command ----------------------------------------------------------------------------------


def no_token(hub, run, monkeypatch):  # noqa: F811
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)


def other_content(hub, run, monkeypatch):  # noqa: F811
    from huggingface_hub import HfApi

    HfApi().create_repo("org/ct", private=True)
    HfApi().upload_file(path_or_fileobj=b"thesis", path_in_repo="thesis.tex", repo_id="org/ct")


def other_layout(*_):
    from huggingface_hub import HfApi

    HfApi().create_repo("org/vit")
    HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="org/vit")


AS_TYPED = {
    "no token": (no_token, "publish RUN --repo-id org/ct", "hf auth login"),
    "no right": (
        lambda _, run, patch: patch.setenv("HF_TOKEN", READER),
        "publish RUN --repo-id org/ct",
        "may not write",
    ),
    "another's name": (lambda *_: None, "publish RUN --repo-id stranger/ct", "may not write"),
    "no name": (lambda *_: None, "publish RUN --repo-id a/b/c", "no name for a repository"),
    "other content": (other_content, "publish RUN --repo-id org/ct", "holds other content"),
    "network lost": (
        lambda there, *_: there.break_next("/commit/", times=99),
        "publish RUN --repo-id org/ct --public",
        "The network failed 4 times",
    ),
    "never evaluated": (
        lambda there, run, _: (run / "evaluation.json").unlink(),
        "publish RUN --repo-id org/ct",
        "python -m train evaluate",
    ),
    "another layout": (
        lambda there, run, _: (run / "screening.json").unlink(),
        "publish RUN --repo-id org/ct",
        "screening.json",
    ),
    "no folder": (lambda *_: None, "publish nowhere --repo-id org/ct", "nowhere"),
    "not prepared": (lambda *_: None, "publish-data RUN --repo-id org/data", "python -m train prepare"),
    "no such revision": (
        lambda there, run, _: publish.publish(run, "org/ct"),
        "space --repo-id org/page --model org/ct@v9 --dry-run",
        "v9",
    ),
    "a model of another layout": (
        other_layout,
        "space --repo-id org/page --model org/vit --dry-run",
        "no hub folder of this kind",
    ),
    "no such model": (lambda *_: None, "space --repo-id org/page --model org/none --dry-run", "org/none"),
}


@pytest.mark.parametrize("what", AS_TYPED)
def test_the_command_says_why_and_exits_1(hub, run, monkeypatch, capsys, what):  # noqa: F811
    spoil, typed, said = AS_TYPED[what]
    spoil(hub, run, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["train", *typed.replace("RUN", str(run)).split()])
    with pytest.raises(SystemExit) as left:
        __main__.main()
    assert left.value.code == 1
    told = capsys.readouterr()
    word = "Failed" if what == "network lost" else "Refused"
    assert re.search(rf"^{word}\. .*{re.escape(said)}", told.err, re.MULTILINE)
    assert "Traceback" not in told.err
    assert "files are at" not in told.out or what == "no such revision"


def test_hashes_are_those_of_git():
    rng = np.random.default_rng(0).bytes(100)
    assert len(upload.git_hash(rng)) == 40
    assert upload.git_hash(b"what is up, doc?") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
