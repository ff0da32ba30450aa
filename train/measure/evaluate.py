"""Calibrate a run on validation, choose its operating points, fit its guard, then score the test part once."""

import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.special import expit

from hub_model import hub_folder
from hub_model.refused import Refused
from hub_model.screener import INCONCLUSIVE, decide

from ..data.dataset import load_data
from ..data.sources import DataRefused
from . import calibration, plots
from . import guard as guarding
from .metrics import figures
from .predict import Predictions, predict
from .provenance import fingerprint, parts_of, split_of

MIN_SOURCE_IMAGES = 10
"""Sources with fewer test images get no figures of their own: an interval over a handful says nothing."""


class AlreadyScored(Refused):
    """The test part has been scored with these very weights."""


def evaluate(
    run: Annotated[Path, typer.Argument(help="hub folder written by fit")],
    data: Annotated[
        list[str], typer.Option(help="what fit was given: folder, zip, prepared dataset; may repeat")
    ],
    seed: Annotated[int, typer.Option(help="seed of the bootstrap and of the guard's foreign pictures")] = 0,
    half: Annotated[bool, typer.Option(help="store the weights in half precision")] = False,
    again: Annotated[bool, typer.Option(help="score the test part although it was scored before")] = False,
    guard: Annotated[
        bool, typer.Option(help="fit and measure the input guard; without it a run is for comparison only")
    ] = True,
) -> dict:
    """Calibrate RUN on validation and score its test part; writes evaluation.json, screening.json and plots/.

    Returns:
        The contents of ``evaluation.json``.

    Raises:
        FolderRefused: RUN is no hub folder.
        WrongData: DATA is not what RUN was trained on, so that its test part may hold training images.
        NotCalibrable: the validation part lacks a class.
        AlreadyScored: the test part was scored before and ``again`` is not set.
    """
    folder = hub_folder.open_folder(run)
    before = _earlier(folder.path, again)
    split, parts = split_of(folder), parts_of(folder, data)
    marks = fingerprint(parts)
    started = time.monotonic()
    other = _other_modality(data, folder.modality, seed, split["families"]) if guard else None
    folder = _calibrate(folder, parts, other, seed, half, guard)
    validation = predict(folder, parts["validation"], "validation")
    test = predict(folder, parts["test"], "test")
    thresholds = {name: point["threshold"] for name, point in folder.screening["operating_points"].items()}
    result = {
        "format": hub_folder.FORMAT,
        "modality": folder.modality,
        "architecture": folder.config["architecture"],
        "parameters": sum(p.numel() for p in folder.model.parameters()),
        "weights_sha256": folder.screening["weights_sha256"],
        "test_scored": before + 1,
        "data": {**marks, **split, "leaks": split["split"] == "random", "counts": _counts(parts)},
        "temperature": folder.screening["temperature"],
        "validation": _part(validation, thresholds, seed),
        "test": {**_part(test, thresholds, seed), "abstained": _abstained(folder, test)},
        "test_by_source": _by_source(test, thresholds, seed),
        **(
            {"guard": guarding.measure_guard(folder, parts["test"], other and other["test"], seed)}
            if guard
            else {}
        ),
        "environment": _environment(),
        "seconds": round(time.monotonic() - started, 1),
    }
    plots.draw_all(folder, validation, test, parts["test"])
    hub_folder.write_json(folder.path / hub_folder.EVALUATION, result)
    return result


def _earlier(path: Path, again: bool) -> int:
    """How often the test part was scored with the weights now in the folder."""
    file = path / hub_folder.EVALUATION
    if not file.is_file():
        return 0
    earlier = hub_folder.read_json(file)
    if earlier.get("weights_sha256") != hub_folder.sha256(path / hub_folder.WEIGHTS):
        return 0
    if not again:
        raise AlreadyScored(
            f"{path} has been scored on its test part before; {file.name} holds the figures. Every further look at the "
            "test part makes it less of a test. Say --again to score it nevertheless; the count is written down."
        )
    return int(earlier.get("test_scored", 1))


def _other_modality(data, modality: str, seed: int, families: str):
    """The other modality's parts, for the guard to tell apart; None where the data has one modality only."""
    other = next(m for m in hub_folder.MODALITIES if m != modality)
    try:
        return load_data(data, modality=other, seed=seed, families=families)
    except DataRefused:
        return None


def _calibrate(
    folder: hub_folder.HubFolder, parts, other, seed: int, half: bool, guarded: bool
) -> hub_folder.HubFolder:
    """Fold the temperature, choose the operating points, fit the guard and save; returns the folder as reopened."""
    labels = np.array(parts["validation"]["label"])
    calibration.require_both_classes(labels)
    raw = predict(folder, parts["validation"], "validation")
    temperature = calibration.fit_temperature(raw.margins, labels)
    hub_folder.fold_temperature(folder.model, temperature)
    if half:
        folder.model.half().float()  # what is measured from here on is what will be stored
    calibrated = predict(folder, parts["validation"], "validation")
    points = calibration.operating_points(calibrated.margins, labels)
    found = figures(labels, expit(calibrated.margins), calibrated.families, _thresholds(points), seed)
    for name, point in points.items():
        point["validation"] = {key: found["at"][name][key] for key in ("sensitivity", "specificity")}
    guard, limits = (
        guarding.fit_guard(folder, parts, other and other["train"], seed) if guarded else (None, {})
    )
    screening = {
        **folder.screening,
        "calibrated": True,
        "temperature": folder.screening.get("temperature", 1.0) * temperature,
        "operating_points": points,
        "guard": {"limits": limits},
    }
    config = folder.config
    hub_folder.save(
        folder.path,
        folder.model,
        architecture=config["architecture"],
        model_args=config.get("model_args") or {},
        pretrained_cfg=config["pretrained_cfg"],
        screening=screening,
        guard=guard,
        half=half,
    )
    return hub_folder.open_folder(folder.path)


def _thresholds(points: dict[str, dict]) -> dict[str, float]:
    return {name: point["threshold"] for name, point in points.items()}


def _part(found: Predictions, thresholds: dict[str, float], seed: int) -> dict:
    return figures(found.labels, expit(found.margins), found.families, thresholds, seed)


def _by_source(found: Predictions, thresholds: dict[str, float], seed: int) -> dict:
    result = {}
    for source in np.unique(found.sources):
        mask = found.sources == source
        if mask.sum() >= MIN_SOURCE_IMAGES:
            result[str(source)] = figures(
                found.labels[mask], expit(found.margins[mask]), found.families[mask], thresholds, seed
            )
    return result


def _abstained(folder: hub_folder.HubFolder, found: Predictions) -> dict[str, int]:
    """Images of the part that each operating point calls inconclusive."""
    return {
        name: sum(decide(p, point)[0] == INCONCLUSIVE for p in expit(found.margins))
        for name, point in folder.screening["operating_points"].items()
    }


def _counts(parts) -> dict[str, dict[str, int]]:
    counts = {}
    for name, part in parts.items():
        labels = np.array(part["label"])
        counts[name] = {label: int((labels == index).sum()) for index, label in enumerate(hub_folder.LABELS)}
        counts[name]["families"] = len(set(part["family"]))
    return counts


def _environment() -> dict[str, str]:
    packages = ("torch", "timm", "transformers", "datasets", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
