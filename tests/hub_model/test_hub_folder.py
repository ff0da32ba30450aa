"""The hub folder: what goes in comes out of every loader, and what is wrong with one is said."""

import json
import shutil

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hub_model import LABELS, FolderRefused, hub_folder
from tests.bad_files import files_of_at_most

ARCHITECTURE = "mobilenetv3_small_050"
CFG = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.25] * 3}


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(ARCHITECTURE, num_classes=2).eval()


def save(path, model=None, **changes):
    screening = {"modality": "ct", "operating_points": {"sensitivity": {"threshold": 0.3, "target": "t"}}}
    arguments = {
        "architecture": ARCHITECTURE,
        "model_args": {},
        "pretrained_cfg": CFG,
        "screening": screening,
    }
    return hub_folder.save(path, model or network(), **(arguments | changes))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("hub") / "folder")


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved, tmp_path / "folder")


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def test_what_is_saved_is_what_is_loaded(saved):
    loaded, pixels = hub_folder.load(saved), torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.model(pixels), network()(pixels))
    assert loaded.modality == "ct" and loaded.guard is None
    assert loaded.screening["labels"] == list(LABELS) == ["Non-COVID", "COVID"]


def test_guard_tensors_travel_and_a_stale_guard_goes(tmp_path):
    save(tmp_path / "f", guard={"mean": torch.arange(3.0)})
    assert torch.equal(hub_folder.load(tmp_path / "f").guard["mean"], torch.arange(3.0))
    save(tmp_path / "f")
    assert hub_folder.load(tmp_path / "f").guard is None


def test_half_precision_halves_the_file_and_loads_in_single(tmp_path, saved):
    half = save(tmp_path / "half", half=True)
    sizes = [(p / hub_folder.WEIGHTS).stat().st_size for p in (half, saved)]
    assert sizes[0] < 0.6 * sizes[1]
    assert {p.dtype for p in hub_folder.load(half).model.parameters()} == {torch.float32}


def test_temperature_is_folded_into_the_logits():
    model, pixels = network(), torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        before = model(pixels)
        hub_folder.fold_temperature(model, 2.5)
        torch.testing.assert_close(model(pixels), before / 2.5)
    with pytest.raises(ValueError, match="positive"):
        hub_folder.fold_temperature(model, 0)


def test_preprocessing_squashes_and_standardises(saved):
    pixels = hub_folder.load(saved).transform(Image.new("L", (200, 100), 128))
    assert pixels.shape == (3, 64, 64)
    torch.testing.assert_close(pixels, torch.full((3, 64, 64), (128 / 255 - 0.5) / 0.25))


def test_a_failing_save_leaves_the_previous_folder_whole(folder, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub_folder, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        save(folder, network(1))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    hub_folder.load(folder)


def test_a_full_disk_is_an_error_of_the_system_and_leaves_the_previous_folder_whole(folder):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with files_of_at_most(100_000), pytest.raises(OSError, match=r"model\.safetensors could not be written"):
        save(folder, network(1))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_resolve_says_what_a_name_may_be(tmp_path):
    with pytest.raises(FolderRefused, match=r"neither an embedded model .* nor a folder, nor a Hub id"):
        hub_folder.resolve("lungs")
    with pytest.raises(FolderRefused, match="has no revision"):
        hub_folder.resolve(tmp_path, revision="main")
    with pytest.raises(FolderRefused, match="not in the local Hub cache and the Hub cannot be reached"):
        hub_folder.resolve("nobody/nothing-here")


def damage_missing(folder):
    state = load_file(folder / hub_folder.WEIGHTS)
    state.pop("classifier.weight")
    save_file(state, folder / hub_folder.WEIGHTS)


def damage_renamed(folder):
    state = load_file(folder / hub_folder.WEIGHTS)
    state["head.weight"] = state.pop("classifier.weight")
    save_file(state, folder / hub_folder.WEIGHTS)


def damage_extra(folder):
    state = load_file(folder / hub_folder.WEIGHTS)
    state["classifier.scale"] = torch.ones(2)
    save_file(state, folder / hub_folder.WEIGHTS)


def damage_shape(folder):
    state = load_file(folder / hub_folder.WEIGHTS)
    state["classifier.weight"] = torch.zeros(3, 7)
    save_file(state, folder / hub_folder.WEIGHTS)


def damage_nan(folder):
    state = load_file(folder / hub_folder.WEIGHTS)
    state["classifier.bias"][0] = float("nan")
    save_file(state, folder / hub_folder.WEIGHTS)


def damage_other_weights(folder):
    state = load_file(folder / hub_folder.WEIGHTS)
    state["classifier.bias"] += 1
    save_file(state, folder / hub_folder.WEIGHTS)


def damage_pickle(folder):
    (folder / hub_folder.WEIGHTS).rename(folder / "pytorch_model.bin")


DAMAGES = {
    "missing tensors": (damage_missing, "1 tensors missing"),
    "renamed tensors": (damage_renamed, r"missing .*classifier.weight.* unexpected .*head.weight"),
    "extra tensors": (damage_extra, r"0 tensors missing \[\], 1 unexpected \['classifier.scale'\]"),
    "another shape": (damage_shape, r"\(3, 7\), expected"),
    "not a number": (damage_nan, "NaN or infinite values in .*classifier.bias"),
    "weights changed behind the thresholds": (damage_other_weights, "SHA-256 differs"),
    "a pickle instead": (damage_pickle, "pytorch_model.bin, but pickles can run code and are never opened"),
    "truncated": (
        lambda f: (f / hub_folder.WEIGHTS).write_bytes((f / hub_folder.WEIGHTS).read_bytes()[:999]),
        "no readable safetensors",
    ),
    "no weights": (lambda f: (f / hub_folder.WEIGHTS).unlink(), "has no model.safetensors"),
    "no config": (lambda f: (f / hub_folder.CONFIG).unlink(), "has no config.json"),
    "broken config": (lambda f: (f / hub_folder.CONFIG).write_text("{"), "cannot be read"),
    "config of a list": (lambda f: (f / hub_folder.CONFIG).write_text("[]"), "not an object"),
    "labels the other way round": (
        lambda f: edit(f / hub_folder.CONFIG, label_names=["COVID", "Non-COVID"]),
        "COVID being class 1",
    ),
    "unknown architecture": (
        lambda f: edit(f / hub_folder.CONFIG, architecture="covnet"),
        "unknown architecture",
    ),
    "asks for code": (
        lambda f: edit(f / hub_folder.CONFIG, architecture="evil", auto_map={"AutoConfig": "evil.Config"}),
        "asks for remote code, which this package never runs",
    ),
    "another Hub behind the name": (
        lambda f: edit(f / hub_folder.CONFIG, architecture="hf-hub:evil/model"),
        "unknown architecture",
    ),
    "asks to unpickle": (
        lambda f: edit(f / hub_folder.CONFIG, model_args={"checkpoint_path": "evil.pth"}),
        "may not set checkpoint_path",
    ),
    "arguments timm does not know": (
        lambda f: edit(f / hub_folder.CONFIG, model_args={"depth_of_thought": 3}),
        "cannot build",
    ),
    "no screening": (lambda f: (f / hub_folder.SCREENING).unlink(), "has no screening.json"),
    "another modality": (lambda f: edit(f / hub_folder.SCREENING, modality="mri"), "modality 'mri'"),
    "a later format": (lambda f: edit(f / hub_folder.SCREENING, format=99), "newer covid-xct"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_in_words(folder, name):
    damage, words = DAMAGES[name]
    damage(folder)
    with pytest.raises(FolderRefused, match=words) as refusal:
        hub_folder.load(folder)
    assert "\n" not in str(refusal.value)
