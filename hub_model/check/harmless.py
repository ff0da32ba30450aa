"""How much do changes that no radiologist would mind move the answer?

`hub_model.changes` lists the changes. Each is made to the same pictures, and counted are the answers that flip at each
operating point, and how far P(COVID) moves on the pictures of each label. Where a model's answer hangs on the crop or
the compression of a file, so did the labels of its training pictures.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .. import lungs
from ..changes import CHANGES, Change
from ..hub_folder import LABELS, HubFolder
from .metrics import mean

PICTURES = 100
"""Pictures by default: with none of so many flipped, 0 to 3.6 % is the interval."""
CUT_LIMIT = 0.05
"""Share of answers that may flip when a picture is cut to its lungs."""

Answers = Callable[[list[Image.Image]], tuple[np.ndarray, np.ndarray]]
"""Grey pictures -> P(COVID) (n,), NaN where there is none, and whether each picture (n,) is accepted."""


def measure_changes(
    answers: Answers,
    images: list[Image.Image],
    labels: np.ndarray,
    families: np.ndarray,
    points: Mapping[str, Mapping[str, Any]],
    changes: Iterable[Change],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Make every change to the same pictures and count what it does to the answers.

    Args:
        answers: asks the model.
        images: n grey pictures.
        labels: (n,) 0 or 1.
        families: (n,).
        points: operating points by name, each with its ``threshold``.
        changes: what is done to the pictures.
        seed: of the bootstrap.

    Returns:
        One row a change: ``change``, ``limit`` (share of flips that is accepted), ``flips``: operating point -> share
        of answers on the other side of the threshold than before; ``moves``: label -> mean change of P(COVID);
        ``refused``: share that is refused though the picture as it was is not. All are records, families resampled.
    """
    before, accepted = answers(images)
    told = []
    for change in changes:
        after, still = answers([_changed(change, image) for image in images])
        both = np.isfinite(before) & np.isfinite(after)  # what is refused has no answer to flip
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
    return told


def spread(labels: Sequence[int], families: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Choose rows, in order: labels in equal numbers where possible, and no family twice before each came once."""
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
    """List the harmless changes for a model; cutting to the lungs where its folder has a network that finds them."""
    yield from (change for change in CHANGES if folder.modality in change.modalities)
    if finder := folder.finder:

        def cut(grey: np.ndarray) -> np.ndarray:
            image = Image.fromarray(grey)
            return np.asarray(lungs.cut(image, finder.find(image).box))

        yield Change("cut to the lungs", cut, limit=CUT_LIMIT)


def worst(measured: dict[str, Any], point: str) -> dict[str, Any]:
    """Find the row of the change that flips most answers at an operating point."""
    return max(measured["rows"], key=lambda row: row["flips"][point]["value"])


def _flipped(before: np.ndarray, after: np.ndarray, threshold: float) -> np.ndarray:
    return (before >= threshold) != (after >= threshold)


def _changed(change: Change, image: Image.Image) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(change.apply(np.asarray(image))))
