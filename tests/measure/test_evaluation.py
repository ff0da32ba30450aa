"""From a run to figures: calibrated, guarded, scored once, audited, compared; and what stock loaders make of it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from scipy.special import expit

from hub_model import Screener, hub_folder, lung_net, lungs
from hub_model.changes import CHANGES, Change
from hub_model.check import harmless as core
from hub_model.refused import Refused
from tests.fit.test_fit import SMALL, archive, fit  # noqa: F401 - archive is a fixture
from train.fit.recipes import RECIPES, Recipe
from train.measure import findings, guard, harmless, provenance
from train.measure.audit import audit, coarse_only, inside_lungs, lungs_gone, lungs_only
from train.measure.compare import compare
from train.measure.evaluate import evaluate
from train.measure.foreign import MAKERS, foreign_pictures, kinds_for
from train.measure.predict import Predictions
from train.measure.predict import run as run_network
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
    chance = found["test"]["calibration"]
    assert 0 < chance["expected"] < chance["high"] < 1
    assert chance["more_than_chance"] == (found["test"]["ece"]["value"] > chance["high"])
    at = found["test"]["at"]["sensitivity"]
    assert at["tp"] + at["fn"] == found["data"]["counts"]["test"]["COVID"] == at["sensitivity"]["n"]
    assert set(found["guard"]["caught"]) == set(kinds_for("ct"))


def test_thresholds_travel_and_meet_the_target_on_validation(evaluated):
    screener = Screener.from_pretrained(evaluated)
    found = json.loads((evaluated / "evaluation.json").read_text())
    assert screener.screening["calibrated"] and next(iter(screener.operating_points)) == "sensitivity"
    point = screener.operating_points["sensitivity"]
    assert point["threshold"] == found["test"]["at"]["sensitivity"]["threshold"]
    told = point["promise"]
    assert (told["at_least"], told["confidence"], told["needed"]) == (0.9, 0.95, 29)
    assert not told["holds"] and told["families"] == point["validation"]["sensitivity"]["n"] < 29
    assert point["target"] == "sensitivity >= 0.95 on validation"
    assert point["validation"]["sensitivity"]["value"] >= 0.95
    assert point["validation"] == {
        key: found["validation"]["at"]["sensitivity"][key] for key in ("sensitivity", "specificity")
    }
    assert screener.screening["temperature"] == found["temperature"] > 0
    assert screener.screening["bias"] == found["bias"] != 0


def test_pictures_of_the_figures_are_drawn(evaluated):
    names = {p.stem for p in (evaluated / "plots").glob("*.png")}
    assert names == {"roc", "precision_recall", "reliability", "scores", "confusion", "worst_errors"}
    for file in (evaluated / "plots").glob("*.png"):
        assert np.asarray(Image.open(file).convert("L")).std() > 10


def test_test_part_is_scored_once_unless_said(run, archive):  # noqa: F811
    with pytest.raises(Refused, match="makes it less of a test"):
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
    with pytest.raises(Refused, match="trained on another split"):
        evaluate(run, data=[str(other)])


def test_audits_join_the_evaluation(run, archive):  # noqa: F811
    network = lung_net.LungNet((4, 8))
    lungs.save(run, network.eval(), {"modality": "ct", "widths": [4, 8]})
    found = audit(run, data=[str(archive)], pictures=12)
    assert set(found["changed"]) == {"whole", "lungs_gone", "lungs_only", "coarse_only", "lungs"}
    assert found["thumbnail"]["all"]["value"] > 0.8  # brightness of a half is all there is to see here
    assert json.loads((run / "evaluation.json").read_text())["audits"] == found
    measured = found["harmless"]
    names = [change.name for change in CHANGES if "ct" in change.modalities] + ["cut to the lungs"]
    assert [row["change"] for row in measured["rows"]] == names
    for row in measured["rows"]:
        assert set(row["flips"]) == {"sensitivity", "balanced", "specificity"}
        assert set(row["moves"]) == set(hub_folder.LABELS)
        flips = row["flips"]["balanced"]
        assert (
            0 <= flips["low"] <= flips["value"] <= flips["high"] <= 1 and flips["n"] == measured["pictures"]
        )
    assert (run / "plots" / "harmless_changes.png").is_file()
    table = compare([run])
    worst = core.worst(measured, "sensitivity")
    assert f"{worst['change']}: {100 * worst['flips']['sensitivity']['value']:.1f} %" in table
    with pytest.raises(Refused, match="measure nothing"):
        audit(run, data=[str(archive)], pictures=2)
    assert "uncut" not in found
    screening = json.loads((run / hub_folder.SCREENING).read_text())
    hub_folder.write_json(run / hub_folder.SCREENING, {**screening, "view": lungs.LUNGS})
    uncut = audit(run, data=[str(archive)], pictures=4)["uncut"]
    told = json.loads((run / "evaluation.json").read_text())["test"]
    assert uncut["auroc"] == told["auroc"]  # whole pictures are what this network was evaluated on
    assert uncut["specificity"] == told["at"]["sensitivity"]["specificity"]


def test_flips_and_moves_are_those_of_the_answers(evaluated, archive, monkeypatch):  # noqa: F811
    """A change that turns every picture black is no harmless one: it gives every picture the same answer."""
    folder = hub_folder.open_folder(evaluated)
    test = provenance.parts_of(folder, [str(archive)])["test"]
    black = Change("blacked out", lambda grey: grey * 0, limit=0.0)
    same = Change("left alone", lambda grey: grey)
    monkeypatch.setattr(core, "CHANGES", (black, same))
    measured = harmless.measure_changes(folder, test, pictures=len(test))
    gone, kept = measured["rows"]
    assert all(record["value"] == 0 for record in (*kept["flips"].values(), *kept["moves"].values()))
    answer = run_network(folder, [Image.new("L", (64, 64))])[0][0]
    before, _ = run_network(folder, [row["image"].convert("L") for row in test])
    threshold = folder.screening["operating_points"]["balanced"]["threshold"]
    flipped = (expit(before) >= threshold) != (expit(answer) >= threshold)
    assert gone["flips"]["balanced"]["value"] == pytest.approx(flipped.mean(), abs=1e-6)
    moved = (expit(answer) - expit(before))[np.array(test["label"]) == 1].mean()
    assert gone["moves"]["COVID"]["value"] == pytest.approx(moved, abs=1e-5)


def test_pictures_are_spread_over_labels_and_families():
    labels = np.r_[np.zeros(90, int), np.ones(20, int)]
    families = np.r_[np.arange(90) // 9, 100 + np.arange(20) // 10].astype(str)
    chosen = core.spread(labels, families, 40, seed=1)
    assert (labels[chosen] == 1).sum() == 20 and len(chosen) == 40 == len(set(chosen))
    assert len(set(families[chosen][labels[chosen] == 0])) == 10  # all of them, twice each
    assert set(core.spread(labels, families, 1000, seed=1)) == set(range(110))


def test_the_guard_learns_other_pictures_whatever_ails_their_labels(archive, tmp_path):  # noqa: F811
    """One class only and no split to speak of: for the guard these are pictures of the other modality all the same."""
    data = shutil.copytree(archive, tmp_path / "data")
    folder = data / "X-ray" / "COVID"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(40):
        noise = rng.integers(0, 256, (48, 48)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"film_{number}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    teaching, measuring = guard.other_modality("ct", [str(data)], seed=0)
    assert len(teaching) + len(measuring) == 40 and measuring
    assert {image.size for image in (*teaching, *measuring)} == {(48, 48)}
    assert guard.other_modality("ct", [str(archive)], seed=0) == ([], [])


def test_pictures_that_say_no_modality_are_not_taken_for_the_other_one(archive, tmp_path):  # noqa: F811
    plain = shutil.copytree(archive / "CT", tmp_path / "plain")
    assert guard.other_modality("ct", [str(plain)], seed=0) == ([], [])


def test_findings_are_grouped_by_what_collections_say():
    said = [
        ("No finding", ""),
        ("Other", "tuberculosis"),
        ("Pneumonia", "organising"),
        ("SARS", None),
        ("", ""),
        (None, None),
    ]
    assert [findings.group(*words) for words in said] == [
        "no finding", "tuberculosis", "pneumonia", "other", "", ""
    ]  # fmt: skip


def test_findings_come_from_the_tables_of_the_collections(tmp_path):
    for name, lines in {
        "one": ["a.png,Pneumonia,", "b.png,No finding,", "c.png,Other,tuberculosis", "d.png,Other,"],
        "two": ["d.png,Pneumonia,", "e.png,,"],
    }.items():
        (tmp_path / name).mkdir()
        text = "\n".join(["file_name,finding,finding_detail", *lines])
        (tmp_path / name / "metadata.csv").write_text(text)
    rows = Dataset.from_dict({"path": ["a.png", "b.png", "c.png", "d.png", "e.png", "f.png"]})
    given = [str(tmp_path / "one"), f"second={tmp_path / 'two'}", str(tmp_path / "none")]
    found = findings.of_rows(rows, given)
    assert found.tolist() == ["pneumonia", "no finding", "tuberculosis", "", "", ""]
    rows = rows.add_column("finding", ["SARS"] * 6)
    assert findings.of_rows(rows, given).tolist() == ["other"] * 6


def test_specificity_by_finding_counts_the_pictures_without_covid():
    n = 60
    said = np.array(["pneumonia", "no finding", ""] * 20)
    labels = (np.arange(n) % 4 == 0).astype(int)
    log_odds = np.where(said == "pneumonia", 1.0, -1.0)
    found = Predictions(log_odds, np.zeros((n, 1)), labels, np.arange(n).astype(str), np.full(n, "s"))
    told = findings.by_finding(found, said, {"p": {"threshold": 0.5}}, 0)
    assert set(told) == {"pneumonia", "no finding"}
    assert told["pneumonia"]["at"]["p"]["specificity"]["value"] == 0
    assert told["no finding"]["at"]["p"]["specificity"]["value"] == 1
    assert told["pneumonia"]["n"] == ((said == "pneumonia") & (labels == 0)).sum()


def test_a_source_the_guard_did_not_see_is_not_refused_more_than_it_says():
    """Three sources that differ; each is refused by a guard of the other two about as often as its limits allow."""
    rng = np.random.default_rng(0)
    own = np.concatenate([rng.normal(shift, 1, (100, 30)) for shift in (0.0, 0.5, -0.5)]).astype(np.float32)
    rows = guard.balanced(["a"] * 100 + ["b"] * 9 + ["c"] * 50, 60, rng)
    assert [((rows >= low) & (rows < high)).sum() for low, high in ((0, 100), (100, 109), (109, 159))] == [
        26,
        9,
        25,
    ]
    of = guard._statistics(own, rng.normal(6, 1, (50, 30)).astype(np.float32))
    scores = of.scores(rng.normal(6, 1, (50, 30)).astype(np.float32))
    assert (scores["foreign"] > 0.9).all() and (of.scores(own)["foreign"] < 0.5).all()


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
    assert found["kept_out"] == {}
    with pytest.raises(Refused, match="no fold of this run"):
        audit(whole, data=[str(data)], fold=[whole])
    evaluate(fold, data=[str(data)], guard=False)
    clinic = audit(fold, data=[str(data)], pictures=4)["kept_out"]["clinic"]
    assert clinic["auroc"]["n"] == len(files) // 2  # all of them, for no split of them was learnt from
    assert clinic["sensitivity"]["n"] + clinic["specificity"]["n"] == len(files) // 2
    assert clinic["answered"]["value"] == 1


def test_audit_pictures_hide_what_they_say():
    image = Image.fromarray(np.full((100, 50), 200, np.uint8))
    mask, found = inside_lungs(image, None)
    assert not found  # nobody outlines lungs here, so that the middle stands for them
    gone, only = np.asarray(lungs_gone(image, mask)), np.asarray(lungs_only(image, mask))
    assert (gone[20:80, 10:40] == 0).all() and (gone[:20] == 200).all()
    assert np.array_equal(gone + only, np.asarray(image))
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (160, 160)).astype(np.uint8))
    assert np.asarray(coarse_only(noisy, mask)).std() < 0.3 * np.asarray(noisy).std()


def test_lungs_are_hidden_along_their_outline():
    outline = np.zeros((1, 1, 128, 128), np.float32)
    outline[..., 32:96, 16:64] = 1
    finder = lungs.LungFinder(lambda pictures: outline, "xray")
    mask, found = inside_lungs(Image.new("L", (256, 256), 200), finder)
    inside = np.asarray(mask)
    assert found and inside[64:192, 32:128].all()
    assert inside.sum() == pytest.approx(
        (128 + 16) * (96 + 16), rel=0.05
    )  # a rim of 4 of 128 pixels goes along


def test_compare_puts_runs_in_one_table(evaluated, tmp_path):
    table = compare([evaluated], out=tmp_path / "table")
    assert (
        "worst harmless change" in table and SMALL in table and (tmp_path / "table.md").read_text() == table
    )
    assert Image.open(tmp_path / "table.png").size[0] > 300
    with pytest.raises(Refused, match="No evaluated run"):
        compare([tmp_path])


@pytest.mark.parametrize("kind", MAKERS)
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
