"""From pictures to batches: read through the one preprocessing, drawn by class and source, changed by a recipe."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch.nn import functional as F

from hub_model.changes import random_copy
from hub_model.hub_folder import LABELS

from .augment import augment
from .exchange import Exchange
from .recipes import Recipe

if TYPE_CHECKING:
    from datasets import Dataset

Transform = Callable[[Image.Image], torch.Tensor]
"""The one preprocessing: grey picture -> (3, H, W), standardised."""
UNLABELLED = 1
"""Sets the random numbers of unlabelled pictures apart from those of labelled ones."""
NAMELESS = "unlabelled"
"""Stands for the source of pictures without a label."""


class Images(torch.utils.data.Dataset):
    """Hold grey pictures at the network's size in memory, as bytes.

    Attributes:
        pixels: (N, 1, H, W) uint8, what the one preprocessing gives before it standardises.
        labels: (N,) int64; -1 where only teachers know.
        targets: (N, 2) float32, what the loss compares with.
        sources: (N,) str, the collection of each.
        paths: (N,) str, the name of each in error messages.
        families: (N,) str; by default each picture is its own.
        copies: (N, K, 1, H, W) uint8, strongly changed copies of each (`hub_model.changes.random_copy`); K may be 0.
        expert: (N, E) float16, an expert's features of each (`train.fit.experts`); None where none was asked.
        any_look: whether an item is drawn from the picture and its copies alike, or is the picture as it came.
    """

    def __init__(
        self,
        pixels: torch.Tensor,
        labels: torch.Tensor,
        targets: torch.Tensor,
        sources: Sequence[str],
        paths: Sequence[str],
        families: Sequence[str] | None = None,
        copies: torch.Tensor | None = None,
    ) -> None:
        self.pixels, self.labels, self.targets = pixels, labels, targets
        self.sources, self.paths = np.asarray(sources), list(paths)
        self.families = np.asarray(self.paths if families is None else families)
        self.copies = pixels.new_empty((len(pixels), 0, *pixels.shape[1:])) if copies is None else copies
        self.expert: np.ndarray | None = None
        self.any_look = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        look = int(torch.randint(1 + self.copies.shape[1], ())) if self.any_look else 0
        return {
            "pixels": self.copies[index, look - 1] if look else self.pixels[index],
            "labels": self.labels[index],
            "targets": self.targets[index],
            "index": index,
        }


def standardise(pixels: torch.Tensor, pretrained_cfg: dict[str, Any]) -> torch.Tensor:
    """Standardise pixels (N, 1, H, W) in 0..1 into what the network takes, (N, 3, H, W).

    These are the last steps of the one preprocessing, in its very arithmetic.
    """
    mean = torch.tensor(pretrained_cfg["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(pretrained_cfg["std"]).view(1, 3, 1, 1)
    return pixels.expand(-1, 3, -1, -1).sub(mean).div(std)


def read_images(
    rows: "Dataset",
    transform: Transform,
    pretrained_cfg: dict[str, Any],
    name: str,
    copies: int = 0,
    seed: int = 0,
    exchange: Exchange | None = None,
) -> Images:
    """Read the pictures of a split through the one preprocessing.

    The transform's standardisation is undone exactly (a byte is recovered by rounding), so that augmentation works on
    grey levels and `standardise` gives back what the transform gave, bit for bit.

    Args:
        rows: with image, label, source, path and family.
        transform: the preprocessing of the network.
        pretrained_cfg: input_size, mean and std of the network.
        name: of the split, shown beside the progress bar.
        copies: changed copies to make of each picture, before the preprocessing.
        seed: of the copies; each picture has its own.
        exchange: gives copies style and background of other sources, before they are changed further.
    """
    pictures = (row["image"].convert("L") for row in track(rows, f"reading {name}", transient=True))
    pixels, changed = _looks(pictures, rows["source"], transform, pretrained_cfg, copies, [seed], exchange)
    labels = torch.tensor(rows["label"])
    targets = F.one_hot(labels.clamp_min(0), len(LABELS)).float()
    return Images(pixels, labels, targets, rows["source"], rows["path"], rows["family"], changed)


def read_unlabelled(
    pictures: Sequence[Image.Image],
    transform: Transform,
    pretrained_cfg: dict[str, Any],
    copies: int = 0,
    seed: int = 0,
    exchange: Exchange | None = None,
) -> Images:
    """Read grey pictures without labels, as `read_images` does: label -1, and targets that say nothing yet."""
    shown = track(pictures, "reading unlabelled", transient=True)
    count = len(pictures)
    sources = np.full(count, NAMELESS)
    pixels, changed = _looks(shown, sources, transform, pretrained_cfg, copies, [seed, UNLABELLED], exchange)
    names = [f"unlabelled {index}" for index in range(count)]
    unknown = torch.full((count, len(LABELS)), 1 / len(LABELS))
    return Images(pixels, torch.full((count,), -1), unknown, sources, names, names, changed)


def join(one: Images, other: Images) -> Images:
    """Join two sets of images, in order; what an expert made of them is not kept."""
    tensors = (
        torch.cat([getattr(one, name), getattr(other, name)])
        for name in ("pixels", "labels", "targets", "copies")
    )
    pixels, labels, targets, copies = tensors
    sources, families = (np.r_[getattr(one, n), getattr(other, n)] for n in ("sources", "families"))
    return Images(pixels, labels, targets, sources, [*one.paths, *other.paths], families, copies)


def _looks(
    pictures: Iterable[Image.Image],
    sources: Sequence[str],
    transform: Transform,
    pretrained_cfg: dict[str, Any],
    copies: int,
    seed: list[int],
    exchange: Exchange | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make grey pictures as the network sees them, (N, 1, H, W), and changed copies, (N, K, 1, H, W); uint8."""
    size = tuple(pretrained_cfg["input_size"][1:])
    pixels = torch.empty((len(sources), 1, *size), dtype=torch.uint8)
    changed = torch.empty((len(sources), copies, 1, *size), dtype=torch.uint8)
    for index, (picture, source) in enumerate(zip(pictures, sources, strict=True)):
        pixels[index] = to_bytes(transform(picture), pretrained_cfg)
        rng = np.random.default_rng([*seed, index])
        (of_exchange,) = rng.spawn(1)  # so that the further changes are the same ones with and without
        for number in range(copies):
            grey = np.asarray(picture)
            grey = grey if exchange is None else exchange(grey, source, of_exchange)
            copy = Image.fromarray(random_copy(grey, rng))
            changed[index, number] = to_bytes(transform(copy), pretrained_cfg)
    return pixels, changed


def to_bytes(tensor: torch.Tensor, pretrained_cfg: dict[str, Any]) -> torch.Tensor:
    """Undo the standardisation of a picture (3, H, W): its grey levels (1, H, W) as uint8, recovered by rounding."""
    mean, std = pretrained_cfg["mean"][0], pretrained_cfg["std"][0]
    return ((tensor[:1] * std + mean) * 255).round().to(torch.uint8)


class Batches:
    """Collate rows of `Images`; change them at random where a recipe says so."""

    def __init__(self, pretrained_cfg: dict[str, Any], modality: str, recipe: Recipe | None = None) -> None:
        self.pretrained_cfg, self.modality, self.recipe = pretrained_cfg, modality, recipe

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = torch.stack([row["pixels"] for row in rows]).float().div(255)
        targets = torch.stack([row["targets"] for row in rows])
        if self.recipe is not None:
            pixels = augment(pixels, self.recipe.augment, self.modality)
            targets = targets * (1 - self.recipe.label_smoothing) + self.recipe.label_smoothing / len(LABELS)
        return {
            "pixel_values": standardise(pixels, self.pretrained_cfg).contiguous(
                memory_format=torch.channels_last
            ),
            "labels": torch.stack([row["labels"] for row in rows]),
            "targets": targets,
            "index": torch.tensor([row["index"] for row in rows]),
        }


class BalancedSampler(torch.utils.data.Sampler):
    """Draw as many images as there are, both classes equally often.

    Within a class, images are drawn alike, or each source in proportion to the square root of its size: so a small
    source counts for more than its size, but its few images are not repeated too often.
    """

    def __init__(self, labels: torch.Tensor, sources: np.ndarray, by_source: bool, seed: int) -> None:
        weights = np.zeros(len(labels))
        for label in set(labels.tolist()):
            of_label = labels.numpy() == label
            names, counts = np.unique(sources[of_label], return_counts=True)
            shares = np.sqrt(counts) if by_source else counts
            for name, count, share in zip(names, counts, shares / shares.sum(), strict=True):
                weights[of_label & (sources == name)] = share / count
        self.weights, self.seed, self.epoch = torch.from_numpy(weights), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; the Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.weights)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        yield from torch.multinomial(self.weights, len(self), replacement=True, generator=generator).tolist()
