"""How much do changes that no radiologist would mind move the answer?

`hub_model.changes` lists the changes. Each is made to the same test pictures, and counted are the answers that flip at
each operating point, and how far P(COVID) moves on the pictures of each label. Where a model's answer hangs on the
crop or the compression of a file, so did the labels of its training pictures.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.progress import track
from scipy.special import expit

from hub_model import lungs
from hub_model.changes import CHANGES, Change
from hub_model.guard import Guard
from hub_model.hub_folder import LABELS, HubFolder

from .guard import refuses
from .metrics import Record, mean
from .plots import COLOURS, styled
from .predict import run

if TYPE_CHECKING:
    from datasets import Dataset

PICTURES = 100
"""Test pictures by default: with none of so many flipped, 0 to 3.6 % is the interval."""
CUT_LIMIT = 0.05
"""Share of answers that may flip when a picture is cut to its lungs."""


def measure_changes(
    folder: HubFolder, split: "Dataset", pictures: int = PICTURES, seed: int = 0
) -> dict[str, Any]:
    """Make every harmless change to pictures of a split and count what it does to the answers.

    Args:
        folder: a calibrated network with operating points.
        split: rows with image, label and family.
        pictures: how many are tried at most; families are drawn at random, the labels in equal numbers.
        seed: of the draw and of the bootstrap.

    Returns:
        ``pictures``, ``families``, ``of`` (pictures in the split), and ``rows``, one a change: ``change``, ``limit``
        (share of flips that is accepted), ``flips``: operating point -> share of answers on the other side of the
        threshold than before; ``moves``: label -> mean change of P(COVID); ``refused``: share that is refused though
        the picture as it was is not. All are records, families resampled.
    """
    chosen = spread(split["label"], split["family"], pictures, seed)
    rows = split.select(chosen)
    images = [row["image"].convert("L") for row in rows]
    labels, families = np.array(rows["label"]), np.array(rows["family"])
    guard = Guard.of(folder)
    before, accepted = _answers(folder, guard, images)
    told, points = [], folder.screening["operating_points"]
    for change in track(list(changes_for(folder)), "harmless changes", transient=True):
        after, still = _answers(folder, guard, [_changed(change, image) for image in images])
        both = np.isfinite(before) & np.isfinite(
            after
        )  # what the preprocessing refuses has no answer to flip
        flips = {
            name: mean("flipped", _flipped(before, after, point["threshold"])[both], families[both], seed)
            for name, point in points.items()
        }
        moves = {
            label: mean("mean change", (after - before)[mask], families[mask], seed)
            for label, mask in ((name, both & (labels == index)) for index, name in enumerate(LABELS))
        }
        row = {"change": change.name, "limit": change.limit, "flips": flips, "moves": moves}
        told.append({**row, "refused": mean("refused", accepted & ~still, families, seed)})
    return {
        "pictures": len(images),
        "families": len(np.unique(families)),
        "of": len(split),
        "rows": told,
    }


def spread(labels: Sequence[int], families: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Choose rows, in order: labels in equal numbers as far as they go, and no family twice before all came once."""
    labels, families = np.asarray(labels), np.asarray(families)
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), int)  # how often the family was met before
    met: dict[str, int] = {}
    for row in order:
        turn[row] = met[families[row]] = met.get(families[row], -1) + 1
    queues = [order[labels[order] == label] for label in (0, 1)]
    queues = [queue[np.argsort(turn[queue], kind="stable")] for queue in queues]
    fewest = min(map(len, queues))
    shares = [min(len(queue), max(count // 2, count - fewest)) for queue in queues]
    return np.sort(np.concatenate([queue[:share] for queue, share in zip(queues, shares, strict=True)]))


def changes_for(folder: HubFolder) -> Iterator[Change]:
    """The harmless changes for a model; cutting to the lungs where its folder has a network that finds them."""
    yield from (change for change in CHANGES if folder.modality in change.modalities)
    if finder := folder.finder:

        def cut(grey: np.ndarray) -> np.ndarray:
            image = Image.fromarray(grey)
            return np.asarray(lungs.cut(image, finder.find(image).box))

        yield Change("cut to the lungs", cut, limit=CUT_LIMIT)


def worst(measured: dict[str, Any], point: str) -> dict[str, Any]:
    """The row of the change that flips most answers at an operating point."""
    return max(measured["rows"], key=lambda row: row["flips"][point]["value"])


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


def _flipped(before: np.ndarray, after: np.ndarray, threshold: float) -> np.ndarray:
    return (before >= threshold) != (after >= threshold)


def _changed(change: Change, image: Image.Image) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(change.apply(np.asarray(image))))


def _answers(
    folder: HubFolder, guard: Guard | None, images: list[Image.Image]
) -> tuple[np.ndarray, np.ndarray]:
    """P(COVID) (n,), NaN where there is none, and whether each picture (n,) is accepted."""
    log_odds, features = run(folder, images)
    return expit(log_odds), np.isfinite(log_odds) & ~refuses(folder, guard, images, features)
