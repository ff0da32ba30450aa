"""Every figure against scikit-learn, the intervals against what they must do."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as reference

from hub_model.check.metrics import (
    at_threshold,
    family_weights,
    figures,
    interval,
    mean,
    paired_difference,
    threshold_free,
)

CLOSE = 1e-12


@pytest.fixture(params=[0, 1, 2])
def scored(request):
    """Labels and probabilities with many ties, for one of several seeds."""
    rng = np.random.default_rng(request.param)
    labels = rng.integers(0, 2, 400)
    return labels, np.round(np.clip(rng.normal(0.4 + 0.2 * labels, 0.25), 0, 1), 2)


def test_threshold_figures_equal_scikit_learn(scored):
    y, p = scored
    called, found = p >= 0.5, at_threshold(y, p, 0.5)
    expected = {
        "accuracy": reference.accuracy_score(y, called),
        "sensitivity": reference.recall_score(y, called),
        "recall": reference.recall_score(y, called),
        "specificity": reference.recall_score(y, called, pos_label=0),
        "precision": reference.precision_score(y, called),
        "f1": reference.f1_score(y, called),
        "balanced_accuracy": reference.balanced_accuracy_score(y, called),
        "mcc": reference.matthews_corrcoef(y, called),
        "ppv": reference.precision_score(y, called),
        "npv": reference.precision_score(y, called, pos_label=0),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=CLOSE), name


def test_threshold_free_figures_equal_scikit_learn(scored):
    y, p = scored
    found = threshold_free(y, p)
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(y, p), abs=CLOSE)
    assert found["auprc"] == pytest.approx(reference.average_precision_score(y, p), abs=CLOSE)
    assert found["brier"] == pytest.approx(reference.brier_score_loss(y, p), abs=CLOSE)


def test_weights_equal_scikit_learns_sample_weight(scored):
    y, p = scored
    weights = np.random.default_rng(9).integers(0, 4, (3, len(y))).astype(float)
    found = threshold_free(y, p, weights)["auroc"]
    for row, value in zip(weights, found, strict=True):
        assert value == pytest.approx(reference.roc_auc_score(y, p, sample_weight=row), abs=CLOSE)


def test_calibration_error_by_hand():
    """Two bins: 0.1 (0 of 2 positive) and 0.9 (1 of 2 positive): (2 * 0.1 + 2 * 0.4) / 4."""
    assert threshold_free([0, 0, 1, 0], [0.1, 0.1, 0.9, 0.9])["ece"] == pytest.approx(0.25, abs=CLOSE)


def test_predictive_values_follow_bayes_at_a_stated_prevalence():
    y, p = np.r_[np.ones(10), np.zeros(10)], np.r_[np.full(9, 0.9), 0.1, np.full(8, 0.1), 0.9, 0.9]
    found = at_threshold(y, p, 0.5, prevalence=0.01)
    assert found["ppv"] == pytest.approx(0.9 * 0.01 / (0.9 * 0.01 + 0.2 * 0.99), abs=CLOSE)
    assert found["npv"] == pytest.approx(0.8 * 0.99 / (0.8 * 0.99 + 0.1 * 0.01), abs=CLOSE)


def test_covid_is_the_positive_class():
    found = at_threshold([1, 1, 0, 0], [0.9, 0.1, 0.1, 0.1], 0.5)
    assert (found["sensitivity"], found["specificity"]) == (0.5, 1.0)


def test_families_are_drawn_whole():
    families = np.array(["a", "a", "b", "c", "c", "c"])
    weights = family_weights(families, 200)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()  # three families are drawn each time


def test_copies_do_not_narrow_the_interval(scored):
    """Five copies of each image in one family carry no more information than the image."""
    y, p = scored
    every = np.arange(len(y))
    own = figures(y, p, every, {})["auroc"]
    copied = figures(np.repeat(y, 5), np.repeat(p, 5), np.repeat(every, 5), {})["auroc"]
    assert copied["high"] - copied["low"] == pytest.approx(own["high"] - own["low"], rel=0.02)
    naive = figures(np.repeat(y, 5), np.repeat(p, 5), np.arange(5 * len(y)), {})["auroc"]
    assert naive["high"] - naive["low"] < 0.5 * (own["high"] - own["low"])


def test_a_perfect_share_has_an_open_interval():
    """Clopper and Pearson for 10 of 10: the lower end is 0.025 ** (1 / 10), the upper one 1; for none the mirror."""
    y, p = np.r_[np.ones(10), np.zeros(5)], np.r_[np.full(10, 0.9), np.full(5, 0.1)]
    found = figures(y, p, np.arange(15), {"t": 0.5})["at"]["t"]["sensitivity"]
    assert (found["value"], found["high"], found["n"]) == (1.0, 1.0, 10)
    assert found["low"] == pytest.approx(0.025 ** (1 / 10), abs=1e-6)
    none = mean("flipped", np.zeros(30), np.arange(30) // 3)
    assert (none["value"], none["low"], none["n"]) == (0, 0, 30)
    assert none["high"] == pytest.approx(1 - 0.025 ** (1 / 10), abs=1e-6)


def test_one_class_gives_no_figure_instead_of_a_wrong_one():
    found = figures(np.ones(6), np.linspace(0.1, 0.9, 6), np.arange(6), {"t": 0.5})
    assert found["auroc"]["value"] is None and found["at"]["t"]["specificity"]["value"] is None
    assert found["at"]["t"]["sensitivity"]["value"] == 0.5


def test_paired_difference_is_zero_between_equals_and_seen_between_unequals(scored):
    y, p = scored
    same = paired_difference(y, p, p, np.arange(len(y)))
    assert (same["value"], same["p"]) == (0, 1)
    better = paired_difference(y, p, np.random.default_rng(1).random(len(y)), np.arange(len(y)))
    assert better["low"] > 0 and better["p"] < 0.05


def test_a_mean_carries_the_interval_of_families():
    values, families = np.repeat([0.0, 1.0, 1.0], [2, 1, 3]), np.array(["a", "a", "b", "c", "c", "c"])
    found = mean("share", values, families)
    assert found["value"] == pytest.approx(4 / 6, abs=1e-6) and found["low"] == 0 and found["high"] == 1
    assert mean("share", [], [])["value"] is None


def test_intervals_are_spelt_one_way():
    found = {"value": 0.931, "low": 0.88, "high": 0.9615, "n": 1098}
    assert interval(found) == "0.931 (0.880 to 0.962)"
    assert interval(found, 1, percent=True, n=True) == "93.1 % (88.0 % to 96.2 %; n = 1,098)"
    assert interval(dict.fromkeys(("value", "low", "high")) | {"n": 3}, n=True) == "not defined (n = 3)"
    assert interval({"value": 1.0, "low": None, "high": None, "n": 3}) == "1.000 (no interval)"


def test_importing_the_metrics_does_not_import_the_evaluate_library():
    code = "import sys, hub_model.check.metrics; print('evaluate' in sys.modules, 'datasets' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["False", "False"]
