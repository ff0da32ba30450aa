"""The lung network: learns from outlines, says what it is worth, and names what it cannot use."""

import csv

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from hub_model import lungs
from hub_model.refused import Refused
from train.fit.lungs import read_table, train_lungs

OVALS = ((0.14, 0.2, 0.44, 0.8), (0.56, 0.2, 0.86, 0.8))


def draw(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """A drawn chest, dark ovals on a bright ground, and the outline of its lungs."""
    width, height = (int(side) for side in rng.integers(120, 220, 2))
    picture, outline = (
        Image.new("L", (width, height), int(rng.integers(120, 230))),
        Image.new("1", (width, height)),
    )
    shift = rng.uniform(-0.05, 0.05, 2)
    for left, top, right, bottom in OVALS:
        box = [
            (left + shift[0]) * width,
            (top + shift[1]) * height,
            (right + shift[0]) * width,
            (bottom + shift[1]) * height,
        ]
        ImageDraw.Draw(picture).ellipse(box, fill=int(rng.integers(0, 80)))
        ImageDraw.Draw(outline).ellipse(box, fill=1)
    return picture.filter(ImageFilter.GaussianBlur(2)), outline


@pytest.fixture(scope="module")
def outlined(tmp_path_factory):
    """Folders of 24 drawn chests of both labels, and of their outlines."""
    root, rng = tmp_path_factory.mktemp("outlined"), np.random.default_rng(0)
    (root / "masks").mkdir()
    with open(root / "masks" / "masks.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["mask", "film"])
        for label in ("COVID", "Non-COVID"):
            (root / "data" / label).mkdir(parents=True)
            for index in range(12):
                picture, outline = draw(rng)
                name = f"{label}/{index:03}.png"
                picture.save(root / "data" / name)
                outline.save(root / "masks" / f"{label}-{index}.png")
                table.writerow([f"{label}-{index}.png", name])
    return root


@pytest.fixture(scope="module")
def trained(outlined):
    folder = outlined / "lungs"
    told = train_lungs(
        [str(outlined / "data")], [outlined / "masks"], folder, families="known", steps=25, bf16=False
    )
    return folder, told


def test_it_outlines_pictures_it_did_not_see(trained):
    folder, told = trained
    assert told["dice"]["validation"]["value"] > 0.6
    assert told["dice"]["unseen"] is None
    assert told["outlines"]["train"] > told["outlines"]["validation"] > 0
    picture, outline = draw(np.random.default_rng(99))
    found = lungs.load(folder).find(picture)
    true = np.asarray(outline.resize((lungs.SIDE, lungs.SIDE))) > 0
    both = (found.outline >= lungs.LIKELY) & true
    assert 2 * both.sum() / ((found.outline >= lungs.LIKELY).sum() + true.sum()) > 0.5


def test_it_is_small(trained):
    folder, _ = trained
    assert (folder / lungs.WEIGHTS).stat().st_size < 2e6


def test_outlines_of_other_pictures_are_named(outlined, tmp_path):
    (tmp_path / "masks.csv").write_text("mask,film\na.png,elsewhere/a.png\n")
    with pytest.raises(Refused, match="none of 1 outlines belongs"):
        train_lungs([str(outlined / "data")], [tmp_path], tmp_path / "out", families="known", steps=1)
    assert not (tmp_path / "out").exists()


def test_a_table_that_lacks_a_column_is_named(tmp_path):
    (tmp_path / "masks.csv").write_text("file,film\na.png,b.png\n")
    with pytest.raises(Refused, match="columns mask and film"):
        read_table(tmp_path)
    with pytest.raises(Refused, match="cannot be read"):
        read_table(tmp_path / "nowhere")
