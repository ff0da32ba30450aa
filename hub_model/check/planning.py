"""How many pictures does a check need? Exact binomial intervals, before anybody collects anything."""

import math
from typing import Any

import numpy as np
from scipy.stats import beta

from ..refused import Refused
from .metrics import LEVEL

LARGEST = 200_000
"""Patients of a class at most; an interval that asks for more is asked too narrow."""
SETTLED = 200
"""How many larger numbers must do, too, before a number counts as enough: the exact width is no smooth curve."""
NEIGHBOURS = (0.7, 0.8, 0.85, 0.9, 0.95, 0.98)


def exact_interval(hits: np.ndarray, n: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Compute Clopper and Pearson's interval of a share (Biometrika 26, 1934, 404-413).

    Args:
        hits: right answers.
        n: number of answers.
        level: confidence.
    """
    hits, n = np.asarray(hits, float), np.asarray(n, float)
    tail = (1 - level) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(hits == 0, 0.0, beta.ppf(tail, hits, n - hits + 1))
        high = np.where(hits == n, 1.0, beta.ppf(1 - tail, hits + 1, n - hits))
    return low, high


def needed(share: float, width: float, level: float = LEVEL) -> dict[str, Any]:
    """Find the smallest number of patients whose exact interval is as narrow as wanted, if the share comes out so.

    Returns:
        ``n``; ``hits``, the nearest whole number to share * n; ``low`` and ``high`` of their interval.

    Raises:
        Refused: the interval is asked too narrow.
    """
    start, step = 1, 4096
    narrow = np.zeros(0, bool)
    while start <= LARGEST + SETTLED:
        n = np.arange(start, start + step)
        low, high = exact_interval(np.floor(share * n + 0.5), n, level)
        narrow = np.r_[narrow, high - low <= width]
        wide = np.flatnonzero(~narrow)
        first = int(wide[-1]) + 2 if len(wide) else 1  # the first number after the last that is too few
        if len(narrow) - first >= SETTLED and first <= LARGEST:
            hits = math.floor(share * first + 0.5)
            low, high = (float(end) for end in exact_interval(hits, first, level))
            return {"n": first, "hits": hits, "low": round(low, 4), "high": round(high, 4)}
        start += step
    raise Refused(
        f"A {level:.0%} interval of width {width:g} around {share:g} takes more than {LARGEST:,} patients of the "
        "class. "
        "Ask for a wider one (--width)."
    )


def plan(
    sensitivity: float = 0.9,
    width: float = 0.1,
    prevalence: float | None = None,
    specificity: float | None = None,
) -> dict[str, Any]:
    """Say how many patients of each class a check needs.

    One picture a patient counts; further pictures of a patient add little.

    Args:
        sensitivity: what is expected.
        width: of the 95 % interval, from end to end.
        prevalence: share of COVID-19 where consecutive patients come from; then it is said how many of them it takes.
        specificity: what is expected; by default as the sensitivity.

    Returns:
        ``width``, ``level``, ``prevalence``, ``rows``: share expected, n, hits and interval, for neighbouring shares
        and those asked for; ``covid``, ``others``: patients of each class; ``consecutive``: patients in a row, or None.

    Raises:
        Refused: a number outside 0 to 1, or an interval asked too narrow.
    """
    specificity = sensitivity if specificity is None else specificity
    for name, value in (
        ("sensitivity", sensitivity),
        ("specificity", specificity),
        ("prevalence", prevalence),
    ):
        if value is not None and not 0 < value < 1:
            raise Refused(f"--{name} is a number between 0 and 1; got {value:g}.")
    if not 0.005 <= width < 1:
        raise Refused(
            f"--width is a number from 0.005 to 1; got {width:g}. 0.1 is from 0.85 to 0.95, for instance."
        )
    shares = sorted({*NEIGHBOURS, sensitivity, specificity})
    rows = [{"share": share, **needed(share, width)} for share in shares]
    by_share = {row["share"]: row["n"] for row in rows}
    covid, others = by_share[sensitivity], by_share[specificity]
    consecutive = None
    if prevalence is not None:
        consecutive = max(math.ceil(covid / prevalence), math.ceil(others / (1 - prevalence)))
    return {
        "sensitivity": sensitivity, "specificity": specificity, "width": width, "level": LEVEL,
        "prevalence": prevalence, "rows": rows, "covid": covid, "others": others, "consecutive": consecutive,
    }  # fmt: skip
