"""How much do harmless changes move a run's answers on its test split? In figures and as a picture."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.progress import track
from scipy.special import expit

from hub_model.check import harmless
from hub_model.check.metrics import Record
from hub_model.guard import Guard
from hub_model.hub_folder import LABELS, HubFolder

from .guard import refuses
from .plots import COLOURS, styled
from .predict import run

if TYPE_CHECKING:
    from datasets import Dataset


def measure_changes(
    folder: HubFolder, split: "Dataset", pictures: int = harmless.PICTURES, seed: int = 0
) -> dict[str, Any]:
    """Make every harmless change to pictures of a split and count what it does to the answers.

    Args:
        folder: a calibrated network with operating points.
        split: rows with image, label and family.
        pictures: how many are tried at most; families are drawn at random, the labels in equal numbers.
        seed: of the draw and of the bootstrap.

    Returns:
        ``pictures``, ``families``, ``of`` (pictures in the split), and ``rows``, one a change, as
        `hub_model.check.harmless.measure_changes` gives them.
    """
    rows = split.select(harmless.spread(split["label"], split["family"], pictures, seed))
    images = [row["image"].convert("L") for row in rows]
    labels, families = np.array(rows["label"]), np.array(rows["family"])
    guard = Guard.of(folder)

    def answers(pictures: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        log_odds, features = run(folder, pictures)
        return expit(log_odds), np.isfinite(log_odds) & ~refuses(folder, guard, pictures, features)

    changes = track(list(harmless.changes_for(folder)), "harmless changes", transient=True)
    points = folder.screening["operating_points"]
    told = harmless.measure_changes(answers, images, labels, families, points, changes, seed)
    return {
        "pictures": len(images),
        "families": len(np.unique(families)),
        "of": len(split),
        "rows": told,
    }


def draw(measured: dict[str, Any], point: str) -> Figure:
    """Draw the flips at an operating point and the moves by label of every change, with their intervals."""
    rows = measured["rows"][::-1]
    figure = Figure(figsize=(8.6, 0.9 + 0.24 * len(rows)))
    left, right = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(rows))
    _whiskers(left, [row["flips"][point] for row in rows], y, COLOURS["test"], None)
    left.plot([row["limit"] for row in rows], y, "|", color="0.3", markersize=9, label="accepted")
    left.set_yticks(y, [row["change"] for row in rows], fontsize=8)
    styled(left, f"answers that flip at {point}", "share", "")
    left.set_xlim(left=-0.005)
    left.legend(fontsize=8, loc="lower right")
    for shift, label in zip((-0.15, 0.15), LABELS, strict=True):
        _whiskers(right, [row["moves"][label] for row in rows], y + shift, COLOURS[label], label)
    right.axvline(0, color="0.6", linestyle=":")
    styled(right, "mean change of P(COVID)", "probability", "")
    right.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    return figure


def _whiskers(axes: Axes, records: list[Record], y: np.ndarray, colour: str, label: str | None) -> None:
    value, low, high = (np.array([row[key] for row in records], float) for key in ("value", "low", "high"))
    axes.errorbar(
        value, y, xerr=np.clip([value - low, high - value], 0, None), fmt="o", color=colour, capsize=2,
        markersize=4, label=label,
    )  # fmt: skip
