"""Screening figures with intervals that resample families, not images.

The functions take weights, so that one call scores all bootstrap replicates at once. `ScreeningMetrics` is the same
as an ``evaluate.Metric``: use it from here, or offline by path, ``evaluate.load("train/measure/metrics.py")``.
"""

import datasets
import evaluate
import numpy as np

REPLICATES = 2000
LEVEL = 0.95
ECE_BINS = 15
SHARES = {"caught", "refused", "accuracy", "sensitivity", "specificity", "recall", "precision", "ppv", "npv"}

_DESCRIPTION = (
    "Figures of a binary screening test: COVID is class 1, predictions are probabilities of class 1."
)
_CITATION = ""


def confusion(labels, probabilities, threshold, weights=None) -> dict[str, np.ndarray]:
    """Weighted counts tp, fp, tn, fn: each (R,) for weights (R, n), or a number for weights (n,) or None."""
    labels, called = np.asarray(labels) == 1, np.asarray(probabilities) >= threshold
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, float)
    cells = {"tp": labels & called, "fp": ~labels & called, "tn": ~labels & ~called, "fn": labels & ~called}
    return {name: weights @ cell.astype(float) for name, cell in cells.items()}


def at_threshold(labels, probabilities, threshold, weights=None, prevalence=None) -> dict[str, np.ndarray]:
    """Figures of the decision ``probability >= threshold``; NaN where a figure is not defined.

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


def threshold_free(labels, probabilities, weights=None) -> dict[str, np.ndarray]:
    """auroc (ties count half), auprc (average precision), brier, ece (15 equal bins); shapes as in `at_threshold`."""
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


def family_weights(families, replicates: int = REPLICATES, seed: int = 0) -> np.ndarray:
    """Bootstrap weights (replicates, n): how often each image's family was drawn (cluster bootstrap)."""
    names, index = np.unique(np.asarray(families), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), replicates
    )
    return draws[:, index].astype(float)


def record(name: str, value, samples, n: int, families: int) -> dict:
    """One number as it is stored: value, percentile interval, n and what was resampled. NaN becomes None.

    A share of exactly 0 or 1 does not vary between resamples; its open end is Clopper and Pearson's, counting families.
    """
    samples = samples[np.isfinite(samples)]
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(samples) else (np.nan, np.nan)
    if name in SHARES and families:
        bound = ((1 - LEVEL) / 2) ** (1 / families)
        low, high = (bound, 1.0) if value == 1 else (0.0, 1 - bound) if value == 0 else (low, high)
    numbers = {"value": value, "low": low, "high": high}
    numbers = {key: round(float(x), 6) if np.isfinite(x) else None for key, x in numbers.items()}
    return {"metric": name, **numbers, "n": int(n), "resampled": "family"}


def figures(labels, probabilities, families, thresholds: dict[str, float], seed: int = 0) -> dict:
    """Every figure of one part of the data, as `record`s.

    Returns:
        The threshold-free figures by name, ``n``/``positives``/``families`` counts, and under ``at`` for each
        operating point its threshold, the counts tp/fp/tn/fn and the figures at that threshold. A figure over one
        class carries that class's n.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, float)
    families, weights = np.asarray(families), family_weights(families, seed=seed)
    everyone = np.ones(len(labels), bool)
    counted = {"sensitivity": labels == 1, "recall": labels == 1, "specificity": labels == 0}

    def records(function, *args) -> dict:
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


def paired_difference(labels, first, second, families, metric: str = "auroc", seed: int = 0) -> dict:
    """Difference of a threshold-free figure, first minus second model on the same images, by a paired family
    bootstrap; ``p`` is the two-sided bootstrap p-value."""
    weights = family_weights(families, seed=seed)
    value = threshold_free(labels, first)[metric] - threshold_free(labels, second)[metric]
    samples = threshold_free(labels, first, weights)[metric] - threshold_free(labels, second, weights)[metric]
    samples = samples[np.isfinite(samples)]
    below = (np.sum(samples <= 0) + 1) / (len(samples) + 1)
    above = (np.sum(samples >= 0) + 1) / (len(samples) + 1)
    found = record(f"{metric} difference", value, samples, len(labels), len(set(families)))
    return {**found, "p": round(float(min(1, 2 * min(below, above))), 4)}


class ScreeningMetrics(evaluate.Metric):
    """All figures at once; ``compute(predictions=, references=, threshold=0.5, prevalence=None, families=None)``.

    With ``families`` (one id an image) each figure is a record with its interval, else a plain number.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description="predictions: P(COVID) in 0..1; references: 0 (Non-COVID) or 1 (COVID).",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, threshold=0.5, prevalence=None, families=None):
        if families is not None:
            result = figures(references, predictions, families, {"threshold": threshold})
            return {**result, **result.pop("at")["threshold"]}
        found = threshold_free(references, predictions)
        found |= at_threshold(references, predictions, threshold, prevalence=prevalence)
        return {name: float(value) for name, value in found.items()}
