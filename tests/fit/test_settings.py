"""The knobs of `fit`: declared once, stored as JSON types, and a wrong one is a sentence that leaves nothing behind."""

import inspect
import json
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hub_model import hub_folder
from hub_model.refused import Refused
from train.__main__ import app
from train.fit.fit import fit
from train.fit.recipes import RECIPES, Recipe
from train.fit.settings import Settings

SMALL = "mobilenetv3_small_050"


def settings(**changes) -> Settings:
    return Settings(**({"data": ["pictures"], "modality": "ct", "variant": SMALL} | changes))


def test_every_setting_is_a_keyword_of_fit_and_a_flag_with_help():
    keywords = inspect.signature(fit).parameters
    assert list(keywords) == [*(field.name for field in fields(Settings)), "out", "report", "overwrite"]
    shown = CliRunner().invoke(app, ["fit", "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "resumes" in shown.output and "Raises" not in shown.output
    for field in fields(Settings):
        assert f"--{field.name.replace('_', '-')}" in shown.stdout
    assert "--no-pretrained" in shown.stdout and "seed" in shown.stdout


def test_settings_cannot_be_changed_and_survive_json():
    given = settings(data=("a", Path("b")), teacher="t", init=Path("w.safetensors"), pretrained=True,
                     model_args='{"drop_rate": 0.2}', learning_rate=1e-3)  # fmt: skip
    told = given.as_json()
    assert json.loads(json.dumps(told)) == told
    assert told["data"] == ["a", "b"] and told["teacher"] == ["t"] and told["without_source"] == []
    assert (told["init"], told["pretrained"], told["bf16"]) == ("w.safetensors", True, None)
    assert (told["model_args"], told["learning_rate"]) == ({"drop_rate": 0.2}, 1e-3)
    with pytest.raises(FrozenInstanceError):
        given.seed = 3


def test_places_lose_their_folders_and_all_names_stay(tmp_path):
    for name in ("films", "more"):
        (tmp_path / name).mkdir()
    told = settings(
        data=[str(tmp_path / "films"), f"clinic={tmp_path / 'more'}", "org/on-the-hub"],
        teacher=[str(tmp_path / "films"), str(tmp_path / "more")],
        init=tmp_path / "weights.safetensors",
    ).portable()
    assert told["data"] == ["films", "clinic=more", "org/on-the-hub"]
    assert told["teacher"] == ["films", "more"] and told["init"] == "weights.safetensors"
    assert str(tmp_path) not in json.dumps(told)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": []}, "No data were given"),
        ({"modality": "mri"}, "accepted are xray and ct"),
        ({"recipe": "magic"}, "Known are covid_cnn_baseline"),
        ({"augment": "stong"}, "Unknown augmentation 'stong'. Known are none"),
        ({"epochs": 0}, "--epochs 0: a number above zero"),
        ({"batch": -1}, "--batch -1"),
        ({"learning_rate": float("nan")}, "--learning-rate nan"),
        ({"input_size": 0}, "--input-size 0"),
        ({"std": 0.0}, "--std 0.0"),
        ({"distil": 1.5}, "a share between 0 and 1"),
        ({"unlabelled": Path("slices")}, "Give --teacher FOLDER too"),
        ({"recipe": "steady_exchange"}, "nothing finds them. Give --lungs FOLDER"),
        ({"view": "half"}, "--view 'half': accepted are whole and lungs"),
        ({"model_args": "[1]"}, "--model-args is a list"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes, said):
    with pytest.raises(Refused, match=said):
        settings(**changes)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Two sources of drawn slices."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("archive")
    rng = np.random.default_rng(0)
    lines = ["file_name,modality,label,source"]
    for index in range(40):
        label = ("COVID", "Non-COVID")[index % 2]
        grey = rng.integers(0, 256, (48, 48)).astype(np.uint8)
        Image.fromarray(grey).save(root / f"{index}.png")
        lines.append(f"{index}.png,ct,{label},{'clinic' if index < 20 else 'web'}")
    (root / "metadata.csv").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"without_source": ["clinc"]}, "--without-source clinc: the data has no such source, only clinic, web"),
        ({"without_source": ["clinic", "web"]}, "split has 0 Non-COVID, 0 COVID"),
        ({"variant": "covid_cnn_3", "recipe": "probe"}, "random numbers .* Give weights by --init"),
        ({"recipe": "covid_cnn_2"}, "penalises blocks.1.conv.weight.* which mobilenetv3_small_050 does not have"),
        ({"without_source": ["web"], "recipe": "restyled"}, "all training pictures are of one, clinic"),
        ({"report": "wandb"}, "accepted are none, tensorboard, trackio"),
        ({"data": ["nowhere/at/all"]}, "nowhere/at/all"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_with_leaves_no_folder(archive, tmp_path, monkeypatch, changes, said):
    tiny = Recipe(batch=8, epochs=1, learning_rate=3e-3, input_size=32)
    monkeypatch.setitem(RECIPES, "tiny", tiny)
    monkeypatch.setitem(RECIPES, "restyled", replace(tiny, copies=1, style=0.5))
    given = {
        "data": [str(archive)],
        "modality": "ct",
        "variant": SMALL,
        "recipe": "tiny",
        "families": "known",
    }
    with pytest.raises(Refused, match=said):
        fit(**(given | changes), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unlabelled_pictures_that_are_not_there_are_said_and_leave_no_folder(archive, tmp_path, monkeypatch):
    """The corrected command then finds nothing in its way."""
    monkeypatch.setitem(RECIPES, "tiny", Recipe(batch=8, epochs=1, learning_rate=3e-3, input_size=32))
    teacher, empty = hub_folder.embedded()["ct"], tmp_path / "empty"
    empty.mkdir()
    given = {
        "data": [str(archive)], "modality": "ct", "variant": SMALL, "recipe": "tiny", "families": "known",
        "teacher": [str(teacher)], "out": tmp_path / "run",
    }  # fmt: skip
    with pytest.raises(Refused, match="empty holds no picture that can be read"):
        fit(**given, unlabelled=empty)
    with pytest.raises(Refused, match="absent is no folder"):
        fit(**given, unlabelled=tmp_path / "absent")
    (empty / "notes.txt").write_text("none yet")
    with pytest.raises(Refused, match="holds no picture"):
        fit(**given, unlabelled=empty)
    assert not (tmp_path / "run").exists()


def test_a_refused_command_leaves_an_unfinished_run_as_it_was(archive, tmp_path):
    checkpoints = tmp_path / "run" / "trainer"
    checkpoints.mkdir(parents=True)
    (checkpoints / "fit.json").write_text(json.dumps(settings().as_json()))
    with pytest.raises(Refused, match="no such source"):
        fit(data=[str(archive)], modality="ct", variant=SMALL, without_source=["moon"], families="known",
            out=tmp_path / "run", overwrite=True)  # fmt: skip
    assert json.loads((checkpoints / "fit.json").read_text()) == settings().as_json()


@pytest.mark.slow
def test_a_documented_network_may_have_its_last_layer_fitted_to_earlier_weights(
    archive, tmp_path, monkeypatch
):
    """Its one unit is the log-odds: the regression lands there, not in two logits."""
    import timm
    import torch
    from safetensors.torch import load_file, save_file

    from hub_model import covid_cnn  # noqa: F401 - registers the family with timm

    torch.manual_seed(0)
    earlier = timm.create_model("covid_cnn_3").state_dict()
    save_file(earlier, tmp_path / "earlier.safetensors")
    out = fit(data=[str(archive)], modality="ct", variant="covid_cnn_3", recipe="probe", families="known",
              init=tmp_path / "earlier.safetensors", out=tmp_path / "run")  # fmt: skip
    trained = load_file(out / hub_folder.WEIGHTS)
    assert torch.equal(trained["hidden.fc1.weight"], earlier["hidden.fc1.weight"])
    assert trained["classifier.weight"].shape == (1, 256) and trained["classifier.weight"].abs().max() > 0
    assert not torch.equal(trained["classifier.weight"], earlier["classifier.weight"])


@pytest.mark.parametrize(
    ("error", "word"), [("Refused", "Refused. "), ("Failed", "Failed. "), ("OSError", "Failed. ")]
)
def test_only_refusals_are_called_refused(monkeypatch, capsys, error, word):
    import builtins

    from hub_model import refused
    from train import __main__ as door

    kind = getattr(refused, error, None) or getattr(builtins, error)

    def app(**_):
        raise kind("because of this")

    monkeypatch.setattr(door, "app", app)
    with pytest.raises(SystemExit) as end:
        door.main()
    assert end.value.code == 1 and capsys.readouterr().err == f"{word}because of this\n"
