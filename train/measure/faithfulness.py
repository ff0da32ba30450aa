"""Does the heat map show what the network used? Deletion and insertion against a random map.

Deletion takes the places away that a map ranks highest and watches the probability of the network's answer
fall; insertion brings them back into a blurred picture and watches it rise (Petsiuk et al. 2018,
arXiv:1806.07421). A faithful map has a small area under the first curve and a large one under the second.
What counts is the difference from a random map of the same grain on the same picture: blotches alone do some
damage.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from PIL import Image
from rich.progress import track
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.functional import gaussian_blur

from hub_model import evidence, hub_folder, lungs
from hub_model.check.metrics import Record, interval, mean
from hub_model.grey import ImageRefused
from hub_model.refused import Refused
from hub_model.whole import changed_folder

from . import plots
from .provenance import parts_of

REPORT, PLOT = "faithfulness.json", "plots/faithfulness.png"
BLUR = 5 / 224  # standard deviation as a share of the picture's side; 5 pixels of 224, as in the paper's code
GRAIN = 1.0  # places: standard deviation of the smoothing of random maps, about that of heat maps
MAPS, CURVES = ("heat map", "random map"), ("deletion", "insertion")
COLOURS = {"heat map": "#b3402e", "random map": "#8a8f98"}


def faithfulness(
    run: Annotated[Path, typer.Argument(help="hub folder written by fit and evaluate")],
    data: Annotated[list[str], typer.Option(help="what fit was given; may repeat")],
    images: Annotated[int, typer.Option(help="test images, evenly spread over the split")] = 40,
    steps: Annotated[int, typer.Option(help="in how many steps a picture is deleted or inserted")] = 8,
    seed: Annotated[int, typer.Option(help="seed of the random maps and of the bootstrap")] = 0,
) -> dict[str, Any]:
    """Measure RUN's heat map on test images of DATA; writes faithfulness.json and plots/faithfulness.png.

    Returns:
        The contents of ``faithfulness.json``: for deletion and insertion the mean area under the curve of the
        heat map, of a random map and their paired difference, as records; and the mean curves. Where the folder has
        a network that finds lungs, also ``inside_lungs``: the share of the evidence that lies inside them, and that
        of the lungs in the picture, which evidence spread at random would have.

    Raises:
        FolderRefused: RUN is no hub folder.
        Refused: DATA is not what RUN was trained on, or there are fewer than two images or steps.
    """
    if images < 2 or steps < 2:
        raise Refused(
            f"{images} images in {steps} steps measure nothing; give at least 2 of each, as 40 and 8."
        )
    folder = hub_folder.open_folder(run)
    test = parts_of(folder, data)["test"]
    rng = np.random.default_rng(seed)
    curves, shares, rows = [], [], []
    chosen = np.unique(np.linspace(0, len(test) - 1, min(images, len(test)), dtype=int))
    for row in track(chosen, "deleting and inserting", transient=True):
        image = test[int(row)]["image"].convert("L")
        try:
            pixels = folder.transform(image)[None]
        except ImageRefused:  # a picture that gets no answer has no heat map
            continue
        rows.append(row)
        curves.append(curves_of(folder.model, pixels, steps, rng))
        shares.append(_inside(folder, image, pixels))
    families = np.array(test["family"])[rows]
    report = {
        "format": hub_folder.FORMAT,
        "weights_sha256": folder.screening["weights_sha256"],
        "modality": folder.modality,
        "images": len(rows),
        "families": len(np.unique(families)),
        "steps": steps,
        "seed": seed,
        **summary(np.array(curves), families, seed),
    }
    if found := [place for place, share in enumerate(shares) if share]:
        evidence, lung = np.array([shares[place] for place in found]).T
        report["inside_lungs"] = {
            "evidence": mean("share of the evidence", evidence, families[found], seed),
            "lungs": mean("share of the picture", lung, families[found], seed),
        }
    with changed_folder(folder.path) as new:
        plots.save(_draw(report), new / PLOT)
        hub_folder.write_json(new / REPORT, report)
    return report


def _inside(folder: hub_folder.HubFolder, image: Image.Image, pixels: Tensor) -> tuple[float, float] | None:
    """Say which share of the evidence lies inside the lungs, and which of the picture is lung; None without lungs."""
    found = folder.finder.find(image) if folder.finder else None
    if found is None or not found.found:
        return None
    heat = evidence.heat_map(folder.model, pixels)
    if folder.view == lungs.LUNGS:
        heat = lungs.placed(heat, found.box)
    return lungs.share_inside(heat, found.outline), found.share


def curves_of(model: nn.Module, pixels: Tensor, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the curves (2 maps, 2 curves, steps + 1) of one picture (1, 3, H, W), in the order of `MAPS` and `CURVES`.

    The class is the network's own answer; deleted places take the mean of the picture.
    """
    with torch.inference_mode():
        answer = int(model(pixels).argmax(1))
    heat = evidence.heat_map(model, pixels, answer)
    chance = gaussian_filter(rng.standard_normal(heat.shape), GRAIN, mode="wrap")
    side = min(pixels.shape[-2:])
    blank = pixels.mean((2, 3), keepdim=True).expand_as(pixels)
    blurred = gaussian_blur(pixels, kernel_size=6 * round(BLUR * side) + 1, sigma=BLUR * side)
    ways = ((pixels, blank), (blurred, pixels))
    return np.array(
        [[curve(model, *way, places, answer, steps) for way in ways] for places in (heat, chance)]
    )


@torch.inference_mode()
def curve(
    model: nn.Module, start: Tensor, end: Tensor, places: np.ndarray, answer: int, steps: int
) -> np.ndarray:
    """Follow the probability of class `answer` while `start` becomes `end`, places of high value first; (steps + 1,).

    Args:
        model: A timm network.
        start: (1, 3, H, W).
        end: (1, 3, H, W).
        places: (h, w), laid over the picture as the overlay of the heat map is.
        answer: Class index.
        steps: Equal shares of the picture that are exchanged one after the other.
    """
    value = torch.as_tensor(np.asarray(places, np.float32))[None, None]
    fine = interpolate(value, start.shape[-2:], mode="bilinear", align_corners=False)[0, 0].flatten()
    rank = torch.empty(len(fine))
    rank[fine.argsort(descending=True, stable=True)] = torch.arange(len(fine)) / len(fine)
    done = torch.linspace(0, 1, steps + 1)[:, None, None, None]
    mixed = torch.where(rank.view(start.shape[-2:]) < done, end, start)
    return model(mixed).softmax(1)[:, answer].double().numpy()


def areas(curves: np.ndarray) -> np.ndarray:
    """Integrate curves (..., steps + 1) whose x goes from 0 to 1."""
    return np.trapezoid(curves, dx=1 / (curves.shape[-1] - 1), axis=-1)


def summary(curves: np.ndarray, families: np.ndarray, seed: int) -> dict[str, dict[str, Any]]:
    """Give records of the areas, and mean curves, of curves (n, 2 maps, 2 curves, steps + 1)."""
    area = areas(curves)

    def averaged(name: str, values: np.ndarray) -> Record:
        return mean(name, values, families, seed)

    found = {}
    for column, kind in enumerate(CURVES):
        heat, chance = area[:, 0, column], area[:, 1, column]
        better = (heat < chance) if kind == "deletion" else (heat > chance)
        found[kind] = {
            "heat map": averaged(f"{kind} AUC", heat),
            "random map": averaged(f"{kind} AUC", chance),
            "difference": averaged(f"{kind} AUC difference", heat - chance),
            "better_on": averaged("share of images", better),
            "curves": {
                name: np.round(curves[:, row, column].mean(0), 4).tolist() for row, name in enumerate(MAPS)
            },
        }
    return found


def _draw(report: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(8.4, 3.6))
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), CURVES, strict=True):
        for name in MAPS:
            label = f"{name}: {interval(report[kind][name])}"
            y = report[kind]["curves"][name]
            axes.plot(np.linspace(0, 1, len(y)), y, color=COLOURS[name], label=label)
        plots.styled(axes, f"{kind} (n = {report['images']})", "share of the picture", "", ylim=(0, 1.02))
        axes.legend(loc="lower left" if kind == "deletion" else "lower right", fontsize=8, title="area")
    figure.axes[0].set_ylabel("probability of the answer")
    figure.tight_layout()
    return figure
