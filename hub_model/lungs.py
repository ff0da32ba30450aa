"""Where the lungs are: a soft outline, the box around it, and the view that is cut to it.

A small network (`lung_net.LungNet`) outlines lungs on a coarse, histogram-equalised picture. Two uses: where it finds
none there is nothing to judge; and a classifier that is trained on the picture cut to its lungs sees the same view
of a film whichever way that was cropped, framed or padded before. The network is any function from
array to array; `load` gives ONNX Runtime's.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from . import backends, layout
from .graph_check import check_graph
from .grey import ImageRefused
from .refused import Reason
from .whole import changed_folder, whole_file

if TYPE_CHECKING:
    import torch

SETTINGS, WEIGHTS, GRAPH = FILES = "lungs.json", "lungs.safetensors", "lungs.onnx"
FORMAT = 1
VIEWS = WHOLE, LUNGS = "whole", "lungs"
"""What a classifier is shown: the picture as it came, or cut to its lungs and equalised (see `seen`)."""
SIDE = 128
"""Pixels a side of what the network sees."""
LIKELY = 0.5
"""A place with at least this probability belongs to the outline."""
FAINT = 0.3
"""Places with less count for nothing when the box is drawn."""
TAIL = 0.003
"""Share of the outline's mass that may lie beyond each side of the box: single stray places do not move it."""
SMALLEST = 0.03
"""Share of the picture that lungs cover at least; less is no lung."""
CERTAIN = 0.8
"""Mean probability inside the outline of a real lung at least."""

NO_LUNG = Reason(
    "No lung is found in this picture, so there is nothing to judge. Give a frontal film or an axial slice that shows "
    "the lungs.",
    "no_lung",
)

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as shares of the picture's width and height."""


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
    """Outline lungs.

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
        """Outline the lungs of several grey pictures, in one run of the network."""
        seen = np.stack([network_input(image) for image in images])[:, None]
        return [lungs_of(outline) for outline in self.network(seen)[:, 0]]

    def view(self, image: Image.Image) -> Image.Image:
        """Return what a classifier with the view "lungs" sees of a picture; all of it where no lungs are found."""
        return seen(image, self.find(image))


class Shown(NamedTuple):
    """What a classifier is shown of a picture.

    Attributes:
        image: grey picture (mode "L").
        box: what it was cut to; None for the whole frame.
    """

    image: Image.Image
    box: Box | None


def shown(image: Image.Image, finder: LungFinder | None, view: str = WHOLE) -> Shown:
    """Return what a classifier with this view is given of a picture, or refuse one without lungs.

    Args:
        image: grey picture (mode "L").
        finder: the lung network of the classifier's folder; without one every picture is taken to show lungs.
        view: a name in `VIEWS`.

    Raises:
        ImageRefused: no lung is found (code ``no_lung``).
    """
    if finder is None:
        return Shown(image, None)
    found = finder.find(image)
    if not found.found:
        raise ImageRefused(str(NO_LUNG), NO_LUNG.code)
    return Shown(seen(image, found), found.box) if view == LUNGS else Shown(image, None)


def network_input(image: Image.Image) -> np.ndarray:
    """Make the lung network's input from a grey picture (mode "L"): (SIDE, SIDE) float32 in 0..1, histogram-equalised.

    A pixel's level is the share of darker pixels, the brightest being 1.
    """
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0))
    counts = np.bincount(small.ravel(), minlength=256)
    darker = np.cumsum(counts) - counts
    return (darker / max(darker[small.max()], 1)).astype(np.float32)[small]


def lungs_of(outline: np.ndarray) -> Lungs:
    """Judge an outline: whether it is a lung, how large, and where."""
    inside = outline >= LIKELY
    share = float(inside.mean())
    certainty = float(outline[inside].mean()) if inside.any() else 0.0
    box = box_of(outline) if share >= SMALLEST and certainty >= CERTAIN else None
    return Lungs(outline, box, share, certainty)


def box_of(outline: np.ndarray) -> Box:
    """Draw the box that holds all but TAIL of the outline's mass on each side."""
    mass = np.where(outline >= FAINT, outline, 0)
    left, right = _span(mass.sum(0))
    top, bottom = _span(mass.sum(1))
    return left, top, right, bottom


def _span(profile: np.ndarray) -> tuple[float, float]:
    below = np.concatenate([[0.0], np.cumsum(profile, dtype=np.float64) / profile.sum()])
    edges = np.linspace(0, 1, len(below))
    return float(np.interp(TAIL, below, edges)), float(np.interp(1 - TAIL, below, edges))


def cut(image: Image.Image, box: Box | None) -> Image.Image:
    """Cut a picture to a box, to whole pixels; None leaves it as it is."""
    if box is None:
        return image
    width, height = image.size
    left, top = int(box[0] * width), int(box[1] * height)
    right, bottom = round(box[2] * width + 0.5), round(box[3] * height + 0.5)
    return image.crop((left, top, min(width, max(right, left + 1)), min(height, max(bottom, top + 1))))


def seen(image: Image.Image, lungs: Lungs) -> Image.Image:
    """Cut a picture to its lungs and spread its grey levels so that those inside the lungs are all equally frequent.

    A level becomes the share of lung that is darker: the exposure, the window and the grey curve of a film no longer
    show, and what lies around the lungs has no influence on it.
    """
    view = cut(image, lungs.box)
    outline = Image.fromarray((lungs.outline >= LIKELY).astype(np.uint8) * 255)
    inside = cut(outline, lungs.box).resize(view.size, Image.Resampling.BILINEAR)
    mask = inside.point([255 * (level > 127) for level in range(256)]) if lungs.found else None
    counts = np.array(view.histogram(mask)) + 1e-3
    darker = np.cumsum(counts) - counts / 2
    return view.point((darker * (255 / counts.sum())).round().astype(int).tolist())


def placed(evidence: np.ndarray, box: Box | None) -> np.ndarray:
    """Put a heat map of the view that was cut to a box back into the frame of the whole picture.

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
    """Measure the share of the strength of a heat map's evidence that lies inside the lungs.

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

    It runs on ONNX Runtime, as the graph `GRAPH` over the weights in `WEIGHTS`; where that is not installed, on torch.

    Raises:
        FolderRefused: its files are damaged, of another layout, or do not belong together.
    """
    path = Path(path)
    if not (path / SETTINGS).is_file():
        return None
    try:
        settings = layout.read_json(path / SETTINGS)
        weights = layout.read_tensors(layout.member(path, WEIGHTS))
        graph = layout.member(path, GRAPH).read_bytes()
        check_graph(graph, weights, WEIGHTS)
    except (OSError, layout.FolderRefused) as error:
        raise layout.FolderRefused(
            f"{path}: the lung network cannot be opened. {error} Fetch the folder again."
        ) from error
    if settings.get("format") != FORMAT or settings.get("side") != SIDE:
        raise layout.FolderRefused(
            f"{path / SETTINGS} is of another layout; expected format {FORMAT} and a side of {SIDE} pixels. A newer "
            "covid-xct may read it."
        )
    if settings.get("modality") not in layout.MODALITIES:
        raise layout.FolderRefused(
            f"{path / SETTINGS} does not say of which modality it is. Fetch the folder again."
        )
    try:
        # one thread: the network is small, and several pictures are read at once
        session = backends.Session(graph, weights, threads=1, file=WEIGHTS)
    except ImportError:
        return LungFinder(_in_torch(weights), settings["modality"])
    except layout.FolderRefused as error:
        raise layout.FolderRefused(f"{path / GRAPH} does not run. {error}") from error
    if [list(session.shapes.get(name, ()))[1:] for name in ("pictures", "outlines")] != [[1, SIDE, SIDE]] * 2:
        raise layout.FolderRefused(
            f"{path / GRAPH} gives no outlines of {SIDE} pixels a side. Fetch the folder again."
        )

    def run(pictures: np.ndarray) -> np.ndarray:
        return session.run(["outlines"], {"pictures": pictures})[0]

    return LungFinder(run, settings["modality"])


def _in_torch(weights: layout.Tensors) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    from .lung_net import LungNet, Outlines

    shapes = {name: told.shape for name, told in weights.header.items()}
    first = [
        f"network.down.{level}.0.weight" for level in range(len(shapes))
    ]  # of each level, its first convolution
    outlines = Outlines(LungNet(tuple(shapes[name][0] for name in first if name in shapes))).eval()
    arrays = {name: torch.from_numpy(weights.array(name).astype(np.float32)) for name in shapes}
    outlines.load_state_dict(arrays, strict=False)  # batch norms' counters of batches are not stored
    process = os.getpid()

    def run(pictures: np.ndarray) -> np.ndarray:
        if os.getpid() != process:  # after a fork, as in `backends.TorchNetwork`
            torch.set_num_threads(1)
        with torch.inference_mode():
            return outlines(torch.from_numpy(pictures)).numpy()

    return run


def copy(of: str | os.PathLike, to: str | os.PathLike) -> None:
    """Copy the files of a lung network from one folder into another.

    Raises:
        OSError: one of them is missing, or cannot be written.
    """
    for name in FILES:
        with whole_file(Path(to) / name) as new:
            shutil.copyfile(Path(of) / name, new)


def save(path: str | os.PathLike, network: "torch.nn.Module", settings: dict) -> Path:
    """Write a lung network, its weights in half precision.

    Args:
        path: a folder; made where absent, and files of other makers in it stay.
        network: a `lung_net.LungNet`.
        settings: `modality`, and further facts about the network (its Dice, how it was made).

    Raises:
        OSError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    from .graph import plain_graph
    from .lung_net import Outlines

    outlines = Outlines(network).eval()
    halves = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in outlines.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    with changed_folder(path) as folder:
        with whole_file(folder / WEIGHTS) as new, layout.tensors_written(folder / WEIGHTS):
            save_file(halves, new, metadata={"format": "pt"})
        weights = layout.read_tensors(folder / WEIGHTS)
        with whole_file(folder / GRAPH) as new:
            new.write_bytes(plain_graph(outlines, "pictures", "outlines", (1, SIDE, SIDE), weights, WEIGHTS))
        told = {"format": FORMAT, "side": SIDE, **settings}
        with whole_file(folder / SETTINGS) as new:
            new.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return Path(path)
