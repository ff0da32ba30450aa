"""Where the lungs are: a soft outline, the box around it, and the view that is cut to it.

A small network (`lung_net.LungNet`) outlines lungs on a coarse, histogram-equalised picture. Two uses: where it finds
none there is nothing to judge; and a classifier that is trained on the picture cut to its lungs sees the same view
of a film whichever way that was cropped, framed or padded before. Everything here but `load` and `save` is numpy and
Pillow; the network is any function from array to array, so that ONNX Runtime can run it as well as torch.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .refused import Refused
from .whole import whole_file

SETTINGS, WEIGHTS = "lungs.json", "lungs.safetensors"
FORMAT = 1
SIDE = 128
"""Pixels a side of what the network sees."""
LIKELY = 0.5
"""A place with at least this probability belongs to the outline."""
FAINT = 0.3
"""Places with less count for nothing when the box is drawn."""
TAIL = 0.01
"""Share of the outline's mass that may lie beyond each side of the box: single stray places do not move it."""
SMALLEST = 0.03
"""Share of the picture that lungs cover at least; less is no lung."""
CERTAIN = 0.8
"""Mean probability inside the outline of a real lung at least."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as shares of the picture's width and height."""


class LungsRefused(Refused):
    """A folder of a lung network that is missing, damaged or of another layout."""


@dataclass(frozen=True)
class Lungs:
    """Lungs of one picture.

    Attributes:
        outline: (SIDE, SIDE) float32, probability of lung over the whole picture, squashed to a square.
        box: around the lungs; None where none are found.
        share: of the picture that is lung.
        certainty: mean probability inside the outline; 0 without one.
    """

    outline: np.ndarray
    box: Box | None
    share: float
    certainty: float

    @property
    def found(self) -> bool:
        return self.box is not None


class LungFinder:
    """Outlines lungs.

    Args:
        network: equalised pictures (N, 1, SIDE, SIDE) float32 in 0..1 -> probabilities of the same shape.
        modality: "xray" or "ct".
    """

    def __init__(self, network: Callable[[np.ndarray], np.ndarray], modality: str) -> None:
        self.network, self.modality = network, modality

    def find(self, image: Image.Image) -> Lungs:
        """Outline the lungs of a grey picture (mode "L")."""
        return self.find_all([image])[0]

    def find_all(self, images: list[Image.Image]) -> list[Lungs]:
        """As `find`, in one run of the network."""
        seen = np.stack([network_input(image) for image in images])[:, None]
        return [lungs_of(outline) for outline in self.network(seen)[:, 0]]

    def view(self, image: Image.Image) -> Image.Image:
        """The picture cut to its lungs; as it came where none are found."""
        return cut(image, self.find(image).box)


def network_input(image: Image.Image) -> np.ndarray:
    """Grey picture (mode "L") -> (SIDE, SIDE) float32 in 0..1, histogram-equalised: a pixel's level is the share of
    darker pixels, the brightest being 1.
    """
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0))
    counts = np.bincount(small.ravel(), minlength=256)
    darker = np.cumsum(counts) - counts
    return (darker / max(darker[small.max()], 1)).astype(np.float32)[small]


def lungs_of(outline: np.ndarray) -> Lungs:
    """Read an outline: is it a lung, how large, and where?"""
    inside = outline >= LIKELY
    share = float(inside.mean())
    certainty = float(outline[inside].mean()) if inside.any() else 0.0
    box = box_of(outline) if share >= SMALLEST and certainty >= CERTAIN else None
    return Lungs(outline, box, share, certainty)


def box_of(outline: np.ndarray) -> Box:
    """The box that holds all but TAIL of the outline's mass on each side."""
    mass = np.where(outline >= FAINT, outline, 0)
    left, right = _span(mass.sum(0))
    top, bottom = _span(mass.sum(1))
    return left, top, right, bottom


def _span(profile: np.ndarray) -> tuple[float, float]:
    below = np.concatenate([[0.0], np.cumsum(profile, dtype=np.float64) / profile.sum()])
    edges = np.linspace(0, 1, len(below))
    return float(np.interp(TAIL, below, edges)), float(np.interp(1 - TAIL, below, edges))


def cut(image: Image.Image, box: Box | None) -> Image.Image:
    """The part of a picture inside a box, to whole pixels; the picture itself for None."""
    if box is None:
        return image
    width, height = image.size
    left, top = int(box[0] * width), int(box[1] * height)
    right, bottom = round(box[2] * width + 0.5), round(box[3] * height + 0.5)
    return image.crop((left, top, min(width, max(right, left + 1)), min(height, max(bottom, top + 1))))


def placed(evidence: np.ndarray, box: Box | None) -> np.ndarray:
    """A heat map of the view that was cut to a box, put back into the frame of the whole picture.

    Args:
        evidence: (h, w) in 0..1, neutral at 0.5.
        box: what the view was cut to; None leaves the map as it is.

    Returns:
        (SIDE, SIDE) float32; neutral outside the box, which the classifier did not see.
    """
    if box is None:
        return evidence
    left, top = (min(int(edge * SIDE), SIDE - 1) for edge in box[:2])
    right, bottom = (
        min(SIDE, max(round(edge * SIDE), low + 1)) for edge, low in zip(box[2:], (left, top), strict=True)
    )
    fine = Image.fromarray(evidence.astype(np.float32)).resize(
        (right - left, bottom - top), Image.Resampling.BILINEAR
    )
    whole = np.full((SIDE, SIDE), 0.5, np.float32)
    whole[top:bottom, left:right] = np.asarray(fine)
    return whole


def share_inside(evidence: np.ndarray, outline: np.ndarray) -> float:
    """Share of the strength of a heat map's evidence that lies inside the lungs.

    Args:
        evidence: (h, w) in 0..1, neutral at 0.5, over the same frame as the outline.
        outline: (SIDE, SIDE) in 0..1.
    """
    strength = np.abs(2 * evidence - 1)
    fine = Image.fromarray(strength.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    fine = np.asarray(fine)
    return float((fine * (outline >= LIKELY)).sum() / max(fine.sum(), 1e-12))


def load(path: str | os.PathLike) -> LungFinder | None:
    """Open the lung network that travels in a hub folder, or in a folder of its own; None where there is none.

    Raises:
        LungsRefused: its files are damaged, of another layout, or do not belong together.
    """
    path = Path(path)
    if not (path / SETTINGS).is_file():
        return None
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from .lung_net import LungNet

    try:
        settings = json.loads((path / SETTINGS).read_text("utf-8"))
        state = load_file(path / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise LungsRefused(
            f"{path}: the lung network cannot be read ({error}). Fetch the folder again."
        ) from error
    if not isinstance(settings, dict) or settings.get("format") != FORMAT or settings.get("side") != SIDE:
        raise LungsRefused(
            f"{path / SETTINGS} is of another layout; expected format {FORMAT} and a side of {SIDE} pixels. A newer "
            "covid-xct may read it."
        )
    network = LungNet(tuple(settings["widths"])).eval()
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise LungsRefused(
            f"{path / WEIGHTS} does not fit {SETTINGS}: {reason} Fetch the folder again."
        ) from error

    def run(pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return torch.sigmoid(network(torch.from_numpy(pictures))).numpy()

    return LungFinder(run, settings["modality"])


def save(path: str | os.PathLike, state: dict, settings: dict) -> Path:
    """Write a lung network, its weights in half precision.

    Args:
        path: a folder; made where absent, and files of other makers in it stay.
        state: the network's tensors by name.
        settings: `modality`, `widths`, and whatever else is to be known of it (its Dice, how it was made).

    Raises:
        OSError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    path = Path(path)
    halves = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in state.items()
    }
    with whole_file(path / WEIGHTS) as new:
        save_file(halves, new, metadata={"format": "pt"})
    told = {"format": FORMAT, "side": SIDE, **settings}
    with whole_file(path / SETTINGS) as new:
        new.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return path
