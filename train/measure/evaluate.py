"""Calibrate a run on validation, choose its operating points, fit its guard, then score the test split once."""

import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from scipy.special import expit

from hub_model import hub_folder
from hub_model.check import calibration, metrics
from hub_model.check.comparing import chance_of_calibration
from hub_model.decision import INCONCLUSIVE, decide
from hub_model.refused import Refused
from hub_model.whole import changed_folder

from ..data.dataset import Origin
from . import findings as finding
from . import guard as guarding
from . import plots
from .folding import fold
from .predict import Predictions, predict
from .provenance import data_of
from .seen import write_seen

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

MIN_SOURCE_IMAGES = 10
"""Sources with fewer test pictures get no figures of their own: an interval over a handful says nothing."""


def evaluate(
    run: Annotated[Path, typer.Argument(help="hub folder written by fit")],
    data: Annotated[
        list[str], typer.Option(help="what fit was given: folder, zip, prepared dataset; may repeat")
    ],
    seed: Annotated[int, typer.Option(help="seed of the bootstrap and of the guard's made pictures")] = 0,
    half: Annotated[bool, typer.Option(help="store the weights in half precision")] = False,
    again: Annotated[bool, typer.Option(help="score the test split although it was scored before")] = False,
    guard: Annotated[
        bool, typer.Option(help="fit and measure the input guard; without it a run is for comparison only")
    ] = True,
) -> dict[str, Any]:
    """Calibrate RUN on validation and score its test split; writes evaluation.json, screening.json and plots/.

    Returns:
        The contents of ``evaluation.json``.

    Raises:
        FolderRefused: RUN is no hub folder.
        Refused: DATA is not what RUN was trained on, so that its test split may hold training images; validation
            lacks a class; or the test split was scored before and ``again`` is not set.
    """
    folder = hub_folder.open_folder(run)
    _earlier(folder.path, again)
    parts, origin = data_of(folder, data)
    with changed_folder(run) as new:  # a reader finds the run as it was, or calibrated with all its figures
        before = _earlier(new, again)
        started = time.monotonic()
        folder, points, fitted, validation = _calibrated(
            hub_folder.open_folder(new), parts, data, seed, half, guard
        )
        everything = predict(folder, parts["test"], "test")
        test = everything.only(everything.answered)
        rows = parts["test"].select(np.flatnonzero(everything.answered))
        result = {
            **_about(folder, parts, origin),
            "test_scored": before + 1,
            "validation": _scored(validation, points, seed),
            "test": {
                **(scored := _scored(test, points, seed)),
                "calibration": chance_of_calibration(
                    expit(test.log_odds), scored["ece"]["value"], metrics.ECE_BINS, seed
                ),
                "abstained": _abstained(points, test),
                "unanswered": int((~everything.answered).sum()),
            },
            "test_by_source": _by_source(test, points, seed),
            "test_by_finding": finding.by_finding(test, finding.of_rows(rows, data), points, seed),
        }
        if fitted:
            result["guard"] = guarding.measure_guard(folder, parts["test"], everything, fitted, seed)
        result |= {"environment": _environment(), "seconds": round(time.monotonic() - started, 1)}
        plots.draw_all(folder, validation, test, rows)
        write_seen(folder, parts, origin.data_sha256)
        hub_folder.write_json(new / hub_folder.EVALUATION, result)
    return result


def _calibrated(
    folder: hub_folder.HubFolder, parts: "DatasetDict", data: list[str], seed: int, half: bool, guard: bool
) -> tuple[hub_folder.HubFolder, dict[str, dict], guarding.Fitted | None, Predictions]:
    """Calibrate a run on validation and write it; returns it reopened, its points, guard and validation's answers."""
    if half:
        folder.model.half().float()  # what is measured from here on is what will be stored
    temperature, bias = _calibrate(folder, parts["validation"])
    if half:
        folder.model.half().float()
    validation = predict(folder, parts["validation"], "validation")
    validation = validation.only(validation.answered)
    points = _operating_points(validation, seed)
    fitted = guarding.fit_guard(folder, parts, data, validation, seed) if guard else None
    return _save(folder, temperature, bias, points, fitted, half), points, fitted, validation


def _about(folder: hub_folder.HubFolder, parts: "DatasetDict", origin: Origin) -> dict[str, Any]:
    """Say which network was evaluated, how it was calibrated, and on which data."""
    of_data = ("data_sha256", "split_sha256", "split", "seed", "families")
    return {
        "format": hub_folder.FORMAT,
        "modality": folder.modality,
        "architecture": folder.config["architecture"],
        "parameters": sum(p.numel() for p in folder.model.parameters()),
        "weights_sha256": folder.screening["weights_sha256"],
        "data": {
            **{name: getattr(origin, name) for name in of_data},
            "leaks": origin.leaking,
            "counts": _counts(parts),
        },
        "temperature": folder.screening["temperature"],
        "bias": folder.screening["bias"],
    }


def _earlier(path: Path, again: bool) -> int:
    """Say how often the test split was scored with the weights now in the folder."""
    file = path / hub_folder.EVALUATION
    if not file.is_file():
        return 0
    earlier = hub_folder.read_json(file)
    if earlier.get("weights_sha256") != hub_folder.sha256(path / hub_folder.WEIGHTS):
        return 0
    if not again:
        raise Refused(
            f"This run has been scored on its test split before; its {file.name} holds the figures. Every further look "
            "at it makes it less of a test. Say --again to score it nevertheless; the count is written down."
        )
    return int(earlier.get("test_scored", 1))


def _calibrate(folder: hub_folder.HubFolder, split: "Dataset") -> tuple[float, float]:
    """Fit temperature and bias on the validation split and fold them into the network; returns both."""
    calibration.require_both_classes(np.array(split["label"]))
    raw = predict(folder, split, "validation, as trained")
    raw = raw.only(raw.answered)
    temperature, bias = calibration.fit_calibration(raw.log_odds, raw.labels, raw.families)
    fold(folder.model, temperature, bias)
    return temperature, bias


def _operating_points(found: Predictions, seed: int) -> dict[str, dict]:
    """Choose the operating points on validation; each with its sensitivity and specificity there."""
    points = calibration.operating_points(found.log_odds, found.labels, found.families, seed)
    at = _scored(found, points, seed)["at"]
    for name, point in points.items():
        point["validation"] = {key: at[name][key] for key in ("sensitivity", "specificity")}
    return points


def _save(
    folder: hub_folder.HubFolder,
    temperature: float,
    bias: float,
    points: dict[str, dict],
    fitted: guarding.Fitted | None,
    half: bool,
) -> hub_folder.HubFolder:
    """Write the calibrated network with its operating points and guard; returns the folder as reopened."""
    before = folder.screening
    screening = {
        **before,
        "calibrated": True,
        "temperature": before.get("temperature", 1.0) * temperature,
        "bias": before.get("bias", 0.0) / temperature + bias,
        "operating_points": points,
        "guard": {"limits": fitted.limits if fitted else {}},
    }
    config = folder.config
    hub_folder.save(
        folder.path,
        folder.model,
        architecture=config["architecture"],
        model_args=config.get("model_args") or {},
        pretrained_cfg=config["pretrained_cfg"],
        screening=screening,
        guard=fitted.tensors if fitted else None,
        half=half,
    )
    return hub_folder.open_folder(folder.path)


def _scored(found: Predictions, points: dict[str, dict], seed: int, chosen: np.ndarray | None = None) -> dict:
    """Work out every figure of predictions, or of the chosen ones (n,) of them, at the operating points."""
    from .screening_figures import ScreeningFigures

    chosen = np.ones(len(found.labels), bool) if chosen is None else chosen
    return ScreeningFigures(keep_in_memory=True).compute(
        predictions=expit(found.log_odds[chosen]),
        references=found.labels[chosen],
        families=found.families[chosen],
        thresholds={name: point["threshold"] for name, point in points.items()},
        seed=seed,
    )


def _by_source(found: Predictions, points: dict[str, dict], seed: int) -> dict[str, dict]:
    chosen = {str(source): found.sources == source for source in np.unique(found.sources)}
    return {
        source: _scored(found, points, seed, mask)
        for source, mask in chosen.items()
        if mask.sum() >= MIN_SOURCE_IMAGES
    }


def _abstained(points: dict[str, dict], found: Predictions) -> dict[str, int]:
    """Count the pictures that each operating point calls inconclusive."""
    return {
        name: sum(decide(p, point)[0] == INCONCLUSIVE for p in expit(found.log_odds))
        for name, point in points.items()
    }


def _counts(parts: "DatasetDict") -> dict[str, dict[str, int]]:
    counts = {}
    for name, part in parts.items():
        labels = np.array(part["label"])
        counts[name] = {label: int((labels == index).sum()) for index, label in enumerate(hub_folder.LABELS)}
        counts[name]["families"] = len(set(part["family"]))
    return counts


def _environment() -> dict[str, str]:
    packages = ("torch", "timm", "transformers", "datasets", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
