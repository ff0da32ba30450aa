"""Outline the lungs of CT slices by their grey levels: what a lung network for CT learns from.

Air is dark and tissue bright in every window that shows the chest. Otsu's threshold (1979, IEEE Trans. Syst. Man
Cybern. 9:62-66) parts them; the largest bright piece, its holes filled, is the body; large dark pieces inside it are
lungs. Small pieces (windpipe, bowel) are left out and vessels closed over. Known to miss consolidated lung beside the
chest wall.
"""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageFilter
from rich.progress import track
from scipy import ndimage
from skimage.filters import threshold_otsu

from hub_model.check.files import DataRefused, explain_write_errors
from hub_model.grey import ImageRefused
from hub_model.images import read_image
from hub_model.whole import whole_folder

from .dataset import load_data

TABLE = "masks.csv"
SIDE = 256
"""Longer side in pixels at which a slice is outlined."""
BACKGROUND = 8
"""Grey levels up to this are the black around the picture and do not take part in the threshold."""
FACTORS = (1.0, 0.8, 1.15)
"""Of Otsu's threshold; the one that finds most lung is kept."""
SMALLEST, BESIDE = 0.015, 0.12
"""A lung covers at least this share of the body, and of the largest dark piece."""
MOST = 4
SHARES = (0.10, 0.72)
"""Share of the body that lungs cover together, at least and at most, where the outline is to be trusted."""
ALONE = 0.25
"""Least share where a single piece was found: one lung alone is rather a mistake."""
EDGE = 0.10
"""Share of the picture's edge that an outline may touch."""
LUNGLESS = 0.006
"""Share of the body that may be dark where a slice counts as one without lungs."""


@dataclass(frozen=True)
class Outline:
    """What was found in a slice.

    Attributes:
        mask: (H, W) bool.
        share: of the body.
        pieces: lungs, or parts of them.
    """

    mask: np.ndarray
    share: float
    pieces: int

    @property
    def trusted(self) -> bool:
        """Whether a network may learn from it."""
        edge = np.concatenate([self.mask[0], self.mask[-1], self.mask[:, 0], self.mask[:, -1]])
        likely = SHARES[0] <= self.share <= SHARES[1] and 1 <= self.pieces <= 3
        return bool(likely and (self.pieces > 1 or self.share > ALONE) and edge.mean() < EDGE)


def outline(
    data: Annotated[list[str], typer.Option(help="folder, zip, prepared dataset or Hub id; may repeat")],
    out: Annotated[Path, typer.Option(help="folder to write: masks.csv and one PNG a slice")],
    unlabelled: Annotated[
        list[Path] | None, typer.Option(help="folder of further slices without labels; may repeat")
    ] = None,
    split: Annotated[str, typer.Option(help="family or official: test slices are left out")] = "family",
    families: Annotated[str, typer.Option(help="found or known, as for fit")] = "found",
    seed: Annotated[int, typer.Option(help="of the split")] = 0,
) -> dict[str, int]:
    """Outline the lungs of CT slices; slices whose outline is not to be trusted are left out.

    Returns:
        How many slices were outlined, found without lungs, and left out.

    Raises:
        DataRefused: data that cannot be used, or no slice that can be outlined.
    """
    _check_place(out)
    parts = load_data(data, modality="ct", seed=seed, split=split, families=families)
    rows = [
        (row["path"], row["image"].convert("L")) for name in ("train", "validation") for row in parts[name]
    ]
    with explain_write_errors(out), whole_folder(out) as folder:
        counts = _write(folder, chain(rows, further(unlabelled or [])))
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    return counts


def _check_place(out: Path) -> None:
    """Refuse to replace what is no folder of outlines.

    Raises:
        DataRefused: something else is there.
    """
    if out.exists() and not (out / TABLE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise DataRefused(
            f"{out}: something else than outlines is there already. Name a new folder, or remove it first."
        )


def _write(out: Path, slices: Iterable[tuple[str, Image.Image]]) -> dict[str, int]:
    """Write an outline for each slice that has one to be trusted, and the table of them."""
    counts, table = {"outlined": 0, "without lungs": 0, "left out": 0}, []
    for path, picture in track(slices, "outlining", transient=True):
        found = outline_of(np.asarray(picture))
        if found is not None and found.trusted:
            mask, kind = found.mask, "outlined"
        elif found is None and is_lungless(np.asarray(picture)):
            mask, kind = np.zeros((picture.height, picture.width), bool), "without lungs"
        else:
            counts["left out"] += 1
            continue
        counts[kind] += 1
        name = f"{len(table):06d}.png"
        Image.fromarray(mask).save(out / name, optimize=True)
        table.append(
            {"mask": name, "film": path, "made_by": "grey levels", "share": round(float(mask.mean()), 3)}
        )
    if not counts["outlined"]:
        raise DataRefused(
            f"Of {sum(counts.values())} slices none could be outlined by its grey levels. Are these CT slices of lungs?"
        )
    with open(out / TABLE, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return counts


def further(folders: list[Path]) -> Iterator[tuple[str, Image.Image]]:
    """Yield the name, from the folder's own on, and the grey picture of every readable file below some folders."""
    for folder in folders:
        for file in sorted(p for p in folder.resolve().rglob("*") if p.is_file()):
            try:
                yield file.relative_to(folder.resolve().parent).as_posix(), read_image(file).convert("L")
            except ImageRefused:
                continue  # not every file in a folder of pictures is one


def outline_of(grey: np.ndarray) -> Outline | None:
    """Outline the lungs of one slice, (H, W) uint8; None where no large dark piece lies inside the body."""
    small = _small(grey)
    padded = np.pad(small, 6)
    inside = padded[padded > BACKGROUND]
    if inside.size < 2000 or inside.min() == inside.max():
        return None
    between, best = _between(inside), None
    for factor in FACTORS:
        found = _dark_inside(padded, between * factor)
        if found is not None and SHARES[0] * 0.8 < found.share < SHARES[1] * 1.05:
            best = found if best is None or found.share > best.share else best
    if best is None:
        return None
    mask = Image.fromarray(best.mask[6:-6, 6:-6]).resize(grey.shape[::-1], Image.Resampling.NEAREST)
    return Outline(np.asarray(mask), best.share, best.pieces)


def is_lungless(grey: np.ndarray) -> bool:
    """Say whether next to nothing inside the body is dark, as in slices of the liver."""
    small = _small(grey)
    inside = small[small > BACKGROUND]
    if inside.size < 2000 or inside.min() == inside.max():
        return False
    between = _between(inside)
    body = ndimage.binary_fill_holes(ndimage.binary_closing(small > between * 0.75, iterations=2))
    body = ndimage.binary_erosion(body, iterations=5)
    return bool((body & (small < between * 0.55)).sum() < LUNGLESS * body.sum())


def _between(levels: np.ndarray) -> float:
    """Find Otsu's threshold, moved to the middle of the valley where that is empty."""
    threshold = threshold_otsu(levels)
    return (levels[levels <= threshold].mean() + levels[levels > threshold].mean()) / 2


def _small(grey: np.ndarray) -> np.ndarray:
    factor = SIDE / max(grey.shape)
    size = [max(8, round(side * factor)) for side in grey.shape[::-1]]
    scaled = Image.fromarray(grey).resize(size, Image.Resampling.BOX)
    return np.asarray(scaled.filter(ImageFilter.MedianFilter(5)))


def _dark_inside(picture: np.ndarray, threshold: float) -> Outline | None:
    tissue = picture > threshold
    pieces, count = ndimage.label(tissue)
    if not count:
        return None
    body = pieces == 1 + np.argmax(ndimage.sum_labels(tissue, pieces, range(1, count + 1)))
    body = ndimage.binary_fill_holes(ndimage.binary_closing(body, iterations=3))
    dark = ndimage.binary_opening(body & ~tissue, iterations=2)
    pieces, count = ndimage.label(dark)
    if not count:
        return None
    sizes = ndimage.sum_labels(dark, pieces, range(1, count + 1))
    least = max(SMALLEST * body.sum(), BESIDE * sizes.max())
    lungs = [1 + k for k in np.argsort(-sizes)[:6] if sizes[k] >= least][:MOST]
    if not lungs:
        return None
    mask = np.zeros_like(dark)
    for lung in lungs:  # vessels and what lies beside the wall come back
        closed = ndimage.binary_closing(np.pad(pieces == lung, 12), iterations=8)
        mask |= ndimage.binary_fill_holes(closed)[12:-12, 12:-12]
    mask &= body
    return Outline(mask, float(mask.sum() / body.sum()), ndimage.label(mask)[1])
