"""From pictures to batches: read through the one preprocessing, drawn by class and source, changed by a recipe."""

import numpy as np
import torch
from rich.progress import track
from torch.nn import functional as F

from hub_model.hub_folder import LABELS

from .augment import augment
from .recipes import Recipe


class Images(torch.utils.data.Dataset):
    """Grey pictures at the network's size, kept as bytes in memory.

    Attributes:
        pixels: (N, 1, H, W) uint8, what the one preprocessing gives before it standardises.
        labels: (N,) int64; -1 where only teachers know.
        targets: (N, 2) float32, what the loss compares with.
        sources: (N,) str.
    """

    def __init__(self, pixels, labels, targets, sources, paths) -> None:
        self.pixels, self.labels, self.targets = pixels, labels, targets
        self.sources, self.paths = np.asarray(sources), paths

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {
            "pixels": self.pixels[index],
            "labels": self.labels[index],
            "targets": self.targets[index],
            "index": index,
        }


def standardise(pixels: torch.Tensor, pretrained_cfg: dict) -> torch.Tensor:
    """Pixels (N, 1, H, W) in 0..1 -> (N, 3, H, W), the last steps of the one preprocessing, in its very arithmetic."""
    mean = torch.tensor(pretrained_cfg["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(pretrained_cfg["std"]).view(1, 3, 1, 1)
    return pixels.expand(-1, 3, -1, -1).sub(mean).div(std)


def read_images(part, transform, pretrained_cfg: dict, name: str) -> Images:
    """Read a `datasets.Dataset` part through the one preprocessing.

    The transform's standardisation is undone exactly (a byte is recovered by rounding), so that augmentation works on
    grey levels and `standardise` gives back what the transform gave, bit for bit.
    """
    mean, std = pretrained_cfg["mean"][0], pretrained_cfg["std"][0]
    size = tuple(pretrained_cfg["input_size"][1:])
    pixels = torch.empty((len(part), 1, *size), dtype=torch.uint8)
    for index, row in enumerate(track(part, f"reading {name}", transient=True)):
        tensor = transform(row["image"].convert("L"))[:1]
        pixels[index] = ((tensor * std + mean) * 255).round().to(torch.uint8)
    labels = torch.tensor(part["label"])
    return Images(
        pixels, labels, F.one_hot(labels.clamp_min(0), len(LABELS)).float(), part["source"], part["path"]
    )


class Batches:
    """Collates rows of `Images`; augments them where a recipe says so."""

    def __init__(self, pretrained_cfg: dict, modality: str, recipe: Recipe | None = None) -> None:
        self.pretrained_cfg, self.modality, self.recipe = pretrained_cfg, modality, recipe

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        pixels = torch.stack([row["pixels"] for row in rows]).float().div(255)
        targets = torch.stack([row["targets"] for row in rows])
        if self.recipe is not None:
            pixels = augment(pixels, self.recipe.augment, self.modality)
            pixels, targets = mix(pixels, targets, self.recipe.mixup)
            targets = targets * (1 - self.recipe.label_smoothing) + self.recipe.label_smoothing / len(LABELS)
        return {
            "pixel_values": standardise(pixels, self.pretrained_cfg).contiguous(
                memory_format=torch.channels_last
            ),
            "labels": torch.stack([row["labels"] for row in rows]),
            "targets": targets,
            "index": torch.tensor([row["index"] for row in rows]),
        }


def mix(pixels: torch.Tensor, targets: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup (Zhang et al. 2018, arXiv:1710.09412) of a batch with its own reverse; ``alpha`` 0 leaves it as it is."""
    if not alpha:
        return pixels, targets
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    return torch.lerp(pixels.flip(0), pixels, share), torch.lerp(targets.flip(0), targets, share)


class BalancedSampler(torch.utils.data.Sampler):
    """Draws as many images as there are, every class as often as the other and, within a class, every source alike.

    Source shares are softened by a square root, lest a source of a few images be seen over and over.
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
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.weights)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        yield from torch.multinomial(self.weights, len(self), replacement=True, generator=generator).tolist()
