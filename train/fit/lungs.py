"""Train the lung network on outlines, and say how well it outlines pictures and a collection that it did not see."""

import csv
import io
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.progress import track
from torch.nn import functional as F

from hub_model import lungs
from hub_model.check.metrics import family_weights, record
from hub_model.lung_net import LungNet
from hub_model.refused import Refused

from ..data.dataset import load_data, open_data
from ..data.outline import further
from ..measure.foreign import foreign_pictures

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

STORED = 224
"""Pixels a side of the pictures in memory; what is cut out of them is scaled to the network's side."""
BATCH = 16
LUNGLESS = 3
"""Pictures without lungs in each batch: they teach the network to find nothing."""
LUNGLESS_KINDS = ("photograph", "drawing", "document", "noise")
MADE = 20
"""Lungless pictures made of each kind."""
OTHER = 100
"""Pictures of the other modality at most, taken for lungless."""
RATE, DECAY = 3e-3, 1e-2
DICE = 0.5
"""Weight of the Dice loss beside cross-entropy (Milletari et al. 2016, arXiv:1606.04797)."""


class Outlined:
    """Pictures with their outlines, squashed to squares.

    Attributes:
        pictures, outlines: N of (STORED, STORED) uint8.
        names, families: N of str.
    """

    def __init__(self) -> None:
        self.pictures: list[np.ndarray] = []
        self.outlines: list[np.ndarray] = []
        self.names: list[str] = []
        self.families: list[str] = []

    def add(self, picture: Image.Image, outline: Image.Image | None, name: str, family: str) -> None:
        """Add a picture with its outline, white where lung is; None for a picture without lungs."""
        self.pictures.append(_square(picture))
        empty = np.zeros((STORED, STORED), np.uint8)
        self.outlines.append(empty if outline is None else _square(outline))
        self.names.append(name)
        self.families.append(family)

    def boxes(self) -> np.ndarray:
        """Box each outline, (N, 4) float32 left, top, right, bottom in shares; the middle where it is empty."""
        found = np.tile(np.array([0.2, 0.2, 0.8, 0.8], np.float32), (len(self.outlines), 1))
        for index, outline in enumerate(self.outlines):
            if (outline > 127).any():
                rows, columns = np.nonzero(outline > 127)
                found[index] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                found[index] /= STORED
        return found


def train_lungs(
    data: Annotated[list[str], typer.Option(help="folder, zip, prepared dataset or Hub id; may repeat")],
    masks: Annotated[
        list[Path],
        typer.Option(help="folder with masks.csv (columns mask, film) and the outlines as PNG; may repeat"),
    ],
    out: Annotated[Path, typer.Option(help="folder to write")],
    modality: Annotated[str, typer.Option(help="xray or ct")] = "xray",
    unlabelled: Annotated[
        list[Path] | None,
        typer.Option(help="folder of further outlined pictures, as for outline; may repeat"),
    ] = None,
    without_source: Annotated[
        list[str] | None, typer.Option(help="source whose outlines are kept out and measured on; may repeat")
    ] = None,
    split: Annotated[str | None, typer.Option(help="as for fit")] = None,
    families: Annotated[str | None, typer.Option(help="as for fit")] = None,
    split_seed: Annotated[int | None, typer.Option(help="as for fit")] = None,
    seed: Annotated[int, typer.Option(help="of the weights and the changes")] = 0,
    steps: Annotated[int, typer.Option(help=f"batches of {BATCH} pictures")] = 1400,
    bf16: Annotated[bool, typer.Option(help="compute in bfloat16")] = True,
) -> dict:
    """Train a lung network on the outlines of the train split; measure its Dice on those of validation.

    Returns:
        The contents of ``lungs.json``.

    Raises:
        Refused: no outline belongs to a training picture, the table or a file cannot be read, or data that cannot be
            used.
    """
    started = time.monotonic()
    torch.manual_seed(seed)
    asked = {"seed": split_seed, "split": split, "families": families}
    parts, origin = open_data(data, modality, **asked)
    apart = sorted(set(without_source or ()))
    sets = gather(parts, masks, unlabelled or (), apart)
    counts = {name: len(outlined.names) for name, outlined in sets.items()}
    _add_lungless(sets["train"], data, modality, seed, asked)
    network = _fit(sets["train"], counts["train"], steps, np.random.default_rng(seed), bf16)
    network.half().float()  # what is measured from here on is what is stored
    settings = {
        "modality": modality,
        "outlines": counts,
        "without_source": apart,
        "dice": {name: _dice(network, sets[name], seed) for name in ("validation", "unseen")},
        "steps": steps,
        "seed": seed,
        "data_sha256": origin.data_sha256,
        "split_sha256": origin.split_sha256,
        "seconds": round(time.monotonic() - started, 1),
    }
    lungs.save(out, network, settings)
    return settings


def gather(
    parts: "DatasetDict", masks: Sequence[Path], unlabelled: Sequence[Path], apart: Sequence[str]
) -> dict[str, Outlined]:
    """Put pictures and their outlines together: to train on, to validate on, and those of sources kept out.

    Args:
        parts: the splits train and validation.
        masks: folders with outlines, see `read_table`.
        unlabelled: folders of further pictures, for training alone.
        apart: sources whose pictures of both splits go to ``unseen``.

    Returns:
        ``train``, ``validation`` and ``unseen``.

    Raises:
        Refused: no outline belongs to a training picture, or the table or a file cannot be read.
    """
    files = {film: mask for folder in masks for film, mask in read_table(folder).items()}
    sets = {"train": Outlined(), "validation": Outlined(), "unseen": Outlined()}
    for name in ("train", "validation"):
        for row in _outlined_rows(parts[name], files):
            place = sets["unseen" if row["source"] in apart else name]
            place.add(row["image"].convert("L"), _outline(files[row["path"]]), row["path"], row["family"])
    train = sets["train"]
    for name, picture in further(unlabelled):
        if name in files:
            train.add(picture, _outline(files[name]), name, name)
    if not any((outline > 127).any() for outline in train.outlines):
        raise Refused(
            f"{', '.join(map(str, masks))}: none of {len(files)} outlines belongs to a picture of the train split. The "
            "column `film` of masks.csv names pictures as the data does, for example xray/COVID/xray_000013.jpg; "
            "prepared data name files only if told so (prepare --keep-names)."
        )
    return sets


def read_table(masks: Path) -> dict[str, Path]:
    """Read ``masks.csv``: path of a picture -> file of its outline.

    Raises:
        Refused: there is no masks.csv, or it lacks a column.
    """
    table = Path(masks) / "masks.csv"
    try:
        with open(table, newline="", encoding="utf-8") as stream:
            return {row["film"]: table.parent / row["mask"] for row in csv.DictReader(stream)}
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise Refused(
            f"{table} cannot be read ({type(error).__name__}: {error}). Give a table with the columns mask and film."
        ) from error


def _outlined_rows(part: "Dataset", files: dict[str, Path]) -> "Dataset":
    chosen = [index for index, path in enumerate(part["path"]) if path in files]
    return part.select(chosen)


def _outline(file: Path) -> Image.Image:
    try:
        return Image.open(file).convert("L").point(lambda level: 255 if level else 0)
    except OSError as error:
        raise Refused(f"{file}: this outline cannot be read ({error}). Fetch or draw it again.") from error


def _square(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.resize((STORED, STORED), Image.Resampling.BILINEAR, reducing_gap=3.0))


def _add_lungless(train: Outlined, data: list[str], modality: str, seed: int, asked: dict) -> None:
    """Add pictures without lungs: photographs, drawings, writing, noise, and CT slices where the data hold any.

    Args:
        train: what they are added to.
        data, asked: where slices may lie, and the settings of the split, as for `open_data`.
        modality: what the network is for.
        seed: of what is drawn.
    """
    reals = [Image.fromarray(picture) for picture in train.pictures[:50]]
    made = foreign_pictures(reals, modality, MADE, seed, teaching=True)
    for kind in LUNGLESS_KINDS:
        for index, picture in enumerate(made[kind]):
            train.add(picture.convert("L"), None, f"{kind} {index}", kind)
    if modality == "ct":  # a film shows lungs too, and a CT network that meets one may say so
        return
    try:
        other = load_data(data, modality="ct", **asked)["train"]
    except Refused:
        return  # one modality only
    chosen = np.random.default_rng(seed).permutation(len(other))[:OTHER]
    for row in other.select(np.sort(chosen)):
        train.add(row["image"].convert("L"), None, row["path"], row["family"])


def _fit(train: Outlined, outlined: int, steps: int, rng: np.random.Generator, bf16: bool) -> LungNet:
    network = LungNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    draw = Drawn(train, rng)
    few = LUNGLESS if len(train.names) > outlined else 0
    network.train()
    for _ in track(range(steps), "training the lung network", transient=True):
        chosen = np.r_[rng.integers(0, outlined, BATCH - few), rng.integers(outlined, len(train.names), few)] if few \
            else rng.integers(0, outlined, BATCH)  # fmt: skip
        pictures, outlines = draw(chosen)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = network(pictures.to(memory_format=torch.channels_last))
        loss = outline_loss(logits.float(), outlines)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def outline_loss(logits: torch.Tensor, outlines: torch.Tensor) -> torch.Tensor:
    """Compute the loss: cross-entropy and, over pictures that show lung, soft Dice. Both arguments (N, 1, S, S)."""
    loss = F.binary_cross_entropy_with_logits(logits, outlines)
    some = outlines.sum((1, 2, 3)) > 0
    if some.any():
        found, true = torch.sigmoid(logits[some]), outlines[some]
        both = (found * true).sum((1, 2, 3))
        loss = loss + DICE * (1 - (2 * both + 1) / (found.sum((1, 2, 3)) + true.sum((1, 2, 3)) + 1)).mean()
    return loss


class Drawn:
    """Make batches of changed pictures: cropped to the lungs, framed, darker or lighter, coarser, compressed."""

    def __init__(self, train: Outlined, rng: np.random.Generator) -> None:
        self.pictures = torch.from_numpy(np.stack(train.pictures))[:, None]
        self.outlines = torch.from_numpy(np.stack(train.outlines))[:, None]
        self.boxes, self.rng = torch.from_numpy(train.boxes()), rng

    def __call__(self, chosen: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw network input and outlines of the chosen pictures, both (N, 1, SIDE, SIDE) float32 in 0..1."""
        pictures, outlines = self.pictures[chosen].float() / 255, self.outlines[chosen].float() / 255
        grid = F.affine_grid(
            self._frames(chosen), [len(chosen), 1, lungs.SIDE, lungs.SIDE], align_corners=False
        )
        beyond = "zeros" if self.rng.random() < 0.6 else "border"
        pictures = F.grid_sample(pictures, grid, padding_mode=beyond, align_corners=False)
        outlines = F.grid_sample(outlines, grid, padding_mode="zeros", align_corners=False)
        pictures = self._tones(pictures)
        levels = (pictures.clamp(0, 1) * 255).round().byte().numpy()[:, 0].copy()
        for index in range(len(levels)):
            if self.rng.random() < 0.3:
                levels[index] = _compressed(levels[index], int(self.rng.uniform(15, 90)))
            if self.rng.random() < 0.3:
                self._blank(levels[index], outlines[index, 0])
        seen = np.stack([lungs.network_input(Image.fromarray(picture)) for picture in levels])
        return torch.from_numpy(seen)[:, None], outlines

    def _between(self, low: float, high: float, count: int) -> torch.Tensor:
        return torch.from_numpy(self.rng.uniform(low, high, count).astype(np.float32))

    def _chance(self, share: float, count: int) -> torch.Tensor:
        return torch.from_numpy(self.rng.random(count) < share)

    def _frames(self, chosen: np.ndarray) -> torch.Tensor:
        """Choose what of each picture is seen, as (N, 2, 3) for `affine_grid`; a quarter are cut to the lungs."""
        count = len(chosen)
        pair = lambda low, high: torch.stack([self._between(low, high, count) for _ in range(2)], 1)  # noqa: E731
        low, high = pair(-0.1, 0.22), 1 - pair(-0.1, 0.22)
        whole = self._chance(0.3, count)[:, None]
        low, high = torch.where(whole, 0.0, low), torch.where(whole, 1.0, high)
        tight, boxes = self._chance(0.25, count)[:, None], self.boxes[chosen]
        low = torch.where(tight, boxes[:, :2] + pair(-0.06, 0.05), low)
        high = torch.where(tight, boxes[:, 2:] + pair(-0.05, 0.06), high)
        (across, down), (width, height) = (low + high - 1).T, (high - low).T
        mirror = torch.where(self._chance(0.5, count), -1.0, 1.0)
        angle = self._between(-10, 10, count) * math.pi / 180
        cosine, sine = torch.cos(angle), torch.sin(angle)
        rows = [width * cosine * mirror, -height * sine, across, width * sine * mirror, height * cosine, down]
        return torch.stack(rows, 1).view(-1, 2, 3)

    def _tones(self, pictures: torch.Tensor) -> torch.Tensor:
        count = len(pictures)
        each = lambda low, high: self._between(low, high, count).view(-1, 1, 1, 1)  # noqa: E731
        pictures = pictures.clamp(0, 1) ** torch.exp(each(-0.6, 0.6))
        pictures = (pictures - 0.5) * each(0.6, 1.3) + each(0.35, 0.65)
        if self.rng.random() < 0.3:
            coarse = (int(self.rng.integers(40, 100)),) * 2
            small = F.interpolate(pictures, coarse, mode="bilinear", antialias=True)
            pictures = F.interpolate(small, pictures.shape[2:], mode="bilinear")
        noise = torch.from_numpy(self.rng.standard_normal(pictures.shape, np.float32))
        pictures = pictures + noise * each(0, 0.04)
        return torch.where(self._chance(0.03, count).view(-1, 1, 1, 1), 1 - pictures, pictures)

    def _blank(self, picture: np.ndarray, outline: torch.Tensor) -> None:
        """Blank a corner, or all but a half of the picture, in place: what is not shown is not outlined."""
        level = int(self.rng.choice([0, 255, self.rng.integers(0, 256)]))
        height, width = (int(side) for side in self.rng.integers(3, 30, 2))
        kind = self.rng.integers(0, 6)
        top, left, half = slice(0, height), slice(0, width), lungs.SIDE // 2
        if kind == 0:
            picture[top, left] = level
        elif kind == 1:
            picture[top, lungs.SIDE - width :] = level
        else:
            hidden = (np.s_[:, :half], np.s_[:, half:], np.s_[:half], np.s_[half:])[kind - 2]
            picture[hidden] = level
            outline[hidden] = 0


def _compressed(levels: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _dice(network: LungNet, outlined: Outlined, seed: int) -> dict | None:
    """Measure the mean Dice of outlines on whole pictures, families resampled; None without outlines."""
    if not outlined.names:
        return None
    seen = np.stack([lungs.network_input(Image.fromarray(picture)) for picture in outlined.pictures])[:, None]
    with torch.inference_mode():
        found = torch.cat([network(some) for some in torch.from_numpy(seen).split(32)]).sigmoid()
        found = F.interpolate(found, (STORED, STORED), mode="bilinear")[:, 0].numpy() >= lungs.LIKELY
    true = np.stack(outlined.outlines) > 127
    both, sizes = (found & true).sum((1, 2)), found.sum((1, 2)) + true.sum((1, 2))
    values = np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1.0)
    families = np.array(outlined.families)
    weights = family_weights(families, seed=seed)
    samples = weights @ values / weights.sum(1)
    return record("dice", values.mean(), samples, len(values), len(set(outlined.families)))
