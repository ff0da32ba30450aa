"""What is chosen on the validation part: temperature, operating points, abstain bands."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from hub_model.refused import Refused

from .metrics import at_threshold

TARGET = 0.95
ABSTAIN_SHARE = 0.05
"""Share of validation images on either side of a threshold that count as too close to call."""


class NotCalibrable(Refused):
    """The validation part cannot carry a calibration."""


def fit_temperature(margins: np.ndarray, labels: np.ndarray) -> float:
    """The T that minimises the log loss of sigmoid(margin / T) (Guo et al. 2017, arXiv:1706.04599).

    Args:
        margins: (n,) logit of COVID minus logit of Non-COVID.
        labels: (n,) 0 or 1.
    """
    require_both_classes(labels)

    def loss(log_t: float) -> float:
        scaled = np.where(labels == 1, 1, -1) * margins / np.exp(log_t)
        return float(np.logaddexp(0, -scaled).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 4), method="bounded").x))


def require_both_classes(labels: np.ndarray) -> None:
    """Raises NotCalibrable where the validation part lacks a class."""
    positives, n = int(np.sum(labels == 1)), len(labels)
    if positives in (0, n):
        raise NotCalibrable(
            f"The validation part has {positives} COVID images of {n}; an operating point needs both classes. Give "
            "more data, or another split (--seed)."
        )


def operating_points(margins: np.ndarray, labels: np.ndarray) -> dict[str, dict]:
    """Three operating points, chosen on calibrated validation probabilities.

    ``sensitivity``: the highest threshold with sensitivity >= 0.95, as a missed COVID case is the costly error;
    ``balanced``: the largest sensitivity + specificity (Youden's J); ``specificity``: the lowest threshold with
    specificity >= 0.95. Thresholds lie midway between neighbouring probabilities.

    Returns:
        By name, sensitivity first: ``threshold``, ``target`` in words, ``abstain`` [low, high], the probabilities
        between which lie 5 % of the validation images on either side of the threshold.
    """
    require_both_classes(labels)
    probabilities = expit(margins)
    values = np.unique(probabilities)
    cuts = np.r_[values[0] / 2, (values[1:] + values[:-1]) / 2, (values[-1] + 1) / 2]
    found = [at_threshold(labels, probabilities, cut) for cut in cuts]
    sensitivity = np.array([f["sensitivity"] for f in found])
    specificity = np.array([f["specificity"] for f in found])
    chosen = {
        "sensitivity": (cuts[sensitivity >= TARGET].max(), f"sensitivity >= {TARGET} on validation"),
        "balanced": (
            cuts[np.argmax(sensitivity + specificity)],
            "largest sensitivity + specificity on validation",
        ),
        "specificity": (cuts[specificity >= TARGET].min(), f"specificity >= {TARGET} on validation"),
    }
    return {
        name: {"threshold": float(cut), "target": target, "abstain": _abstain_band(probabilities, cut)}
        for name, (cut, target) in chosen.items()
    }


def _abstain_band(probabilities: np.ndarray, threshold: float) -> list[float]:
    below, above = (
        np.sort(probabilities[probabilities < threshold]),
        np.sort(probabilities[probabilities >= threshold]),
    )
    count = max(1, round(ABSTAIN_SHARE * len(probabilities)))
    low = below[-min(count, len(below))] if len(below) else threshold
    high = above[min(count, len(above)) - 1] if len(above) else threshold
    return [float(low), float(high)]
