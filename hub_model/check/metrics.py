"""Screening figures with intervals that resample families, not pictures.

The functions take weights, so that one call scores all bootstrap replicates at once: 2,000 of them with scikit-learn,
one by one, take minutes. Tests compare every figure with scikit-learn's. `screening_figures.ScreeningFigures` is the
same as a module of the ``evaluate`` library.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

REPLICATES = 2000
LEVEL = 0.95
ECE_BINS = 15
SHARES = {
    "caught",
    "refused",
    "flipped",
    "lungs found",
    "accuracy",
    "sensitivity",
    "specificity",
    "recall",
    "precision",
    "ppv",
    "npv",
}

Record = dict[str, Any]
"""One number as it is stored: metric, value, low, high, n and what was resampled."""


def confusion(
    labels: ArrayLike, probabilities: ArrayLike, threshold: float, weights: ArrayLike | None = None
) -> dict[str, np.ndarray]:
    """Count tp, fp, tn and fn, weighted: each (R,) for weights (R, n), or a number for weights (n,) or None."""
    labels, called = np.asarray(labels) == 1, np.asarray(probabilities) >= threshold
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, float)
    cells = {"tp": labels & called, "fp": ~labels & called, "tn": ~labels & ~called, "fn": labels & ~called}
    return {name: weights @ cell.astype(float) for name, cell in cells.items()}


def at_threshold(
    labels: ArrayLike,
    probabilities: ArrayLike,
    threshold: float,
    weights: ArrayLike | None = None,
    prevalence: float | None = None,
) -> dict[str, np.ndarray]:
    """Work out the figures of the decision ``probability >= threshold``; NaN where a figure is not defined.

    Args:
        labels: (n,) 0 or 1.
        probabilities: (n,) P(COVID).
        threshold: the decision threshold.
        weights: (n,) or (R, n) case weights.
        prevalence: for PPV and NPV; by default that of the sample. By Bayes' theorem from sensitivity, specificity.

    Returns:
        accuracy, sensitivity, specificity, precision, recall, f1, balanced_accuracy, mcc, ppv, npv.
    """
    c = confusion(labels, probabilities, threshold, weights)
    tp, fp, tn, fn = (np.asarray(c[key], float) for key in ("tp", "fp", "tn", "fn"))
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        prior = (tp + fn) / (tp + fp + tn + fn) if prevalence is None else prevalence
        root = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        return {
            "accuracy": (tp + tn) / (tp + fp + tn + fn),
            "sensitivity": sensitivity,
            "specificity": specificity,
            "precision": tp / (tp + fp),
            "recall": sensitivity,
            "f1": 2 * tp / (2 * tp + fp + fn),
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "mcc": np.where(root > 0, (tp * tn - fp * fn) / np.where(root > 0, root, 1), 0.0),
            "ppv": sensitivity * prior / (sensitivity * prior + (1 - specificity) * (1 - prior)),
            "npv": specificity * (1 - prior) / (specificity * (1 - prior) + (1 - sensitivity) * prior),
        }


def threshold_free(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None
) -> dict[str, np.ndarray]:
    """Work out the figures that need no threshold; arguments and shapes as in `at_threshold`.

    Returns:
        auroc (ties count half), auprc (average precision), brier, ece (calibration error over 15 bins of equal width).
    """
    labels, probabilities = np.asarray(labels, float), np.asarray(probabilities, float)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, float)
    order = np.argsort(-probabilities, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(probabilities[order]) != 0])
    positive = np.add.reduceat((weights * labels)[..., order], starts, axis=-1)
    negative = np.add.reduceat((weights * (1 - labels))[..., order], starts, axis=-1)
    true, false = positive.cumsum(-1), negative.cumsum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = (negative * (true - positive / 2)).sum(-1) / (true[..., -1] * false[..., -1])
        precision = np.where(true + false > 0, true / np.where(true + false > 0, true + false, 1), 0.0)
        auprc = (positive * precision).sum(-1) / true[..., -1]
        brier = weights @ np.square(probabilities - labels) / weights.sum(-1)
    bins = np.minimum((probabilities * ECE_BINS).astype(int), ECE_BINS - 1)
    members = np.eye(ECE_BINS)[bins]
    gap = np.abs((weights * (probabilities - labels)) @ members)
    return {"auroc": auroc, "auprc": auprc, "brier": brier, "ece": gap.sum(-1) / weights.sum(-1)}


def family_weights(families: ArrayLike, replicates: int = REPLICATES, seed: int = 0) -> np.ndarray:
    """Draw bootstrap weights (replicates, n): how often each picture's family was drawn (cluster bootstrap)."""
    names, index = np.unique(np.asarray(families), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), replicates
    )
    return draws[:, index].astype(float)


def record(name: str, value: float, samples: np.ndarray, n: int, families: int) -> Record:
    """Make one number storable: value, percentile interval of the bootstrap samples (R,), n. NaN becomes None.

    A share of exactly 0 or 1 does not vary between resamples; its interval is that of `none_or_all`, counting families.
    """
    samples = samples[np.isfinite(samples)]
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(samples) else (np.nan, np.nan)
    if name in SHARES and families and value in (0, 1):
        low, high = none_or_all(value, families)
    numbers = {"value": value, "low": low, "high": high}
    numbers = {key: round(float(x), 6) if np.isfinite(x) else None for key, x in numbers.items()}
    return {"metric": name, **numbers, "n": int(n), "resampled": "family"}


def none_or_all(share: float, n: int) -> tuple[float, float]:
    """Compute Clopper and Pearson's interval (Biometrika 26, 1934, 404-413) of a share that is exactly 0 or 1 of n."""
    end = ((1 - LEVEL) / 2) ** (1 / n)
    return (end, 1.0) if share else (0.0, 1 - end)


def mean(name: str, values: ArrayLike, families: ArrayLike, seed: int = 0) -> Record:
    """Record the mean of values (n,), numbers or yes and no, with the interval of a family bootstrap."""
    values, families = np.asarray(values, float), np.asarray(families)
    if not len(values):
        return record(name, np.nan, np.empty(0), 0, 0)
    weights = family_weights(families, seed=seed)
    samples = (weights @ values) / np.where(weights.sum(1) > 0, weights.sum(1), np.nan)
    return record(name, float(values.mean()), samples, len(values), len(np.unique(families)))


def interval(figure: Record, digits: int = 3, percent: bool = False, n: bool = False) -> str:
    """Spell a record: ``0.931 (0.880 to 0.961)``, in per cent and with n if so wished; "not defined" without value."""

    def spelt(x: float) -> str:
        return f"{100 * x:.{digits}f} %" if percent else f"{x:.{digits}f}"

    known = figure["low"] is not None
    inside = [f"{spelt(figure['low'])} to {spelt(figure['high'])}" if known else "no interval"]
    inside += [f"n = {figure['n']:,}"] if n else []
    if figure["value"] is None:
        return f"not defined (n = {figure['n']:,})" if n else "not defined"
    return f"{spelt(figure['value'])} ({'; '.join(inside)})"


def figures(
    labels: ArrayLike,
    probabilities: ArrayLike,
    families: ArrayLike,
    thresholds: dict[str, float],
    seed: int = 0,
) -> dict[str, Any]:
    """Work out every figure of one split of the data, as records.

    Returns:
        The threshold-free figures by name, ``n``/``positives``/``families`` counts, and under ``at`` for each
        operating point its threshold, the counts tp/fp/tn/fn and the figures at that threshold. A figure over one
        class carries that class's n.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, float)
    families, weights = np.asarray(families), family_weights(families, seed=seed)
    everyone = np.ones(len(labels), bool)
    counted = {"sensitivity": labels == 1, "recall": labels == 1, "specificity": labels == 0}

    def records(function: Callable[..., dict], *args: float) -> dict[str, Record]:
        value, samples = (
            function(labels, probabilities, *args),
            function(labels, probabilities, *args, weights),
        )
        of = {name: counted.get(name, everyone) for name in value}
        return {
            name: record(name, value[name], samples[name], of[name].sum(), len(np.unique(families[of[name]])))
            for name in value
        }

    result = {"n": len(labels), "positives": int((labels == 1).sum()), "families": len(np.unique(families))}
    result |= records(threshold_free)
    result["at"] = {}
    for name, threshold in thresholds.items():
        counts = {key: int(x) for key, x in confusion(labels, probabilities, threshold).items()}
        result["at"][name] = {"threshold": threshold, **counts, **records(at_threshold, threshold)}
    return result


def paired_difference(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    families: Sequence[str] | np.ndarray,
    metric: str = "auroc",
    seed: int = 0,
) -> Record:
    """Compare two models on the same pictures: first minus second, by a paired family bootstrap.

    Args:
        labels: (n,) 0 or 1.
        first: (n,) P(COVID) of the first model.
        second: (n,) P(COVID) of the second.
        families: (n,).
        metric: a figure of `threshold_free`.
        seed: of the bootstrap.

    Returns:
        A record; its further entry ``p`` is the two-sided bootstrap p-value.
    """
    weights = family_weights(families, seed=seed)
    value = threshold_free(labels, first)[metric] - threshold_free(labels, second)[metric]
    samples = threshold_free(labels, first, weights)[metric] - threshold_free(labels, second, weights)[metric]
    samples = samples[np.isfinite(samples)]
    below = (np.sum(samples <= 0) + 1) / (len(samples) + 1)
    above = (np.sum(samples >= 0) + 1) / (len(samples) + 1)
    found = record(f"{metric} difference", value, samples, len(labels), len(set(families)))
    return {**found, "p": round(float(min(1, 2 * min(below, above))), 4)}
