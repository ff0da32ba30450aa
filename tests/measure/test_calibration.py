"""Temperature and operating points on data whose answer is known."""

import numpy as np
import pytest
from scipy.special import expit

from train.measure.calibration import NotCalibrable, fit_temperature, operating_points
from train.measure.metrics import at_threshold


def sample(n=20_000, seed=0):
    """Margins that are calibrated: labels are drawn with probability sigmoid(margin)."""
    rng = np.random.default_rng(seed)
    margins = rng.normal(0, 2, n)
    return margins, (rng.random(n) < expit(margins)).astype(int)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(temperature):
    margins, labels = sample()
    assert fit_temperature(margins * temperature, labels) == pytest.approx(temperature, rel=0.05)


def test_operating_points_meet_their_targets_and_not_by_giving_everything_away():
    margins, labels = sample(2000)
    points, p = operating_points(margins, labels), expit(margins)
    assert list(points) == ["sensitivity", "balanced", "specificity"]
    found = {name: at_threshold(labels, p, point["threshold"]) for name, point in points.items()}
    assert 0.95 <= found["sensitivity"]["sensitivity"] < 0.96
    assert 0.95 <= found["specificity"]["specificity"] < 0.96
    youden = [
        sum(at_threshold(labels, p, t)[k] for k in ("sensitivity", "specificity")) for t in np.unique(p)
    ]
    best = found["balanced"]
    assert best["sensitivity"] + best["specificity"] == pytest.approx(max(youden), abs=1e-12)


def test_abstain_band_holds_the_nearest_twentieth_on_either_side():
    margins, labels = sample(2000)
    p = expit(margins)
    for point in operating_points(margins, labels).values():
        low, high = point["abstain"]
        assert low <= point["threshold"] <= high
        assert ((p >= low) & (p < point["threshold"])).sum() in (100, (p < point["threshold"]).sum())


def test_perfect_separation_still_gives_thresholds_between_the_classes():
    margins, labels = np.array([-4.0, -3, 3, 4]), np.array([0, 0, 1, 1])
    for point in operating_points(margins, labels).values():
        assert expit(-3) < point["threshold"] < expit(3)


@pytest.mark.parametrize("label", [0, 1])
def test_validation_of_one_class_is_refused_in_words(label):
    with pytest.raises(NotCalibrable, match="needs both classes"):
        operating_points(np.zeros(5), np.full(5, label))
    with pytest.raises(NotCalibrable, match="needs both classes"):
        fit_temperature(np.zeros(5), np.full(5, label))
