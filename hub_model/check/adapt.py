"""Fit a model's last step to a hospital: calibration and operating points on one part, figures on another.

The weights stay as they are. Patients are dealt into folds; three of five fit, two report, so that the settings in the
file are the very ones that were measured.
"""

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logit

from .. import __version__
from ..refused import Refused
from ..screener import Screener
from ..site import FORMAT, sealed
from . import calibration
from .cases import Case, Material
from .comparing import in_words
from .copies import ROLES
from .metrics import ECE_BINS, family_weights, figures, record, threshold_free

FOLDS, FITTING = 5, 3
"""Of so many folds, this many fit; the others report."""
LEAST = 49
"""Patients of each label at least: three fifths of them are 29 and more, the fewest that a promise can rest on (none of
29 wrong: `calibration.promise`)."""


def adapt(material: Material, screener: Screener, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit local settings.

    Args:
        material: pictures judged by `screener`.
        screener: the model with its own settings.
        seed: of the deal and of the bootstrap.

    Returns:
        The contents of ``site.json``; and what changed on the part kept out: ``before``, ``after`` (figures as in
        ``check.json``), ``differences`` (paired, with intervals) and ``words``.

    Raises:
        Refused: fewer than `LEAST` patients of a label, or the model has local settings already.
    """
    if screener.site:
        raise Refused(
            "Local settings are fitted on the model's own answers, and this model already uses local settings of "
            f"{screener.site.made}. Leave --site out to fit them anew."
        )
    cases = _enough(material)
    labels = np.array([case.label for case in cases])
    families = np.array([case.family for case in cases])
    odds = log_odds(cases)
    fits = np.isin(deal(labels, families, seed), range(FITTING))
    temperature, bias = calibration.fit_calibration(odds[fits], labels[fits], families[fits])
    fitted = odds / temperature + bias
    points = calibration.operating_points(fitted[fits], labels[fits], families[fits], seed)
    rest = ~fits
    measured = {
        "before": _measured(odds[rest], labels[rest], families[rest], screener.operating_points, seed),
        "after": _measured(fitted[rest], labels[rest], families[rest], points, seed),
    }
    for name, point in points.items():
        point["validation"] = {
            key: measured["after"]["at"][name][key] for key in ("sensitivity", "specificity")
        }
    measured |= _differences(odds[rest], fitted[rest], labels[rest], families[rest], seed)
    site = {
        "format": FORMAT,
        "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "covid_xct": __version__,
        "model": {
            "modality": screener.modality,
            "architecture": screener.config["architecture"],
            "weights_sha256": screener.screening["weights_sha256"],
        },
        "data": {
            "sha256": material.sha256(), "pictures": len(cases), "families": len(set(families)),
            "fitted_on": int(fits.sum()), "measured_on": int(rest.sum()),
            "prevalence": round(float(labels[fits].mean()), 6),
        },
        "temperature": float(temperature),
        "bias": float(bias),
        "operating_points": points,
        "figures": measured,
    }  # fmt: skip
    return sealed(site), measured


def _enough(material: Material) -> list[Case]:
    """Take the pictures that settings may be fitted on: those the model did not learn or choose from.

    Raises:
        Refused: fewer than `LEAST` patients of a label.
    """
    cases = [case for case in material.counted if case.seen not in ROLES[:2]]
    patients = {label: len({case.family for case in cases if case.label == label}) for label in (0, 1)}
    if min(patients.values()) < LEAST:
        own = len(material.counted) - len(cases)
        known = (
            f" ({own:,} more are copies of the model's training pictures and teach nothing)" if own else ""
        )
        raise Refused(
            f"There are {patients[1]} patients with COVID-19 and {patients[0]} without{known}; fitting local settings "
            f"and measuring them on others takes at least {LEAST} of each. Check the model without --adapt, or gather "
            "more."
        )
    return cases


def log_odds(cases: Sequence[Case]) -> np.ndarray:
    """Compute the log-odds (n,) of judged pictures; probabilities are clipped to 1e-12..1 - 1e-12."""
    probabilities = np.array([case.probability for case in cases], float)
    return logit(np.clip(probabilities, 1e-12, 1 - 1e-12))


def deal(labels: np.ndarray, families: np.ndarray, seed: int) -> np.ndarray:
    """Deal families into folds (n,), in turn within each label, so that every fold has its share of both."""
    folds = np.zeros(len(labels), int)
    rng, turn = np.random.default_rng(seed), 0
    names, first = np.unique(families, return_index=True)
    with_covid = {family for family, label in zip(families, labels, strict=True) if label == 1}
    for covid in (True, False):
        mine = [name for name in names[np.argsort(first)] if (name in with_covid) == covid]
        for name in rng.permutation(np.array(mine, dtype=families.dtype)):
            folds[families == name] = turn % FOLDS
            turn += 1
    return folds


def _measured(
    odds: np.ndarray, labels: np.ndarray, families: np.ndarray, points: dict, seed: int
) -> dict[str, Any]:
    thresholds = {name: point["threshold"] for name, point in points.items()}
    return figures(labels, expit(odds), families, thresholds, seed)


def _differences(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, families: np.ndarray, seed: int
) -> dict[str, Any]:
    """Compute how calibration error and Brier score change, on the same pictures (after minus before).

    Intervals are from a paired family bootstrap.
    """
    weights = family_weights(families, seed=seed)
    values = [threshold_free(labels, expit(odds)) for odds in (after, before)]
    samples = [threshold_free(labels, expit(odds), weights) for odds in (after, before)]
    found, words = {}, []
    for name, label in (("ece", f"Calibration error (over {ECE_BINS} bins)"), ("brier", "Brier score")):
        value = float(values[0][name] - values[1][name])
        drawn = samples[0][name] - samples[1][name]
        apart = record(name, value, drawn, len(labels), len(set(families)))
        apart["more_than_chance"] = bool(apart["low"] is not None and (apart["low"] > 0 or apart["high"] < 0))
        found[name] = apart
        words.append(in_words(label, apart, more_is_better=False, than="the model's own settings give"))
    return {"differences": found, "words": words}
