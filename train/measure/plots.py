"""The measured figures as pictures: what people would rather see than read."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import expit
from sklearn.metrics import precision_recall_curve, roc_curve

from hub_model import evidence, heatmap, lungs
from hub_model.check.metrics import confusion, threshold_free
from hub_model.hub_folder import COVID, LABELS, HubFolder
from hub_model.whole import whole_file

from .predict import Predictions

if TYPE_CHECKING:
    from datasets import Dataset

COLOURS = {"validation": "#8a8f98", "test": "#0b6e99", LABELS[0]: "#4a7a46", LABELS[1]: "#b3402e"}
RELIABILITY_BINS = 8
WORST = 4


def draw_all(folder: HubFolder, validation: Predictions, test: Predictions, split: "Dataset") -> list[Path]:
    """Draw roc, precision_recall, reliability, scores, confusion and worst_errors into the hub folder's plots/."""
    parts = {"validation": validation, "test": test}
    drawn = {
        "roc": _curves(parts, roc=True),
        "precision_recall": _curves(parts, roc=False),
        "reliability": _reliability(parts),
        "scores": _scores(folder, test),
        "confusion": _confusion(folder, test),
        "worst_errors": _worst_errors(folder, test, split),
    }
    return [save(figure, folder.path / "plots" / f"{name}.png") for name, figure in drawn.items()]


def save(figure: Figure, file: Path) -> Path:
    """Write a figure as PNG, whole or not at all, and say nothing in it of the software of the day."""
    with whole_file(file) as new:
        figure.savefig(new, dpi=110, bbox_inches="tight", metadata={"Software": None})
    return file


def styled(axes: Axes, title: str, x: str, y: str, **settings: Any) -> Axes:
    """Give axes the looks of all our plots: a title, named axes, a faint grid and no frame on the right or above."""
    axes.set(title=title, xlabel=x, ylabel=y, **settings)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _axes(title: str, x: str, y: str, size: tuple[float, float] = (4.4, 4.2)) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size)
    return figure, styled(figure.subplots(), title, x, y)


def _curves(parts: dict[str, Predictions], roc: bool) -> Figure:
    titles = (
        ("ROC", "1 - specificity", "sensitivity")
        if roc
        else ("Precision-recall", "recall (sensitivity)", "precision")
    )
    figure, axes = _axes(*titles)
    for name, found in parts.items():
        probabilities = expit(found.log_odds)
        if roc:
            x, y, _ = roc_curve(found.labels, probabilities, drop_intermediate=False)
        else:
            y, x, _ = precision_recall_curve(found.labels, probabilities)
        kind = "auroc" if roc else "auprc"
        area = float(threshold_free(found.labels, probabilities)[kind])
        label = f"{name}: {kind.upper()} {area:.3f} (n = {len(found.labels)})"
        # the area under the precision-recall curve is a sum of steps (average precision), that under ROC of trapezia
        axes.plot(x, y, drawstyle="default" if roc else "steps-post", color=COLOURS[name], label=label)
    if roc:
        axes.plot([0, 1], [0, 1], color="0.6", linestyle=":")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.legend(loc="lower right" if roc else "lower left", fontsize=8)
    return figure


def _reliability(parts: dict[str, Predictions]) -> Figure:
    """Draw the observed share of COVID in bins of equal count, against the mean probability."""
    figure, axes = _axes("Reliability", "calibrated probability", "observed share of COVID")
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="perfect")
    for name, found in parts.items():
        order = np.argsort(found.log_odds)
        bins = np.array_split(order, min(RELIABILITY_BINS, max(1, len(order) // 5)))
        mean = [expit(found.log_odds[b]).mean() for b in bins]
        share = [found.labels[b].mean() for b in bins]
        error = [1.96 * np.sqrt(s * (1 - s) / len(b)) for s, b in zip(share, bins, strict=True)]
        axes.errorbar(mean, share, error, fmt="o-", capsize=2, color=COLOURS[name], label=name, markersize=4)
    axes.legend(fontsize=8)
    return figure


def _scores(folder: HubFolder, test: Predictions) -> Figure:
    figure, axes = _axes("Scores on the test split", "calibrated probability", "images", (5.6, 3.6))
    probabilities = expit(test.log_odds)
    for index, label in enumerate(LABELS):
        values = probabilities[test.labels == index]
        axes.hist(
            values,
            np.linspace(0, 1, 26),
            alpha=0.6,
            color=COLOURS[label],
            label=f"{label} (n = {len(values)})",
        )
    for (name, point), style in zip(
        folder.screening["operating_points"].items(), ("-", "--", ":"), strict=False
    ):
        axes.axvline(
            point["threshold"], color="0.2", linestyle=style, label=f"{name} {point['threshold']:.2f}"
        )
    axes.legend(fontsize=8)
    return figure


def _confusion(folder: HubFolder, test: Predictions) -> Figure:
    points = folder.screening["operating_points"]
    figure = Figure(figsize=(3.1 * len(points), 3.1))
    for axes, (name, point) in zip(
        np.atleast_1d(figure.subplots(1, len(points))), points.items(), strict=True
    ):
        c = confusion(test.labels, expit(test.log_odds), point["threshold"])
        table = np.array([[c["tn"], c["fp"]], [c["fn"], c["tp"]]])
        axes.imshow(table / table.sum(1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(table):
            dark = count > 0.55 * table[row].sum()
            axes.text(
                column, row, f"{count:.0f}", ha="center", va="center", color="white" if dark else "black"
            )
        axes.set(title=f"{name} (>= {point['threshold']:.2f})", xlabel="called", ylabel="truth")
        axes.set_xticks([0, 1], ["negative", "positive"])
        axes.set_yticks([0, 1], LABELS, rotation=90, va="center")
    figure.tight_layout()
    return figure


def _worst_errors(folder: HubFolder, test: Predictions, split: "Dataset") -> Figure:
    """Draw the most confident misses and false alarms, each with its heat map beside it."""
    toward_error = np.where(test.labels == COVID, -test.log_odds, test.log_odds)
    figure = Figure(figsize=(2.1 * WORST, 9.2))
    grid = figure.subplots(4, WORST)
    for axes in grid.flat:
        axes.axis("off")
    for block, label in enumerate((COVID, 1 - COVID)):
        rows = np.flatnonzero(test.labels == label)
        for column, index in enumerate(rows[np.argsort(-toward_error[rows])][:WORST]):
            image = split[int(index)]["image"].convert("L")
            box = folder.finder.find(image).box if folder.view == lungs.LUNGS else None
            shown = lungs.placed(evidence.heat_map(folder.model, folder.transform(image)[None]), box)
            grid[2 * block, column].imshow(image, cmap="gray", vmin=0, vmax=255, aspect="auto")
            grid[2 * block, column].set_title(
                f"{LABELS[label]}, scored {expit(test.log_odds[index]):.2f}\n{test.sources[index]}",
                fontsize=8,
            )
            grid[2 * block + 1, column].imshow(heatmap.overlay(image, shown), aspect="auto")
    figure.suptitle("Lowest-scored COVID (above) and highest-scored Non-COVID (below)", fontsize=10)
    figure.tight_layout()
    return figure
