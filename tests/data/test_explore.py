"""The report on a data set: its numbers against ones worked out by hand, its page, its refusals."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hub_model.check.files import DataRefused
from tests.bad_files import files_of_at_most
from train.__main__ import app
from train.data.explore import Tally, cramers_v, cue, explore, summary, warnings
from train.data.prepare import prepare
from train.phantom.phantom import phantom


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return phantom(tmp_path_factory.mktemp("raw") / "phantoms", n=12, size=64)


@pytest.fixture(scope="module")
def data(raw, tmp_path_factory):
    return prepare([str(raw)], tmp_path_factory.mktemp("data") / "data", families="known", jobs=1)


@pytest.fixture(scope="module")
def page(data, tmp_path_factory):
    return explore([str(data)], tmp_path_factory.mktemp("report") / "report", examples=3)


@pytest.fixture(scope="module")
def report(page):
    return json.loads((page.parent / "report.json").read_text("utf-8"))


def pictures_of(raw, modality, label):
    top = {"ct": "CT", "xray": "X-ray"}[modality]
    return [np.asarray(Image.open(path)) for path in sorted((raw / top / label).glob("*.png"))]


def test_counts_and_families_are_those_of_the_data(report):
    assert report["pictures"] == 24
    for numbers in report["modalities"].values():
        assert numbers["counts"] == {"Non-COVID": 6, "COVID": 6}
        assert sum(sum(part.values()) for part in numbers["splits"].values()) == 12
        assert numbers["sources"] == {"phantom": {"Non-COVID": 6, "COVID": 6}}
    assert report["families"] == {"families": 6, "of_one": 0, "largest": 4, "crossing": 0}
    assert report["prepared"]["split"]["split"] == "family"
    assert sum(report["prepared"]["left_out"].values()) == 2, "README.txt and phantom.json are no pictures"


@pytest.mark.parametrize("modality", ["ct", "xray"])
def test_grey_levels_and_sizes_against_the_files(raw, report, modality):
    numbers = report["modalities"][modality]
    assert set(numbers["black"]) == {"Non-COVID", "COVID"}
    for label, found in numbers["black"].items():
        black = [np.mean(picture == 0) for picture in pictures_of(raw, modality, label)]
        assert found["mean"] == pytest.approx(np.mean(black))
        assert found["median"] == pytest.approx(np.median(black))
        white = [np.mean(picture == 255) for picture in pictures_of(raw, modality, label)]
        assert numbers["white"][label]["mean"] == pytest.approx(np.mean(white))
    assert all(side["median"] == 64 for side in numbers["shorter_side"].values())


def test_tally_sums_grey_levels_and_mean_pictures():
    found, rng = Tally(), np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40 + 9 * turn, 50), np.uint8) for turn in range(4)]
    for turn, picture in enumerate(pictures):
        found.add(Image.fromarray(picture), label=turn % 2, split="train", source="s", family=str(turn))
    for index in (0, 1):
        ours = pictures[index::2]
        expected = np.mean([np.bincount(one.ravel(), minlength=256) / one.size for one in ours], axis=0)
        assert np.allclose(found.levels[index] / 2, expected)
        small = [
            np.asarray(Image.fromarray(one).resize((128, 128), Image.Resampling.BOX), float) for one in ours
        ]
        assert np.allclose(found.sums[index], np.sum(small, axis=0))
    assert found["mean"] == pytest.approx([one.mean() for one in pictures])
    assert found["aspect"] == pytest.approx([50 / one.shape[0] for one in pictures])


def test_cramers_v_and_cues_at_their_ends():
    labels = np.array([0, 0, 1, 1] * 10)
    assert cramers_v(np.where(labels == 1, "a", "b"), labels) == pytest.approx(1)
    assert cramers_v(np.array(["a", "b"] * 20), labels) == pytest.approx(0)
    assert cramers_v(np.array(["a"] * 40), labels) is None
    assert cue(labels, -labels.astype(float)) == 1, "the direction does not matter"
    assert cue(labels, np.tile([1.0, 2.0], 20)) == 0.5
    assert cue(np.zeros(4), np.arange(4)) is None


def told(source, width, part):
    """A summary of 80 pictures, made of one value per class."""
    found = Tally()
    for place in range(80):
        index = place % 2
        image = Image.new("L", (width[index], 64), 100)
        found.add(image, label=index, split=part(place), source=source[index], family=str(place))
    return {"modalities": {"ct": summary(found)}, "families": {"crossing": 0}, "prepared": None}


def test_warnings_name_what_gives_the_label_away():
    spread = ["train", "validation", "test"]
    even = told("ss", (64, 64), lambda place: "train")
    assert [
        text for text in warnings(even) if "in train" in text or "alone" in text or "together" in text
    ] == []
    source = warnings(told("ab", (64, 64), lambda place: "train"))
    assert any("Cramér's V 1.00" in text and "only one label in a, b" in text for text in source)
    size = warnings(told("ss", (64, 90), lambda place: "train"))
    assert any("width in pixels alone tells the label with AUROC 1.00" in text for text in size)
    few = warnings(told("ss", (64, 64), lambda place: spread[place // 2 % 3]))
    assert any("13 Non-COVID and 13 COVID in test" in text for text in few)
    leaking = {**even, "families": {"crossing": 7}}
    assert warnings(leaking)[0].startswith("LEAKING: 7 families")


class Links(HTMLParser):
    """Every address a page refers to, and whether its tags are balanced."""

    def __init__(self):
        super().__init__()
        self.found, self.open, self.alts = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.found += [attrs[name] for name in ("src", "href", "data", "action", "poster") if name in attrs]
        if tag == "img":
            self.alts.append(attrs.get("alt"))
        if tag not in ("img", "meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_holds_everything_and_asks_for_nothing(page):
    text = page.read_text("utf-8")
    links = Links()
    links.feed(text)
    assert not links.open
    assert len(links.found) == len(links.alts) == 11, "five pictures per modality and the families"
    assert all(link.startswith("data:image/png;base64,") for link in links.found) and all(links.alts)
    assert not re.search(r"https?:|@import|url\(|<script", text)
    drawn = {path.name for path in page.parent.glob("*.png")}
    assert drawn >= {
        "ct_grey_levels.png",
        "xray_mean.png",
        "ct_examples.png",
        "xray_sizes.png",
        "families.png",
    }
    for path in page.parent.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 100
            image.load()


def test_page_says_the_numbers_of_the_report(page, report):
    text = page.read_text("utf-8")
    black = report["modalities"]["ct"]["black"]["COVID"]
    assert f"<td>{100 * black['mean']:.1f} %</td>" in text
    assert "24 pictures, 6 families" in text and report["prepared"]["split"]["hash"][:12] in text
    assert "0 is black" in text
    assert all(warning.replace("'", "&#39;") in text for warning in report["warnings"])


def test_raw_pictures_one_modality_and_replacing_a_report(raw, page, tmp_path, monkeypatch):
    monkeypatch.setattr("train.data.dataset._cache", lambda: tmp_path)
    out = tmp_path / "report"
    explore([str(raw)], out, modality="ct", examples=2)
    first = json.loads((out / "report.json").read_text("utf-8"))
    assert list(first["modalities"]) == ["ct"] and first["prepared"] is None
    assert not (out / "families.png").exists()
    explore([str(raw)], out, modality="ct", examples=1)
    assert json.loads((out / "report.json").read_text("utf-8")) == first
    assert not (tmp_path / "report.partial").exists()


def test_refusals_leave_nothing_behind(data, tmp_path):
    with pytest.raises(DataRefused, match="no such folder"):
        explore([str(tmp_path / "missing")], tmp_path / "report")
    with pytest.raises(DataRefused, match="Modality 'mri'"):
        explore([str(data)], tmp_path / "report", modality="mri")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    with pytest.raises(DataRefused, match="something else"):
        explore([str(data)], tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep"


def test_full_disk_keeps_the_report_written_before(data, page, tmp_path):
    before = Path(shutil.copytree(page.parent, tmp_path / "report"))
    index = (before / "index.html").read_bytes()
    with files_of_at_most(500), pytest.raises(DataRefused, match="the disk is full; nothing was written"):
        explore([str(data)], before, examples=1)
    assert (before / "index.html").read_bytes() == index
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_synthetic_pictures_are_said_to_be(report):
    assert any("nothing measured on them speaks of patients" in text for text in report["warnings"])


def test_command_line_refuses_without_a_traceback(tmp_path, capsys):
    result = CliRunner().invoke(app, ["explore", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, DataRefused) and result.exit_code == 1
    assert not (tmp_path / "out").exists()
