"""Training data as pictures: what people should see before they train on it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from PIL import Image

from hub_model.hub_folder import COVID, LABELS

COLOURS = dict(zip(LABELS, ("#4a7a46", "#b3402e"), strict=True))
CUT = 98.0
"""Percentile of the inner grey levels where the axis ends, about: the bar of black would dwarf the rest."""


def grey_levels(shares: Mapping[str, np.ndarray], counts: Mapping[str, int]) -> Figure:
    """Draw the distribution of grey levels per class; black and white are given in words, as their bars leave the axis.

    Args:
        shares: per class 256 shares of pixels, averaged over pictures, adding up to 1.
        counts: pictures per class.
    """
    figure, axes = _axes("Grey levels", "grey level (0 black, 255 white)", "share of pixels, %", (7.2, 3.6))
    for label, share in shares.items():
        black, white = 100 * share[0], 100 * share[-1]
        text = f"{label} (n = {counts[label]:,}): {black:.1f} % black, {white:.1f} % white"
        axes.step(np.arange(256), 100 * share, where="mid", color=COLOURS[label], label=text, linewidth=1.1)
        axes.fill_between(np.arange(256), 100 * share, step="mid", color=COLOURS[label], alpha=0.15)
    inner = np.concatenate([share[2:-2] for share in shares.values()])
    axes.set(xlim=(-3, 258), ylim=(0, 130 * np.percentile(inner, CUT) or None))
    axes.legend(fontsize=8, loc="upper right")
    return figure


def mean_pictures(means: Mapping[str, np.ndarray], counts: Mapping[str, int]) -> Figure:
    """Draw the mean picture of each class, and their difference where both are there.

    Args:
        means: per class (side, side), 0 to 255.
        counts: pictures per class.
    """
    both = len(means) == len(LABELS)
    figure = Figure(figsize=(3.2 * (len(means) + both), 3.4), layout="constrained")
    widths = [1.0] * len(means) + [1.2] * both  # the scale beside the difference takes its share
    panels = np.atleast_1d(figure.subplots(1, len(widths), width_ratios=widths))
    for axes, (label, mean) in zip(panels, means.items(), strict=False):
        axes.imshow(mean, cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"mean of {label} (n = {counts[label]:,})", fontsize=9)
    if both:
        difference = means[LABELS[COVID]] - means[LABELS[1 - COVID]]
        limit = max(1.0, float(np.abs(difference).max()))
        shown = panels[-1].imshow(difference, cmap="RdBu_r", vmin=-limit, vmax=limit)
        panels[-1].set_title("COVID less Non-COVID, grey levels", fontsize=9)
        figure.colorbar(shown, ax=panels[-1], fraction=0.046)
    for axes in panels:
        axes.axis("off")
    return figure


def sizes(width: np.ndarray, height: np.ndarray, labels: np.ndarray) -> Figure:
    """Draw width against height of every picture, by class.

    Args:
        width, height: pixels.
        labels: class indices.
    """
    figure, axes = _axes("Picture sizes", "width, pixels", "height, pixels", (5.2, 4.2))
    for index, label in enumerate(LABELS):
        ours = labels == index
        text = f"{label} (n = {ours.sum():,})"
        axes.plot(
            width[ours], height[ours], ".", color=COLOURS[label], alpha=0.35, label=text, markeredgewidth=0
        )
    ends = np.array([min(width.min(), height.min()), max(width.max(), height.max())])
    axes.plot(ends, ends, ":", color="0.6", linewidth=1)
    if ends[1] > 4 * ends[0]:
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=8)
    return figure


def splits(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Draw the pictures per split and class, side by side.

    Args:
        counts: split -> class -> pictures.
    """
    figure, axes = _axes("Pictures per split", "", "pictures", (4.6, 3.2))
    for index, label in enumerate(LABELS):
        heights = [of_split.get(label, 0) for of_split in counts.values()]
        bars = axes.bar(
            np.arange(len(counts)) + 0.4 * (index - 0.5), heights, 0.38, color=COLOURS[label], label=label
        )
        axes.bar_label(bars, [f"{height:,}" for height in heights], fontsize=8)
    axes.set_xticks(range(len(counts)), counts)
    axes.margins(y=0.12)
    axes.legend(fontsize=8)
    return figure


def examples(rows: Sequence[tuple[str, Sequence[tuple[str, Image.Image]]]]) -> Figure:
    """Draw example pictures, one row per class.

    Args:
        rows: title of the row, and its pictures with a caption each.
    """
    columns = max(len(pictures) for _, pictures in rows)
    figure = Figure(figsize=(1.55 * columns, 1.9 * len(rows)))
    grid = np.reshape(figure.subplots(len(rows), columns), (len(rows), columns))
    for line, (title, pictures) in zip(grid, rows, strict=True):
        for axes in line:
            axes.axis("off")
        for axes, (caption, picture) in zip(line, pictures, strict=False):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axes.set_title(caption, fontsize=7)
        line[0].text(-0.12, 0.5, title, rotation=90, va="center", ha="right", transform=line[0].transAxes)
    figure.tight_layout(pad=0.4)
    return figure


def _axes(title: str, x: str, y: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size)
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
