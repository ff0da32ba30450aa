"""The search: figures of one setting, a study that goes on, and what it refuses."""

import json

import numpy as np
import pytest

from hub_model.refused import Refused
from tests.bad_files import striped_slices
from train.fit.recipes import RECIPES, Recipe
from train.fit.tune import FOLDS, Seen, figures, folds_of, moments, tune

SMALL = "mobilenetv3_small_050"
PENALTIES = {"steady": 1.0, "source_penalty": 1.0, "ridge": 0.1}


@pytest.fixture(scope="module")
def seen() -> Seen:
    """Two positive sources and one that holds both labels; the label shows in feature 0, and changes move feature 1."""
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 1, 0, 0], 60)
    sources = np.repeat(["alone", "both", "both", "other"], 60)
    families = np.array([f"{index // 2}" for index in range(240)])
    features = rng.standard_normal((240, 1, 8)).repeat(4, 1)
    features[..., 0] += 2 * labels[:, None]
    features[..., 1] += 2 * labels[:, None] + 3 * rng.standard_normal((240, 4))
    which = np.arange(0, 240, 3)
    changed = features[which, :1].repeat(3, 1)
    changed[..., 1] += 4 * rng.standard_normal(changed.shape[:2])
    return Seen(features, changed, which, labels, sources, folds_of(labels, sources, families, 0))


def test_folds_keep_families_whole_and_hold_every_group(seen):
    families = np.arange(240) // 2
    assert all(len(set(seen.folds[families == family])) == 1 for family in set(families))
    for label, source in set(zip(seen.labels, seen.sources, strict=True)):
        assert set(seen.folds[(seen.labels == label) & (seen.sources == source)]) == set(range(FOLDS))


def test_figures_of_a_setting(seen):
    found = figures(seen, moments(seen), **PENALTIES)
    assert set(found) == {"score", "home", "flips", "inside both", "unseen alone", "unseen both"}
    assert found["home"] > 0.85 and found["unseen alone"] > 0.8
    areas = [value for name, value in found.items() if name not in ("score", "flips")]
    assert found["score"] == pytest.approx(np.mean(areas) - 2 * found["flips"])


def test_a_penalty_on_what_changes_move_makes_fewer_flips(seen):
    groups = moments(seen)
    loose = figures(seen, groups, **{**PENALTIES, "steady": 0.0})
    firm = figures(seen, groups, **{**PENALTIES, "steady": 30.0})
    assert firm["flips"] < 0.7 * loose["flips"]


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Slices in which the labels differ in their stripes, and a row small enough for a test."""
    row = Recipe(
        batch=8, epochs=1, learning_rate=1e-4, input_size=32, copies=1, steady=1.0, source_penalty=1.0
    )
    monkeypatch.setitem(RECIPES, "tiny_steady", row)
    striped_slices(tmp_path / "data", 16)
    return tmp_path


def search(archive, **changes):
    arguments = {"data": [str(archive / "data")], "modality": "ct", "variant": SMALL, "out": archive / "study",
                 "recipe": "tiny_steady", "families": "known", "trials": 2}  # fmt: skip
    return tune(**(arguments | changes))


def test_a_study_goes_on_and_leaves_a_table_a_picture_and_a_row(archive):
    assert search(archive)["trials"] == 2
    told = search(archive, trials=3)
    assert told["trials"] == 3
    row = Recipe(**told["recipe"])
    assert row.steady == float(f"{told['best']['steady']:.3g}")
    study = archive / "study"
    assert len((study / "trials.csv").read_text().splitlines()) == 4
    assert (study / "trials.png").stat().st_size > 1000
    assert json.loads((study / "best.json").read_text()) == told
    with pytest.raises(Refused, match=r"of other data or settings \(seed\)"):
        search(archive, seed=1)


def test_a_recipe_without_a_steady_head_is_named(archive):
    with pytest.raises(Refused, match="no steady head"):
        search(archive, recipe="probe")
