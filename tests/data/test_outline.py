"""Lungs of CT slices outlined by their grey levels."""

import csv

import numpy as np
import pytest
from PIL import Image

from train.data.outline import further, is_lungless, outline, outline_of


def slice_of(lungs: bool, level: int = 170, side: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """A body in black air, with or without two lungs; the picture and the lungs' mask."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    body = (x / 0.46) ** 2 + (y / 0.36) ** 2 < 1
    inside = ((np.abs(x) - 0.2) / 0.13) ** 2 + (y / 0.22) ** 2 < 1 if lungs else np.zeros_like(body)
    vessel = ((np.abs(x) - 0.2) / 0.02) ** 2 + (y / 0.02) ** 2 < 1
    grey = np.where(body, level, 0)
    grey[inside] = level // 4
    grey[inside & vessel] = level
    noise = np.random.default_rng(0).normal(0, 4, grey.shape)
    return (grey + noise).clip(0, 255).astype(np.uint8), inside


@pytest.mark.parametrize("level", [90, 170, 240])
def test_lungs_are_found_in_any_window_and_vessels_belong_to_them(level):
    grey, lungs = slice_of(True, level)
    found = outline_of(grey)
    assert found.trusted and found.pieces == 2
    assert (found.mask & lungs).sum() / (found.mask | lungs).sum() > 0.9
    assert found.mask[100, 60]  # the vessel in the middle of the left lung
    assert not is_lungless(grey)


def test_a_slice_below_the_lungs_is_one_without_lungs():
    grey, _ = slice_of(False)
    assert outline_of(grey) is None and is_lungless(grey)


def test_a_blank_picture_is_neither():
    blank = np.zeros((100, 100), np.uint8)
    assert outline_of(blank) is None and not is_lungless(blank)


def test_most_slices_of_real_collections_are_outlined(shared_data):
    files = sorted((shared_data / "ct").rglob("*.jpg"))[::40]
    found = [outline_of(np.asarray(Image.open(file).convert("L"))) for file in files]
    assert np.mean([outlined is not None and outlined.trusted for outlined in found]) > 0.7


def test_further_pictures_are_named_from_their_folder_on(tmp_path):
    (tmp_path / "unlabelled" / "ct").mkdir(parents=True)
    Image.fromarray(slice_of(True)[0]).save(tmp_path / "unlabelled" / "ct" / "a.png")
    (tmp_path / "unlabelled" / "notes.txt").write_text("no picture")
    assert [name for name, _ in further([tmp_path / "unlabelled"])] == ["unlabelled/ct/a.png"]


def test_outlines_are_written_with_a_table(tmp_path):
    folder = tmp_path / "data"
    for label, level in (("COVID", 100), ("Non-COVID", 140)):
        (folder / label).mkdir(parents=True)
        for index in range(8):
            picture = slice_of(index > 1, level + 10 * index, 180 + index)[0]
            Image.fromarray(picture).save(folder / label / f"{index}.png")
    counts = outline([str(folder)], tmp_path / "masks", families="known")
    assert counts["outlined"] > counts["without lungs"] > 0 == counts["left out"]
    with open(tmp_path / "masks" / "masks.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == counts["outlined"] + counts["without lungs"]
    for row in rows[:3]:
        picture = Image.open(folder / row["film"])
        assert Image.open(tmp_path / "masks" / row["mask"]).size == picture.size
