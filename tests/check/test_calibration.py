"""Calibration, operating points and abstain bands on data whose answer is known."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import binomtest

from hub_model.check import calibration
from hub_model.check.calibration import abstain_band, fit_calibration, operating_points, promise
from hub_model.check.metrics import at_threshold
from hub_model.refused import Refused
from train.measure.folding import fold


def sample(n=20_000, seed=0):
    """Log-odds that are calibrated: labels are drawn with probability sigmoid(log-odds)."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(0, 2, n)
    return log_odds, (rng.random(n) < expit(log_odds)).astype(int), np.arange(n)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("bias", [-1.5, 0.0, 0.7])
def test_temperature_and_bias_are_recovered(temperature, bias):
    log_odds, labels, families = sample()
    found = fit_calibration((log_odds - bias) * temperature, labels, families)
    assert found == pytest.approx((temperature, bias), rel=0.05, abs=0.05)


def test_perfect_separation_does_not_end_in_certainty():
    """Ten families a class: nobody may be surer than 11 in 12."""
    log_odds, labels = np.repeat([-3.0, 3.0], 10), np.repeat([0, 1], 10)
    temperature, bias = fit_calibration(log_odds, labels, np.arange(20))
    assert expit(log_odds / temperature + bias) == pytest.approx(np.repeat([1 / 12, 11 / 12], 10), abs=1e-3)


@pytest.mark.parametrize("logits", [1, 2])
def test_folding_moves_the_log_odds_by_exactly_that(logits):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(5, logits)

        def get_classifier(self):
            return self.head

        def log_odds(self, x):
            y = self.head(x)
            return y[:, -1] - (y[:, 0] if logits == 2 else 0)

    network, x = Network(), torch.randn(7, 5)
    with torch.no_grad():
        before = network.log_odds(x)
        fold(network, 2.5, -0.75)
        torch.testing.assert_close(network.log_odds(x), before / 2.5 - 0.75)
    for wrong in ((0, 0), (-1, 0), (float("nan"), 0), (1, float("inf"))):
        with pytest.raises(ValueError, match="positive"):
            fold(network, *wrong)


def test_operating_points_keep_their_promises_on_validation_and_not_by_giving_everything_away():
    log_odds, labels, families = sample(2000)
    points, p = operating_points(log_odds, labels, families), expit(log_odds)
    assert list(points) == ["sensitivity", "balanced", "specificity"]
    found = {name: at_threshold(labels, p, point["threshold"]) for name, point in points.items()}
    assert (
        0.90 < found["sensitivity"]["sensitivity"] < 0.93
    )  # a little more than 0.90: that is the confidence
    assert 0.90 < found["specificity"]["specificity"] < 0.93
    assert points["balanced"]["promise"] is None and points["sensitivity"]["promise"]["holds"]
    assert points["sensitivity"]["target"] == "finds at least 90 of 100, with 95 % confidence"
    youden = [
        sum(at_threshold(labels, p, t)[k] for k in ("sensitivity", "specificity")) for t in np.unique(p)
    ]
    best = found["balanced"]
    assert best["sensitivity"] + best["specificity"] == pytest.approx(max(youden), abs=1e-12)


@pytest.mark.parametrize("n", [29, 46, 60, 150, 1000])
def test_the_promise_is_the_bound_of_clopper_and_pearson(n):
    """With as many families wrong as are allowed the one-sided lower end is at least 0.90, with one more it is not."""
    told = promise("sensitivity", n)

    def low(wrong):
        return binomtest(n - wrong, n, alternative="greater").proportion_ci(0.95, method="exact").low

    assert told["holds"] and low(told["wrong"]) >= 0.90 > low(told["wrong"] + 1)


def test_promises_are_kept_as_often_as_they_say():
    """Validation splits of 70 families of one to four pictures that are alike: the promise fails in 5 % of them."""
    rng, failed = np.random.default_rng(0), 0
    for _ in range(200):
        families = np.repeat(np.arange(140), rng.integers(1, 5, 140))
        labels, nature = (np.arange(140) < 70).astype(int)[families], rng.normal(0, 1, 140)
        log_odds = 2 * labels - 1 + nature[families] + rng.normal(0, 0.3, len(families))
        cut = operating_points(log_odds, labels, families)["sensitivity"]["threshold"]
        fresh = 1 + rng.normal(0, 1, 4000) + rng.normal(0, 0.3, 4000)
        failed += (expit(fresh) >= cut).mean() < 0.90
    assert failed / 200 <= 0.08


def test_copies_of_a_family_do_not_make_a_promise():
    log_odds, labels, _ = sample(400)
    points = operating_points(log_odds, labels, np.arange(400) % 20 + 100 * labels)
    for name in ("sensitivity", "specificity"):
        told = points[name]["promise"]
        assert (told["families"], told["needed"], told["holds"]) == (20, 29, False)
        assert points[name]["target"] == f"{name} >= 0.95 on validation"
        assert at_threshold(labels, expit(log_odds), points[name]["threshold"])[name] >= 0.95


def test_each_family_is_heard_once():
    """Nine pictures of one family that are all missed are one miss, as if there were one of them."""
    log_odds = np.r_[np.linspace(1, 3, 50), np.full(9, -2.0), -4]
    labels, families = np.r_[np.ones(59), 0], np.r_[np.arange(50), np.full(9, 50), 99]
    point = operating_points(log_odds, labels, families)["sensitivity"]
    assert (point["promise"]["families"], point["promise"]["wrong"]) == (51, 1)
    assert expit(-2) < point["threshold"] < expit(1)
    alone = operating_points(log_odds, labels, np.arange(60))["sensitivity"]
    assert alone["promise"]["wrong"] == 1 and alone["threshold"] < expit(-2)
    drawn = calibration.one_a_family(families, labels == 1, seed=3)
    assert sorted(families[drawn]) == sorted(set(families[labels == 1]))


@pytest.mark.parametrize("n", [8, 20, 30, 100, 2000])
def test_abstain_band_holds_its_share_on_both_sides(n):
    p = np.random.default_rng(n).permutation(np.linspace(0.01, 0.99, n))
    for threshold in (0.3, 0.5, 0.8):
        low, high = abstain_band(p, threshold)
        count = max(1, round(calibration.ABSTAIN_SHARE * n))
        assert ((p >= low) & (p < threshold)).sum() == count
        assert ((p >= threshold) & (p < high)).sum() == count


def test_abstain_band_keeps_equal_probabilities_together_and_takes_what_there_is():
    p = np.r_[np.full(5, 0.2), np.full(3, 0.6), 0.9, np.full(31, 0.95)]
    low, high = abstain_band(p, 0.4)
    assert 0 < low < 0.2 and 0.6 < high < 0.9
    low, high = abstain_band(p, 0.94)
    assert 0.2 < low <= 0.6 and 0.95 < high <= 1
    assert abstain_band(p, 0.1)[0] == 0.1  # nothing lies below


def test_perfect_separation_still_gives_thresholds_between_the_classes():
    log_odds, labels = np.array([-4.0, -3, 3, 4]), np.array([0, 0, 1, 1])
    for point in operating_points(log_odds, labels, np.arange(4)).values():
        assert expit(-3) < point["threshold"] < expit(3)
        assert point["abstain"][0] < point["threshold"] < point["abstain"][1]


@pytest.mark.parametrize("label", [0, 1])
def test_validation_of_one_class_is_refused_in_words(label):
    with pytest.raises(Refused, match="needs both classes"):
        operating_points(np.zeros(5), np.full(5, label), np.arange(5))
    with pytest.raises(Refused, match="needs both classes"):
        fit_calibration(np.zeros(5), np.full(5, label), np.arange(5))
