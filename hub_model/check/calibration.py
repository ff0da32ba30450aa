"""Chosen on pictures with labels: calibration of the probabilities, operating points, abstain bands."""

import math

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import binom

from ..refused import Refused

AT_LEAST, CONFIDENCE = 0.90, 0.95
"""What an operating point promises: this share of right answers, with this confidence."""
TARGET = 0.95
"""Share of right answers among the validation pictures, where there are too few families for a promise."""
ABSTAIN_SHARE = 0.05
"""Share of validation pictures on either side of a threshold that count as too close to call."""
PROMISED = {
    "sensitivity": f"finds at least {100 * AT_LEAST:.0f} of 100, with {100 * CONFIDENCE:.0f} % confidence",
    "specificity": f"gives at most {100 - 100 * AT_LEAST:.0f} of 100 others a false alarm, with "
    f"{100 * CONFIDENCE:.0f} % confidence",
}
LARGEST_LOG_T, LARGEST_BIAS = 4.0, 10.0


def require_both_classes(labels: np.ndarray) -> None:
    """Refuse a validation split that lacks a class.

    Raises:
        Refused: all labels (n,) are 0, or all are 1.
    """
    positives, n = int(np.sum(labels == 1)), len(labels)
    if positives in (0, n):
        raise Refused(
            f"The validation split has {positives} COVID images of {n}; an operating point needs both classes. Give "
            "more data, or another split (--seed)."
        )


def fit_calibration(log_odds: np.ndarray, labels: np.ndarray, families: np.ndarray) -> tuple[float, float]:
    """Find the temperature T and the bias b that make sigmoid(log_odds / T + b) a probability.

    Platt scaling (Platt 1999; Lin, Lin & Weng 2007, Machine Learning 68:267-276): least cross-entropy against targets
    drawn in from 0 and 1 by one pseudo-observation a class, so that a split which the network separates perfectly
    does not end in certainty. The number of observations of a class is that of its families.

    Args:
        log_odds: (n,) logit of COVID minus logit of Non-COVID.
        labels: (n,) 0 or 1.
        families: (n,) family of each picture.

    Returns:
        T > 0 and b; T alone is temperature scaling (Guo et al. 2017, arXiv:1706.04599).

    Raises:
        Refused: a class is missing.
    """
    require_both_classes(labels)
    positive, negative = (len(np.unique(families[labels == label])) for label in (1, 0))
    targets = np.where(labels == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))

    def loss(parameters: np.ndarray) -> float:
        scaled = log_odds / math.exp(parameters[0]) + parameters[1]
        return float((np.logaddexp(0, scaled) - targets * scaled).mean())

    bounds = [(-LARGEST_LOG_T, LARGEST_LOG_T), (-LARGEST_BIAS, LARGEST_BIAS)]
    log_t, bias = minimize(loss, [0.0, 0.0], bounds=bounds, method="L-BFGS-B").x
    return math.exp(log_t), float(bias)


def operating_points(
    log_odds: np.ndarray, labels: np.ndarray, families: np.ndarray, seed: int = 0
) -> dict[str, dict]:
    """Choose three operating points on calibrated validation scores.

    ``sensitivity`` promises to find at least 90 of 100, as a missed COVID case is the costly error; ``specificity``
    promises to call at least 90 of 100 others negative; ``balanced`` has the largest sensitivity + specificity
    (Youden's J) and promises nothing. What a promise is, `promise` says. Where the split has too few families for
    one, the threshold is the best that is right on 95 % of its pictures, and the point says that it promises nothing.
    Thresholds lie midway between neighbouring probabilities.

    Args:
        log_odds: (n,) calibrated.
        labels: (n,) 0 or 1.
        families: (n,) family of each picture.
        seed: of the draw of one picture a family.

    Returns:
        By name, sensitivity first: ``threshold``; ``target`` in words; ``promise``, as `promise` gives it, or None;
        ``abstain`` [low, high): between these probabilities lie the 5 % of the validation pictures that are nearest
        to the threshold, on either side of it.

    Raises:
        Refused: a class is missing.
    """
    require_both_classes(labels)
    probabilities = expit(log_odds)
    values = np.unique(probabilities)
    cuts = np.r_[values[0] / 2, (values[1:] + values[:-1]) / 2, (values[-1] + 1) / 2]
    sensitivity = 1 - _below(probabilities[labels == 1], cuts)
    specificity = _below(probabilities[labels == 0], cuts)
    negative, positive = (probabilities[one_a_family(families, labels == label, seed)] for label in (0, 1))
    rows = {
        "sensitivity": (promise("sensitivity", len(positive)), _below(positive, cuts), sensitivity, np.max),
        "specificity": (
            promise("specificity", len(negative)),
            1 - _below(negative, cuts),
            specificity,
            np.min,
        ),
    }
    youden = cuts[np.argmax(sensitivity + specificity)]
    chosen = {
        "sensitivity": (),
        "balanced": (youden, "largest sensitivity + specificity on validation", None),
    }
    for name, (told, wrong, right, best) in rows.items():
        allowed = (told["wrong"] + 0.5) / told["families"]  # a share; half a family bears rounding
        enough = wrong < allowed if told["holds"] else right >= TARGET
        target = PROMISED[name] if told["holds"] else f"{name} >= {TARGET} on validation"
        chosen[name] = (best(cuts[enough]), target, told)
    return {
        name: {
            "threshold": float(cut),
            "target": target,
            "promise": told,
            "abstain": abstain_band(probabilities, cut),
        }
        for name, (cut, target, told) in chosen.items()
    }


def _below(probabilities: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Give the share of probabilities (n,) below each cut."""
    return np.searchsorted(np.sort(probabilities), cuts) / len(probabilities)


def one_a_family(families: np.ndarray, mine: np.ndarray, seed: int) -> np.ndarray:
    """Draw one picture of each family among those of a mask (n,); returns their places."""
    places = np.random.default_rng(seed).permutation(np.flatnonzero(mine))
    return places[np.unique(families[places], return_index=True)[1]]


def promise(figure: str, families: int) -> dict:
    """Say how many of n families of validation may be wrong so that a share of right answers can be promised.

    The rule: a family (pictures of one patient, or copies of one original) is one observation, namely one of its
    pictures, drawn at random; its other pictures would count as evidence that they are not. A threshold is good enough
    if so few of the n drawn pictures are answered wrongly that a model which is wrong on more than 1 - AT_LEAST of all
    families would have done so well with a probability of at most 1 - CONFIDENCE, by the binomial distribution: the
    one-sided bound of Clopper and Pearson (Biometrika 26, 1934, 404-413). How many may be wrong follows from n alone,
    and the further a threshold is moved, the fewer are, so that choosing the best of the thresholds that are good
    enough costs no confidence (Wilks 1941, Annals of Mathematical Statistics 12:91-96; Bates et al. 2021, Journal of
    the ACM 68:43, arXiv:2101.02703). What is promised is about one picture of a new family that comes as those of
    validation did: from the same sources, in the same shares.

    Args:
        figure: "sensitivity" or "specificity".
        families: n, of the label that the figure is about.

    Returns:
        ``figure``, ``at_least`` (the share promised), ``confidence``, ``families`` (n), ``wrong`` (how many of them
        may be), ``needed`` (the smallest n that can carry the promise) and ``holds`` (whether n can).
    """
    wrong = int(binom.ppf(1 - CONFIDENCE, families, 1 - AT_LEAST)) - 1
    return {
        "figure": figure,
        "at_least": AT_LEAST,
        "confidence": CONFIDENCE,
        "families": families,
        "wrong": max(wrong, 0),
        "needed": math.ceil(math.log(1 - CONFIDENCE) / math.log(AT_LEAST)),
        "holds": wrong >= 0,
    }


def abstain_band(probabilities: np.ndarray, threshold: float) -> list[float]:
    """Find the probabilities [low, high) that are too close to a threshold to call.

    On either side they hold the nearest ABSTAIN_SHARE of all probabilities (n,), at least one picture, and all of
    that side where it has no more; equal probabilities are not torn apart. The ends lie midway to the next ones.
    """
    count = max(1, round(ABSTAIN_SHARE * len(probabilities)))
    below = np.sort(probabilities[probabilities < threshold])[::-1]
    above = np.sort(probabilities[probabilities >= threshold])
    return [_end(below, count, 0.0, threshold), _end(above, count, 1.0, threshold)]


def _end(nearest: np.ndarray, count: int, last: float, threshold: float) -> float:
    """Find the middle between the count-th nearest probability and the next different one, or the last there can be."""
    if not len(nearest):
        return float(threshold)
    inside = nearest[:count][-1]
    outside = nearest[count:][nearest[count:] != inside]
    return float((inside + (outside[0] if len(outside) else last)) / 2)
