"""The hub folder: what goes in comes out of every loader, and what is wrong with one is said."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hub_model import LABELS, FolderRefused, hub_folder, layout
from tests.bad_files import files_of_at_most
from tests.bad_folders import ARCHITECTURE, DAMAGES, GUARD, LIMITS, SCREENING, network, save
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("hub") / "folder")


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved, tmp_path / "folder")


def test_what_is_saved_is_what_is_loaded(saved):
    loaded, pixels = hub_folder.open_folder(saved), torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.model(pixels), network()(pixels))
    assert loaded.modality == "ct" and loaded.guard is None
    assert loaded.screening["labels"] == list(LABELS) == ["Non-COVID", "COVID"]


def test_guard_tensors_travel_and_a_stale_guard_goes(tmp_path):
    save(tmp_path / "f", guard=GUARD, screening=SCREENING | {"guard": {"limits": LIMITS}})
    assert np.array_equal(hub_folder.open_folder(tmp_path / "f").guard["mean"], np.arange(3.0))
    save(tmp_path / "f")
    assert hub_folder.open_folder(tmp_path / "f").guard is None


def test_half_precision_halves_the_file_and_loads_in_single(tmp_path, saved):
    half = save(tmp_path / "half", half=True)
    sizes = [(p / hub_folder.WEIGHTS).stat().st_size for p in (half, saved)]
    assert sizes[0] < 0.6 * sizes[1]
    assert {p.dtype for p in hub_folder.open_folder(half).model.parameters()} == {torch.float32}


def test_preprocessing_squashes_and_standardises(saved):
    pixels = hub_folder.open_folder(saved).transform(Image.new("L", (200, 100), 128))
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
    hub_folder.open_folder(folder)


def test_a_full_disk_is_an_error_of_the_system_and_leaves_the_previous_folder_whole(folder):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with files_of_at_most(100_000), pytest.raises(OSError, match=r"model\.safetensors could not be written"):
        save(folder, network(1))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_what_a_killed_save_left_is_finished_on_opening(folder, monkeypatch):
    """All files are whole and none is in its place yet: from here on the new ones count."""
    with monkeypatch.context() as patch:
        patch.setattr(hub_folder, "_finish", lambda path: None)
        save(folder, network(1), screening=SCREENING | {"guard": {"limits": LIMITS}}, guard=GUARD)
    opened, pixels = hub_folder.open_folder(folder), torch.rand(1, 3, 64, 64)
    assert opened.guard is not None
    with torch.inference_mode():
        assert torch.equal(opened.model(pixels), network(1)(pixels))
    assert not [file.name for file in folder.iterdir() if file.name.startswith(".")]


def test_a_link_in_place_of_unfinished_work_moves_nothing(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    (folder / ".ready").symlink_to(tmp_path / "mine")
    hub_folder.open_folder(folder)
    assert (tmp_path / "mine" / "config.json").read_text() == "{}"


def test_a_path_is_a_path_and_no_name(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FolderRefused, match="no folder ct"):
        hub_folder.open_folder("ct")
    shutil.copytree(saved, tmp_path / "ct")
    assert hub_folder.open_folder("ct").config["architecture"] == ARCHITECTURE
    assert hub_folder.resolve("ct") == hub_folder.embedded()["ct"]


def test_every_embedded_model_is_there_and_all_are_small():
    ours = hub_folder.embedded()
    assert list(ours) == list(hub_folder.EMBEDDED)
    assert [hub_folder.open_folder(ours[name]).modality for name in hub_folder.MODALITIES] == ["xray", "ct"]
    files = [file for folder in ours.values() for file in folder.rglob("*") if file.is_file()]
    weights = [file for file in files if file.suffix in {".safetensors", ".onnx"}]
    assert sum(file.stat().st_size for file in weights) <= 32_000_000


@pytest.mark.parametrize("name", [name for name in hub_folder.EMBEDDED if name not in hub_folder.MODALITIES])
def test_the_documented_network_of_a_modality_has_a_name(name):
    folder = hub_folder.load(name)
    assert name == f"{folder.modality}-{folder.config['architecture']}"
    assert folder.screening["calibrated"] and folder.guard is not None and folder.finder is not None
    for file in ("covid_cnn.py", "modeling_covid_cnn.py"):  # the code that travels is the code of the package
        ours = ROOT / "hub_model" / file
        assert (folder.path / file).read_bytes() == ours.read_bytes(), f"cp hub_model/{file} {folder.path}"


def test_resolve_says_what_a_name_may_be(tmp_path):
    with pytest.raises(FolderRefused, match=r"neither an embedded model .* nor a folder, nor a Hub id"):
        hub_folder.resolve("lungs")
    with pytest.raises(FolderRefused, match="has no revision"):
        hub_folder.resolve(tmp_path, revision="main")
    with pytest.raises(FolderRefused, match="not in the local Hub cache and the Hub cannot be reached"):
        hub_folder.resolve("nobody/nothing-here")


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_in_words(folder, name):
    damage, words = DAMAGES[name]
    damage(folder)
    with pytest.raises(FolderRefused, match=words) as refusal:
        hub_folder.open_folder(folder).model  # noqa: B018 - builds the network
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "text", ["NaN", "1e999", "-1e999", 400 * "9", 101 * "[" + 101 * "]", 100_000 * "[", "{", ""]
)
def test_json_that_other_json_could_not_hold_is_refused(text):
    with pytest.raises(ValueError):
        layout.loads(text)


def test_json_within_its_limits_is_read():
    deep = 99 * "[" + 99 * "]"
    assert layout.loads(f'[[1, 2.5, -1e308, "NaN"], {deep}]')[0] == [1, 2.5, -1e308, "NaN"]
    assert layout.loads(300 * "9") == int(300 * "9")
