"""Is one figure really lower than another? Differences of two samples, from nothing but their intervals."""

import math
from typing import Any

import numpy as np

from .metrics import LEVEL, Record

SURPLUS = 1000  # draws of labels that show which calibration errors arise by chance


def difference(ours: Record, theirs: Record) -> dict[str, Any]:
    """Compare a figure here with the same figure elsewhere, for two samples that share no patient.

    The interval is that of Zou and Donner (MOVER; Statistics in Medicine 27, 2008, 1693-1702): it takes over the
    skewness of the two intervals and needs nothing else of either sample.

    Args:
        ours: a record with ``value``, ``low`` and ``high``.
        theirs: another.

    Returns:
        ``value`` (ours minus theirs), ``low``, ``high``, all None where either is not defined, and
        ``more_than_chance``: whether the interval leaves out 0.
    """
    numbers = [record[key] for record in (ours, theirs) for key in ("value", "low", "high")]
    if any(number is None for number in numbers):
        return {"value": None, "low": None, "high": None, "more_than_chance": False}
    a, a_low, a_high, b, b_low, b_high = numbers
    apart = a - b
    low = apart - math.hypot(a - a_low, b_high - b)
    high = apart + math.hypot(a_high - a, b - b_low)
    told = {"value": round(apart, 6), "low": round(low, 6), "high": round(high, 6)}
    return {**told, "more_than_chance": bool(low > 0 or high < 0)}


def in_words(
    name: str, found: dict[str, Any], more_is_better: bool = True, than: str = "the card reports"
) -> str:
    """Say a difference in a sentence."""
    if found["value"] is None:
        return f"{name}: nothing to compare."
    size = f"{abs(found['value']):.2f}"
    span = f"{found['low']:+.2f} to {found['high']:+.2f}"
    if not found["more_than_chance"]:
        return f"{name}: no difference beyond chance from what {than} ({found['value']:+.2f}; {span})."
    way = "higher" if found["value"] > 0 else "lower"
    better = (found["value"] > 0) == more_is_better
    return f"{name}: {size} {way} than {than}, more than chance explains ({span}); {'better' if better else 'worse'}."


def chance_of_calibration(
    probabilities: np.ndarray, error: float, bins: int, seed: int = 0
) -> dict[str, Any]:
    """Say how large a calibration error perfectly calibrated probabilities (n,) would show on so few pictures.

    Labels are drawn by the probabilities themselves; the error over bins is never negative, hence above 0 by chance
    alone (Broecker & Smith, Weather and Forecasting 22, 2007, 651-661).

    Returns:
        ``expected``, the mean; ``high``, below which 95 % of such errors lie; ``more_than_chance``.
    """
    rng = np.random.default_rng(seed)
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    members = np.eye(bins)[index]
    drawn = rng.random((SURPLUS, len(probabilities))) < probabilities
    errors = np.abs((probabilities - drawn) @ members).sum(1) / max(len(probabilities), 1)
    high = float(np.quantile(errors, LEVEL)) if len(probabilities) else math.nan
    return {
        "expected": round(float(errors.mean()), 6),
        "high": round(high, 6),
        "more_than_chance": bool(error > high),
    }
