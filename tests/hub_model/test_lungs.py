"""Lungs: outline, box and the view cut to them; a folder that does not fit is refused whole."""

import json

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hub_model import lungs
from hub_model.grey import ImageRefused
from hub_model.layout import FolderRefused
from hub_model.lung_net import LungNet
from tests.bad_files import files_of_at_most


def outline_of(left: float, top: float, right: float, bottom: float, level: float = 0.95) -> np.ndarray:
    places = (np.arange(lungs.SIDE) + 0.5) / lungs.SIDE
    inside = (
        (places[None] > left) & (places[None] < right) & (places[:, None] > top) & (places[:, None] < bottom)
    )
    return np.where(inside, level, 0.02).astype(np.float32)


def test_the_box_holds_the_outline_and_no_stray_place():
    outline = outline_of(0.2, 0.1, 0.8, 0.7)
    outline[120:122, 2:4] = 1.0
    found = lungs.lungs_of(outline)
    assert found.box == pytest.approx((0.2, 0.1, 0.8, 0.7), abs=0.02)
    assert found.found
    assert found.share == pytest.approx(0.36, abs=0.02)


@pytest.mark.parametrize(
    "outline",
    [np.zeros((128, 128), np.float32), outline_of(0.4, 0.4, 0.5, 0.5), outline_of(0.2, 0.2, 0.8, 0.8, 0.6)],
    ids=["nothing", "a speck", "unsure"],
)
def test_no_lung_is_no_lung(outline):
    assert not lungs.lungs_of(outline).found
    assert lungs.lungs_of(outline).box is None


def test_the_view_of_a_cropped_film_is_the_view_of_the_film():
    """The finder here knows the dark square; whichever way the film is framed, the view is that square."""

    def network(pictures: np.ndarray) -> np.ndarray:
        return (pictures < 0.05).astype(np.float32)

    levels = np.full((300, 400), 200, np.uint8) + (np.arange(400) % 20).astype(np.uint8)
    levels[60:240, 100:320] = 5
    finder = lungs.LungFinder(network, "xray")
    film = Image.fromarray(levels)
    whole, cropped = finder.view(film), finder.view(film.crop((60, 30, 360, 270)))
    assert np.allclose(whole.size, (220, 180), atol=10)
    assert np.allclose(whole.size, cropped.size, atol=10)


@pytest.fixture
def ovals():
    """A finder of places that are dark after equalisation, and a drawn chest for it."""
    finder = lungs.LungFinder(lambda pictures: (pictures < 0.02).astype(np.float32), "xray")
    levels = np.full((300, 400), 200, np.uint8) + (np.arange(400) % 20).astype(np.uint8)
    levels[60:240, 100:320] = 5
    return finder, Image.fromarray(levels)


def test_what_a_classifier_is_shown(ovals):
    finder, film = ovals
    assert lungs.shown(film, None) == (film, None)
    assert lungs.shown(film, finder) == (film, None)
    view = lungs.shown(film, finder, lungs.LUNGS)
    assert view.box == finder.find(film).box
    assert view.image.size == lungs.cut(film, view.box).size


def test_where_no_lung_is_nothing_is_shown(ovals):
    finder, _ = ovals
    bright = Image.fromarray(np.random.default_rng(0).integers(100, 250, (90, 90)).astype(np.uint8))
    with pytest.raises(ImageRefused, match="No lung is found") as refused:
        lungs.shown(bright, finder)
    assert refused.value.reason.code == "no_lung"
    assert finder.view(bright).size == bright.size  # training and audits go on with all of it


def test_the_view_does_not_mind_the_grey_curve_nor_what_lies_around():
    outline = outline_of(0.25, 0.25, 0.75, 0.75)
    finder = lungs.LungFinder(lambda pictures: np.stack([outline[None]] * len(pictures)), "xray")
    levels = np.random.default_rng(0).integers(0, 120, (128, 128)).astype(np.uint8)
    other = (levels * 2).astype(np.uint8)
    other[:20] = 255
    first, second = finder.view(Image.fromarray(levels)), finder.view(Image.fromarray(other))
    assert np.abs(np.asarray(first, int) - np.asarray(second, int)).max() <= 2
    inside = np.asarray(first)[2:-2, 2:-2]
    assert abs(inside.mean() - 127) < 6


def test_cut_stays_inside_the_picture_and_is_never_empty():
    film = Image.new("L", (50, 40))
    assert lungs.cut(film, None) is film
    assert lungs.cut(film, (0.0, 0.0, 1.0, 1.0)).size == (50, 40)
    assert min(lungs.cut(film, (0.999, 0.999, 1.0, 1.0)).size) >= 1


def test_equalised_input_does_not_mind_the_grey_curve():
    levels = np.random.default_rng(0).integers(0, 128, (128, 128)).astype(np.uint8)
    brighter = Image.fromarray((levels * 2.0 - (levels > 60)).astype(np.uint8))
    assert np.allclose(lungs.network_input(Image.fromarray(levels)), lungs.network_input(brighter), atol=0.02)


def test_a_heat_map_goes_back_to_where_the_lungs_are():
    evidence = np.full((7, 7), 0.8, np.float32)
    whole = lungs.placed(evidence, (0.25, 0.5, 0.75, 1.0))
    assert whole.shape == (lungs.SIDE, lungs.SIDE)
    assert np.allclose(whole[64:, 32:96], 0.8)
    assert np.allclose(whole[:64], 0.5) and np.allclose(whole[:, :32], 0.5)
    assert lungs.placed(evidence, None) is evidence
    assert lungs.placed(evidence, (0.999, 0.999, 1.0, 1.0)).max() > 0.7


def test_share_inside():
    outline = outline_of(0.0, 0.0, 0.5, 1.0)
    evidence = np.full((8, 8), 0.5, np.float32)
    evidence[:, :4] = 0.9
    assert lungs.share_inside(evidence, outline) > 0.9
    assert lungs.share_inside(evidence[:, ::-1].copy(), outline) < 0.1


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    return lungs.save(tmp_path, LungNet().eval(), {"modality": "xray"})


def test_saved_and_opened_again(folder):
    finder = lungs.load(folder)
    assert finder.modality == "xray"
    found = finder.find(Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70)).astype(np.uint8)))
    assert found.outline.shape == (lungs.SIDE, lungs.SIDE)
    assert 0 <= found.outline.min() <= found.outline.max() <= 1
    nodes = onnx.load(folder / lungs.GRAPH, load_external_data=False).graph.node
    assert "CastLike" not in {node.op_type for node in nodes}  # see `graph._plain_casts`


def test_a_full_disk_is_an_error_of_the_system_and_leaves_the_previous_network_whole(folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with files_of_at_most(3_000), pytest.raises(OSError, match=r"lungs\.safetensors could not be written"):
        lungs.save(folder, LungNet().eval(), {"modality": "xray"})
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_folder_without_a_lung_network_has_none(tmp_path):
    assert lungs.load(tmp_path) is None


@pytest.mark.parametrize(
    "harm", ["weights", "no weights", "other weights", "graph", "no graph", "format", "json"]
)
def test_damage_is_refused(folder, harm):
    file = folder / lungs.SETTINGS
    if harm == "weights":
        (folder / lungs.WEIGHTS).write_bytes(b"no tensors")
    elif harm == "other weights":
        save_file({"network.head.bias": torch.zeros(1)}, folder / lungs.WEIGHTS)
    elif harm == "graph":
        (folder / lungs.GRAPH).write_bytes(b"\x0a\x03abc")
    elif harm.startswith("no "):
        (folder / {"no weights": lungs.WEIGHTS, "no graph": lungs.GRAPH}[harm]).unlink()
    elif harm == "json":
        file.write_text("{")
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 9}))
    with pytest.raises(FolderRefused):
        lungs.load(folder)


def test_onnx_runtime_answers_as_torch(folder):
    torch.manual_seed(0)
    network = LungNet().eval().half().float()
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 70)).astype(np.uint8))
    with torch.inference_mode():
        expected = network(torch.from_numpy(lungs.network_input(picture))[None, None]).sigmoid()[0, 0].numpy()
    assert np.abs(lungs.load(folder).find(picture).outline - expected).max() < 1e-4
