"""The measured figures as pictures: what people would rather see than read."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.special import expit

from hub_model import evidence, heatmap, lungs
from hub_model.hub_folder import COVID, LABELS, HubFolder

from .metrics import at_threshold, confusion, threshold_free
from .predict import Predictions

COLOURS = {"validation": "#8a8f98", "test": "#0b6e99", LABELS[0]: "#4a7a46", LABELS[1]: "#b3402e"}
RELIABILITY_BINS = 8
WORST = 4


def draw_all(folder: HubFolder, validation: Predictions, test: Predictions, test_part) -> list[Path]:
    """Write plots/*.png into the hub folder: roc, precision_recall, reliability, scores, confusion, worst_errors."""
    target = folder.path / "plots"
    target.mkdir(exist_ok=True)
    drawn = {
        "roc": _curves({"validation": validation, "test": test}, roc=True),
        "precision_recall": _curves({"validation": validation, "test": test}, roc=False),
        "reliability": _reliability({"validation": validation, "test": test}),
        "scores": _scores(folder, test),
        "confusion": _confusion(folder, test),
        "worst_errors": _worst_errors(folder, test, test_part),
    }
    files = []
    for name, figure in drawn.items():
        files.append(target / f"{name}.png")
        figure.savefig(files[-1], dpi=110, bbox_inches="tight", metadata={"Software": None})
    return files


def _axes(title: str, x: str, y: str, size=(4.4, 4.2)):
    figure = Figure(figsize=size)
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _curves(parts: dict[str, Predictions], roc: bool) -> Figure:
    titles = (
        ("ROC", "1 - specificity", "sensitivity")
        if roc
        else ("Precision-recall", "recall (sensitivity)", "precision")
    )
    figure, axes = _axes(*titles)
    for name, found in parts.items():
        probabilities = expit(found.margins)
        cuts = np.r_[np.inf, np.unique(probabilities)[::-1]]
        points = [at_threshold(found.labels, probabilities, cut) for cut in cuts]
        y = [p["sensitivity" if roc else "precision"] for p in points]
        x = [1 - p["specificity"] if roc else p["sensitivity"] for p in points]
        kind = "auroc" if roc else "auprc"
        area = float(threshold_free(found.labels, probabilities)[kind])
        label = f"{name}: {kind.upper()} {area:.3f} (n = {len(found.labels)})"
        axes.step(x, y, where="post", color=COLOURS[name], label=label)
    if roc:
        axes.plot([0, 1], [0, 1], color="0.6", linestyle=":")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.legend(loc="lower right" if roc else "lower left", fontsize=8)
    return figure


def _reliability(parts: dict[str, Predictions]) -> Figure:
    """Observed share of COVID in bins of equal count, against the mean probability."""
    figure, axes = _axes("Reliability", "calibrated probability", "observed share of COVID")
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="perfect")
    for name, found in parts.items():
        order = np.argsort(found.margins)
        bins = np.array_split(order, min(RELIABILITY_BINS, max(1, len(order) // 5)))
        mean = [expit(found.margins[b]).mean() for b in bins]
        share = [found.labels[b].mean() for b in bins]
        error = [1.96 * np.sqrt(s * (1 - s) / len(b)) for s, b in zip(share, bins, strict=True)]
        axes.errorbar(mean, share, error, fmt="o-", capsize=2, color=COLOURS[name], label=name, markersize=4)
    axes.legend(fontsize=8)
    return figure


def _scores(folder: HubFolder, test: Predictions) -> Figure:
    figure, axes = _axes("Scores on the test part", "calibrated probability", "images", (5.6, 3.6))
    probabilities = expit(test.margins)
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
        c = confusion(test.labels, expit(test.margins), point["threshold"])
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


def _worst_errors(folder: HubFolder, test: Predictions, part) -> Figure:
    """The most confident misses and false alarms, each with its heat map beside it."""
    toward_error = np.where(test.labels == COVID, -test.margins, test.margins)
    figure = Figure(figsize=(2.1 * WORST, 9.2))
    grid = figure.subplots(4, WORST)
    for axes in grid.flat:
        axes.axis("off")
    for block, label in enumerate((COVID, 1 - COVID)):
        rows = np.flatnonzero(test.labels == label)
        for column, index in enumerate(rows[np.argsort(-toward_error[rows])][:WORST]):
            image = part[int(index)]["image"].convert("L")
            box = folder.finder.find(image).box if folder.view == lungs.LUNGS else None
            shown = lungs.placed(evidence.heat_map(folder.model, folder.transform(image)[None]), box)
            grid[2 * block, column].imshow(image, cmap="gray", vmin=0, vmax=255, aspect="auto")
            grid[2 * block, column].set_title(
                f"{LABELS[label]}, scored {expit(test.margins[index]):.2f}\n{test.sources[index]}", fontsize=8
            )
            grid[2 * block + 1, column].imshow(heatmap.overlay(image, shown), aspect="auto")
    figure.suptitle("Lowest-scored COVID (above) and highest-scored Non-COVID (below)", fontsize=10)
    figure.tight_layout()
    return figure
