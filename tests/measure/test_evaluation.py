"""From a run to figures: calibrated, guarded, scored once, audited, compared; and what stock loaders make of it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hub_model import Screener, hub_folder
from hub_model.refused import Refused
from tests.fit.test_fit import SMALL, archive, fit  # noqa: F401 - archive is a fixture
from train.fit.recipes import RECIPES, Recipe
from train.measure.audit import audit, borders_only, centre_only, coarse_only
from train.measure.compare import NothingToCompare, compare
from train.measure.evaluate import AlreadyScored, evaluate
from train.measure.foreign import KINDS, foreign_pictures, kinds_for
from train.measure.provenance import WrongData
from train.release.card import card


@pytest.fixture(scope="module")
def evaluated(archive, tmp_path_factory):  # noqa: F811
    """A trained and evaluated run; the guard learns from a handful of foreign pictures."""
    out = tmp_path_factory.mktemp("runs") / "ct"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "tiny", Recipe(batch=8, epochs=3, learning_rate=3e-3, input_size=32))
        patch.setattr("train.measure.guard.TEACH_A_KIND", 12)
        patch.setattr("train.measure.guard.MEASURE_A_KIND", 6)
        fit(data=[str(archive)], modality="ct", variant=SMALL, recipe="tiny", out=out)
        evaluate(out, data=[str(archive)])
    return out


@pytest.fixture
def run(evaluated, tmp_path):
    return shutil.copytree(evaluated, tmp_path / "run")


def test_every_figure_is_there_with_its_interval(evaluated):
    found = json.loads((evaluated / "evaluation.json").read_text())
    assert found["test_scored"] == 1 and found["modality"] == "ct" and found["architecture"] == SMALL
    assert list(found["test"]["at"]) == ["sensitivity", "balanced", "specificity"]
    for part in ("validation", "test"):
        for name in ("accuracy", "sensitivity", "specificity", "precision", "f1"):
            figure = found[part]["at"]["sensitivity"][name]
            assert figure["low"] <= figure["value"] <= figure["high"] and figure["resampled"] == "family"
        assert 0.5 < found[part]["auroc"]["value"] <= 1
    at = found["test"]["at"]["sensitivity"]
    assert at["tp"] + at["fn"] == found["data"]["counts"]["test"]["COVID"] == at["sensitivity"]["n"]
    assert set(found["guard"]["caught"]) == set(kinds_for("ct"))


def test_thresholds_travel_and_meet_the_target_on_validation(evaluated):
    screener = Screener.from_pretrained(evaluated)
    found = json.loads((evaluated / "evaluation.json").read_text())
    assert screener.screening["calibrated"] and next(iter(screener.operating_points)) == "sensitivity"
    point = screener.operating_points["sensitivity"]
    assert point["threshold"] == found["test"]["at"]["sensitivity"]["threshold"]
    assert point["validation"]["sensitivity"]["value"] >= 0.95
    assert point["validation"] == {
        key: found["validation"]["at"]["sensitivity"][key] for key in ("sensitivity", "specificity")
    }


def test_pictures_of_the_figures_are_drawn(evaluated):
    names = {p.stem for p in (evaluated / "plots").glob("*.png")}
    assert names == {"roc", "precision_recall", "reliability", "scores", "confusion", "worst_errors"}
    for file in (evaluated / "plots").glob("*.png"):
        assert np.asarray(Image.open(file).convert("L")).std() > 10


def test_test_part_is_scored_once_unless_said(run, archive):  # noqa: F811
    with pytest.raises(AlreadyScored, match="makes it less of a test"):
        evaluate(run, data=[str(archive)])


def test_without_a_guard_the_figures_are_the_same_and_no_card_is_written(evaluated, archive, tmp_path):  # noqa: F811
    out = tmp_path / "ct"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "tiny", Recipe(batch=8, epochs=3, learning_rate=3e-3, input_size=32))
        fit(data=[str(archive)], modality="ct", variant=SMALL, recipe="tiny", out=out)
    found = evaluate(out, data=[str(archive)], guard=False)
    guarded = json.loads((evaluated / "evaluation.json").read_text())
    assert found["test"] == guarded["test"] and found["validation"] == guarded["validation"]
    assert "guard" not in found and not (out / hub_folder.GUARD).exists()
    with pytest.raises(Refused, match="no input guard"):
        card(out)


def test_other_data_is_refused(run, archive, tmp_path):  # noqa: F811
    other = shutil.copytree(archive, tmp_path / "other")
    for file in sorted((other / "CT" / "COVID").iterdir())[:6]:
        file.unlink()
    (run / "evaluation.json").unlink()
    with pytest.raises(WrongData, match="trained on another split"):
        evaluate(run, data=[str(other)])


def test_audits_join_the_evaluation(run, archive):  # noqa: F811
    found = audit(run, data=[str(archive)])
    assert set(found["changed"]) == {"borders_only", "centre_only", "coarse_only"}
    assert found["thumbnail"]["all"]["value"] > 0.8  # brightness of a half is all there is to see here
    assert json.loads((run / "evaluation.json").read_text())["audits"] == found


def test_a_source_that_was_left_out_is_scored_beside_the_trivial_cue(archive, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(RECIPES, "tiny", Recipe(batch=8, epochs=1, learning_rate=3e-3, input_size=32))
    monkeypatch.setattr("train.measure.guard.TEACH_A_KIND", 12)
    monkeypatch.setattr("train.measure.guard.MEASURE_A_KIND", 6)
    data = shutil.copytree(archive, tmp_path / "data")
    files = sorted(data.rglob("*.png"))
    rows = [
        f"{file.relative_to(data).as_posix()},ct,{file.parent.name},{'clinic' if int(file.stem) % 2 else 'web'}"
        for file in files
    ]
    (data / "metadata.csv").write_text("\n".join(["file_name,modality,label,source", *rows]))
    given = {"data": [str(data)], "modality": "ct", "variant": SMALL, "recipe": "tiny"}
    whole, fold = (
        fit(**given, out=tmp_path / "ct"),
        fit(**given, out=tmp_path / "fold", without_source=["clinic"]),
    )
    evaluate(whole, data=[str(data)])
    found = audit(whole, data=[str(data)], fold=[fold])
    assert set(found["unseen_source"]) == {"clinic", "inside clinic"}
    assert found["unseen_source"]["inside clinic"]["n"] == len(files) // 2
    assert found["unseen_source"]["clinic"]["thumbnail"]["n"] == found["unseen_source"]["clinic"]["n"]
    assert {"all", "clinic", "web"} >= set(found["thumbnail"]) and "advantage" in found["thumbnail"]["all"]
    with pytest.raises(WrongData, match="no fold of this run"):
        audit(whole, data=[str(data)], fold=[whole])


def test_audit_pictures_hide_what_they_say():
    image = Image.fromarray(np.full((100, 50), 200, np.uint8))
    borders, centre = np.asarray(borders_only(image)), np.asarray(centre_only(image))
    assert (borders[20:80, 10:40] == 0).all() and (borders[:20] == 200).all()
    assert np.array_equal(borders + centre, np.asarray(image))
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (160, 160)).astype(np.uint8))
    assert np.asarray(coarse_only(noisy)).std() < 0.3 * np.asarray(noisy).std()


def test_compare_puts_runs_in_one_table(evaluated, tmp_path):
    table = compare([evaluated], out=tmp_path / "table")
    assert SMALL in table and (tmp_path / "table.md").read_text() == table
    assert Image.open(tmp_path / "table.png").size[0] > 300
    with pytest.raises(NothingToCompare):
        compare([tmp_path])


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_pictures_are_seeded_and_differ_between_teaching_and_measuring(kind):
    real = Image.fromarray(np.random.default_rng(1).integers(0, 256, (70, 60)).astype(np.uint8))

    def made(teaching):
        return [np.asarray(p) for p in foreign_pictures([real], "xray", 3, 5, teaching)[kind]]

    first, second, other = made(True), made(True), made(False)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    if kind not in ("upside_down", "negative", "lying"):  # these depend on nothing but the picture and a coin
        assert not all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(first, other, strict=True))


STOCK = """
import sys
sys.modules["hub_model"] = None  # whoever imports it fails
import timm, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
folder, picture = sys.argv[1:]
image = Image.open(picture)
by_name = {row["label"]: row["score"] for row in pipeline("image-classification", model=folder)(picture)}
model = AutoModelForImageClassification.from_pretrained(folder)
pixels = AutoImageProcessor.from_pretrained(folder)(image.convert("RGB"), return_tensors="pt")["pixel_values"]
stock = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
with torch.inference_mode():
    print(by_name["COVID"], float(model(pixels).logits.softmax(1)[0, 1]), float(stock(pixels).softmax(1)[0, 1]))
"""


def test_stock_loaders_give_the_calibrated_probability_without_this_package(evaluated, archive):  # noqa: F811
    picture = archive / "CT" / "COVID" / "0.png"
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(evaluated), str(picture)], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ours = hub_folder.load(evaluated)
    import torch

    with torch.inference_mode():
        expected = float(ours.model(ours.transform(Image.open(picture))[None]).softmax(1)[0, 1])
    for given in map(float, done.stdout.split()[-3:]):
        assert given == pytest.approx(expected, abs=1e-5)
