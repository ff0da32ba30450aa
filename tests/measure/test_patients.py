"""From slices to patients: rules compared over folds, the plainest taken, figures tied to the weights."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from PIL import Image

from hub_model import Refused, Screener, hub_folder
from train.measure import patients as measure

EXAMPLES = sorted((Path(__file__).parents[2] / "demo" / "examples").glob("phantom_ct_*.png"))


def test_slices_are_put_together_by_family():
    probabilities = np.array([0.1, np.nan, 0.3, 0.9, np.nan])
    found = measure.gathered(probabilities, np.array([0, 0, 0, 1, 1]), np.array(list("aaabc")))
    assert [one.tolist() for one in found.slices] == [[0.1, 0.3], [0.9]]
    assert found.labels.tolist() == [0, 1] and found.names.tolist() == ["a", "b"] and found.unanswered == 1
    assert found.by("mean") == pytest.approx([0.2, 0.9])


def test_the_plainest_rule_within_one_standard_error_is_taken():
    compared = {
        "mean": {"auroc": 0.80, "error": 0.01},
        "mean of the top 3": {"auroc": 0.86, "error": 0.03},
        "highest": {"auroc": 0.88, "error": 0.03},
        "noisy-or": {"auroc": 0.70, "error": 0.09},
    }
    assert measure.chosen(compared) == "mean of the top 3"
    compared["mean"]["auroc"] = 0.851
    assert measure.chosen(compared) == "mean"


def test_rules_are_told_apart_where_they_differ():
    """A patient is positive where one of many slices is: the mean drowns it, the highest does not."""
    rng = np.random.default_rng(0)
    slices = [np.r_[rng.uniform(0, 0.3, rng.integers(3, 40)), [0.9] * (n % 2)] for n in range(60)]
    found = measure.Patients(slices, np.arange(60) % 2, np.arange(60).astype(str), 0)
    compared = measure.compare(found, seed=0)
    assert compared["highest"]["auroc"] == 1 > compared["mean"]["auroc"]
    assert measure.chosen(compared) != "mean"


def test_a_rule_speaks_of_as_many_slices_as_nearly_all_patients_have():
    assert measure.most_slices([np.ones(1)] * 95 + [np.ones(20)] * 5) == 1
    assert measure.most_slices([np.ones(n) for n in range(1, 101)]) == 95


@pytest.fixture
def folder(tmp_path) -> Path:
    """The embedded CT network as it is before its rule for series is fitted."""
    run = Path(shutil.copytree(hub_folder.embedded()["ct"], tmp_path / "ct"))
    for file, key in (("evaluation.json", "patients"), ("screening.json", "series")):
        told = json.loads((run / file).read_text())
        told.pop(key, None)
        (run / file).write_text(json.dumps(told))
    return run


def parts(count: int) -> dict[str, datasets.Dataset]:
    """Every patient is seen on the same synthetic slices, so that whoever is called positive is chance."""
    pictures = [Image.open(path).convert("L") for path in EXAMPLES[:1]]
    rows = {
        "image": pictures * (2 * count),
        "label": [n % 2 for n in range(2 * count)],
        "family": [f"p{n}" for n in range(2 * count)],
        "source": ["hospital"] * (2 * count),
    }
    features = {"image": datasets.Image(), "label": datasets.Value("int64"),
                "family": datasets.Value("string"), "source": datasets.Value("string")}  # fmt: skip
    one = datasets.Dataset.from_dict(rows, datasets.Features(features))
    return {"train": one, "validation": one, "test": one}


@pytest.mark.slow
def test_the_rule_lies_with_the_weights_and_the_test_split_is_scored_once(folder, monkeypatch):
    monkeypatch.setattr(measure, "data_of", lambda *_: (parts(5), SimpleNamespace(split_sha256="s")))
    with pytest.raises(Refused, match=r"5 patients .*; 20 are needed"):
        measure.patients(folder, ["data"])
    monkeypatch.setattr(measure, "LEAST_PATIENTS", 5)
    told = measure.patients(folder, ["data"])
    assert told["rule"] == "mean" and told["most_slices"] == 1 and told["test_scored"] == 1
    assert told["test"]["auroc"]["value"] == 0.5 and told["counts"]["test"]["COVID"] == 5
    stored = json.loads((folder / "evaluation.json").read_text("utf-8"))
    assert stored["patients"]["rule"] == "mean" and stored["test"]["n"] > 100  # what was there stays
    found = Screener.from_pretrained(folder).screen_series(EXAMPLES[0])
    assert found.decision != "unmeasured" and found.rule == "mean" and found.probability is not None
    assert found.measured["sensitivity"]["n"] == 5
    with pytest.raises(Refused, match="have been scored before"):
        measure.patients(folder, ["data"])
    assert measure.patients(folder, ["data"], again=True)["test_scored"] == 2
