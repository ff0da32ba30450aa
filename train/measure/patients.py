"""From slices to patients: which rule turns a patient's slices into one answer, and how often that answer is right."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.progress import track
from scipy.special import logit

from hub_model import Screener, hub_folder
from hub_model.check import calibration, metrics
from hub_model.refused import Refused
from hub_model.series import RULES
from hub_model.whole import changed_folder

from .provenance import data_of

if TYPE_CHECKING:
    from datasets import Dataset

FOLDS = 5
LEAST_PATIENTS = 20
"""Of each class in the test split; an interval over fewer says nothing."""
SHARE = 0.95
"""Of the patients have at most as many slices as a series may have for which the rule speaks."""


@dataclass(frozen=True)
class Patients:
    """What the model said of the slices of n patients, and their labels.

    Attributes:
        slices: for each patient the probabilities of the slices that were judged.
        labels: (n,) 0 or 1.
        names: (n,) the families.
        unanswered: patients of whom no slice was judged.
    """

    slices: list[np.ndarray]
    labels: np.ndarray
    names: np.ndarray
    unanswered: int

    def by(self, rule: str) -> np.ndarray:
        """Return one number in 0..1 for each patient."""
        return np.array([RULES[rule](one) for one in self.slices])


def patients(
    run: Annotated[Path, typer.Argument(help="evaluated hub folder for CT")],
    data: Annotated[
        list[str], typer.Option(help="what fit was given: folder, zip, prepared dataset; may repeat")
    ],
    seed: Annotated[int, typer.Option(help="seed of the folds and of the bootstrap")] = 0,
    again: Annotated[bool, typer.Option(help="score the test split although it was scored before")] = False,
) -> dict[str, Any]:
    """Choose the rule for a whole series by folds over patients, and score it once on the test split's patients.

    A patient is a family of the data: slices of one person, look-alikes included. Slices are judged as in screening,
    with lung gate and guard. The rule is chosen on train and validation: the plainest whose AUROC lies within one
    standard error of the best, over folds. Its operating points are chosen on validation alone, whose pictures the
    network never saw. Collections that have no part in the test split are left out: they name no patients.

    Returns:
        What is stored: as ``series`` in screening.json, without the comparison, and as ``patients`` in evaluation.json.

    Raises:
        FolderRefused: RUN is no hub folder.
        Refused: RUN is not for CT, DATA is not what it was trained on, a split has too few patients of a class, or
            the test split was scored before and ``again`` is not set.
    """
    folder = hub_folder.open_folder(run)
    before = _earlier(folder, again)
    parts, origin = data_of(folder, data)
    screener = Screener(folder)
    sources = set(parts["test"]["source"])
    found = {name: judged(screener, parts[name], sources, name) for name in ("train", "validation", "test")}
    for name in ("validation", "test"):
        _check(found[name], name)
    both = _joined(found["train"], found["validation"])
    validation, test = found["validation"], found["test"]
    compared = {"train and validation": compare(both, seed), "validation": compare(validation, seed)}
    rule = chosen(compared["train and validation"])
    values = np.clip(validation.by(rule), 1e-6, 1 - 1e-6)
    points = calibration.operating_points(logit(values), validation.labels, validation.names, seed)
    thresholds = {name: point["threshold"] for name, point in points.items()}
    scored = metrics.figures(test.labels, test.by(rule), test.names, thresholds, seed)
    told = {
        "rule": rule,
        "most_slices": most_slices([*validation.slices, *test.slices]),
        "weights_sha256": folder.screening["weights_sha256"],
        "split_sha256": origin.split_sha256,
        "sources": sorted(sources),
        "points": {
            name: {**point, "measured": _measured(scored["at"][name])} for name, point in points.items()
        },
    }
    result = {
        **told,
        "test_scored": before + 1,
        "counts": {name: _counts(one) for name, one in found.items()},
        "compared": compared,
        "test": scored,
    }
    _store(folder, told, result)
    return result


def _store(folder: hub_folder.HubFolder, told: dict[str, Any], result: dict[str, Any]) -> None:
    with changed_folder(folder.path) as new:
        screening = hub_folder.read_json(new / hub_folder.SCREENING)
        if screening.get("weights_sha256") != told["weights_sha256"]:
            raise Refused(f"{folder.path} has got other weights meanwhile. Choose its rule again.")
        hub_folder.write_json(new / hub_folder.SCREENING, {**screening, "series": told})
        file = new / hub_folder.EVALUATION
        evaluation = hub_folder.read_json(file) if file.is_file() else {}
        hub_folder.write_json(file, {**evaluation, "patients": result})


def _earlier(folder: hub_folder.HubFolder, again: bool) -> int:
    """Say how often patients of the test split were scored with the weights now in the folder."""
    if folder.modality != "ct":
        raise Refused(f"{folder.path} reads {folder.modality}; a series is of CT. Give a run for CT.")
    file = folder.path / hub_folder.EVALUATION
    earlier = (hub_folder.read_json(file) if file.is_file() else {}).get("patients") or {}
    if earlier.get("weights_sha256") != folder.screening.get("weights_sha256"):
        return 0
    if not again:
        raise Refused(
            f"{folder.path}: the patients of its test split have been scored before; {file.name} holds the figures. "
            "Say --again to score them nevertheless; the count is written down."
        )
    return int(earlier["test_scored"])


def judged(screener: Screener, split: "Dataset", sources: Iterable[str], name: str) -> Patients:
    """Judge the slices of a split as in screening, patient by patient.

    Args:
        screener: for CT.
        split: rows with image, label, family and source.
        sources: the collections that count.
        name: shown beside the progress bar.
    """
    rows = split.filter(lambda source: source in sources, input_columns="source")
    images = (row["image"].convert("L") for row in rows.select_columns("image"))
    found = screener.screen_many(images, keep_images=False)
    answers = track(found, description=name, total=len(rows), transient=True)
    probabilities = np.array([np.nan if one.probability is None else one.probability for one in answers])
    families, labels = np.array(rows["family"]), np.array(rows["label"])
    return gathered(probabilities, labels, families)


def gathered(probabilities: np.ndarray, labels: np.ndarray, families: np.ndarray) -> Patients:
    """Put slices (n,) together by family; NaN is a slice that was not judged."""
    slices, kept, names = [], [], []
    for family in np.unique(families):
        mine = families == family
        answered = probabilities[mine & np.isfinite(probabilities)]
        if len(answered):
            slices.append(answered)
            kept.append(labels[mine].max())
            names.append(family)
    return Patients(slices, np.array(kept), np.array(names), len(np.unique(families)) - len(names))


def _joined(first: Patients, second: Patients) -> Patients:
    return Patients(
        [*first.slices, *second.slices],
        np.concatenate([first.labels, second.labels]),
        np.concatenate([first.names, second.names]),
        first.unanswered + second.unanswered,
    )


def _check(found: Patients, name: str) -> None:
    for label, word in enumerate(hub_folder.LABELS):
        if (count := int((found.labels == label).sum())) < LEAST_PATIENTS:
            raise Refused(
                f"The {name} split has {count} patients with the label {word}; {LEAST_PATIENTS} are needed to say how "
                "a rule for patients errs. Give more data; until then a series gets no answer as a whole."
            )


def compare(found: Patients, seed: int) -> dict[str, dict[str, float]]:
    """Compute the AUROC of every rule over patients: mean and standard error over folds stratified by label."""
    order = np.random.default_rng(seed).permutation(len(found.labels))
    order = order[np.argsort(found.labels[order], kind="stable")]
    fold = np.empty(len(order), int)
    fold[order] = np.arange(len(order)) % FOLDS
    result = {}
    for rule in RULES:
        values = found.by(rule)
        scores = [
            float(metrics.threshold_free(found.labels[fold == k], values[fold == k])["auroc"])
            for k in range(FOLDS)
        ]
        result[rule] = {"auroc": float(np.mean(scores)), "error": float(np.std(scores, ddof=1) / FOLDS**0.5)}
    return result


def chosen(compared: dict[str, dict[str, float]]) -> str:
    """Choose the plainest rule within one standard error of the best (Breiman et al. 1984, the one-SE rule)."""
    best = max(compared.values(), key=lambda one: one["auroc"])
    return next(rule for rule in RULES if compared[rule]["auroc"] >= best["auroc"] - best["error"])


def most_slices(slices: list[np.ndarray]) -> int:
    """Find the largest number of slices in a series that the figures cover; all but a few patients stay below it."""
    return int(np.quantile([len(one) for one in slices], SHARE, method="lower"))


def _measured(at: dict[str, Any]) -> dict[str, Any]:
    return {key: at[key] for key in ("sensitivity", "specificity")}


def _counts(found: Patients) -> dict[str, Any]:
    numbers = [len(one) for one in found.slices]
    counts = {word: int((found.labels == label).sum()) for label, word in enumerate(hub_folder.LABELS)}
    return {
        **counts,
        "unanswered": found.unanswered,
        "slices": int(np.sum(numbers)),
        "median_slices": float(np.median(numbers)) if numbers else 0.0,
        "most_slices": int(np.max(numbers, initial=0)),
    }
