"""A linear head that harmless changes and collections hardly move: least squares with two penalties, in closed form.

Every training picture is there in several looks: as it came and in random copies (`hub_model.changes.random_copy`).
The covariance of the looks of one picture says in which directions a harmless change moves what the network sees; a
weight along them is punished (within-class covariance normalisation, Hatch et al. 2006, Interspeech, with pictures as
classes). So is a weight along what tells the collections of one label apart: it says nothing of the disease.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from rich.progress import track
from scipy.special import expit

from . import speed
from .batches import Images, standardise
from .recipes import Recipe

FOLDS = 4
"""Of the families, for log-odds of pictures that the head did not learn from."""
SCALE = 4.0
"""From a score of -1 and 1 to about log-odds."""
SHORTEST = 0.05
"""Share of the mean deviation added to each feature's own: one that hardly varies must not be blown up."""


def steady_head(
    network: torch.nn.Module,
    images: Images,
    pretrained_cfg: dict,
    recipe: Recipe,
    seed: int,
    bf16: bool = False,
) -> None:
    """Set a network's head to the steady one on its frozen features.

    With `recipe.consistent`, set also what the network shall learn from there on.

    That is consistency distillation: the head's log-odds of a picture, averaged over all its looks, become the target
    of every look alike, so the network learns to answer each look as it answers the mean of them. Half of each target
    comes from heads that did not learn from the picture's family. Where an expert was asked, the teacher is a head on
    the features of both.

    Args:
        network: its classifier is overwritten.
        images: the training images with their copies. Their `targets` and `any_look` are set where `consistent`.
        pretrained_cfg: how the network takes pixels.
        recipe: `steady`, `source_penalty`, `ridge` and `consistent`.
        seed: of the folds.
        bf16: whether the frozen layers compute in bfloat16; the head never does.
    """
    known = (images.labels >= 0).numpy()
    features = features_of_looks(network, images, pretrained_cfg, bf16)
    labels, sources = images.labels.numpy(), images.sources
    penalties = {"steady": recipe.steady, "blind": recipe.source_penalty, "ridge": recipe.ridge}

    def fitted(seen: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, float]:
        return fit_steady(seen[chosen], labels[chosen], sources[chosen], **penalties)

    slope, intercept = fitted(features, known)
    weight, head = torch.from_numpy(slope).float(), network.get_classifier()
    with torch.no_grad():
        head.weight.copy_(torch.stack([-weight, weight]).view_as(head.weight) / 2)
        head.bias.copy_(torch.tensor([-intercept, intercept]) / 2)
    if not recipe.consistent:
        return
    if images.expert is not None:  # the teacher's alone: of the picture as it came, for every look of it
        features = beside(features, images.expert)
        slope, intercept = fitted(features, known)
    odds = features.astype(np.float32).mean(1)
    taught = odds @ slope + intercept
    unseen = taught.copy()
    folds = _folds(images.families, seed)
    for fold in range(FOLDS):
        some = fitted(features, known & (folds != fold))
        unseen[folds == fold] = odds[folds == fold] @ some[0] + some[1]
    covid = torch.from_numpy(expit((taught + unseen) / 2)).float()
    images.targets, images.any_look = torch.stack([1 - covid, covid], 1), True


def beside(looks: np.ndarray, told: np.ndarray) -> np.ndarray:
    """Append the expert's features (N, E) of each picture to the features (N, L, D) of its looks: (N, L, D + E)."""
    return np.concatenate([looks, np.repeat(told[:, None], looks.shape[1], 1)], 2)


def _folds(families: np.ndarray, seed: int) -> np.ndarray:
    """Deal whole families into folds at random. Returns the fold of each picture, (N,)."""
    names, place = np.unique(families, return_inverse=True)
    return np.random.default_rng(seed).permutation(len(names))[place] % FOLDS


@torch.inference_mode()
def features_of_looks(
    network: torch.nn.Module, images: Images, pretrained_cfg: dict, bf16: bool = False
) -> np.ndarray:
    """Compute what the head sees of each picture and its copies, (N, 1 + K, D) float16."""
    network.eval()
    rows, device = [], speed.device_of(network)
    for some in track(torch.arange(len(images)).split(8), "fitting the head", transient=True):
        looks = torch.cat([images.pixels[some][:, None], images.copies[some]], 1)
        pixels = standardise(looks.flatten(0, 1).float().div(255), pretrained_cfg).to(device)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
            maps = network.forward_features(pixels.contiguous(memory_format=torch.channels_last))
        seen = network.forward_head(maps.float(), pre_logits=True)
        rows.append(seen.half().view(*looks.shape[:2], -1).cpu().numpy())
    return np.concatenate(rows)


@dataclass(frozen=True)
class Moments:
    """All that the head needs to know of a group of pictures; groups are joined by adding.

    Attributes:
        count: pictures.
        total: (D,) sum of each picture's mean look.
        square: (D, D) sum of the outer products of the mean looks.
        moved: (D, D) sum over pictures of the covariance of their looks.
    """

    count: int
    total: np.ndarray
    square: np.ndarray
    moved: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """Sum up pictures with features (N, L, D)."""
        looks = features.astype(np.float64)
        middles = looks.mean(1)
        apart = (looks - middles[:, None]).reshape(-1, looks.shape[2])
        moved = apart.T @ apart / max(looks.shape[1] - 1, 1)
        return cls(len(looks), middles.sum(0), middles.T @ middles, moved)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.count + other.count,
            self.total + other.total,
            self.square + other.square,
            self.moved + other.moved,
        )


def solve(
    groups: Mapping[tuple[int, str], Moments], *, steady: float, blind: float, ridge: float
) -> tuple[np.ndarray, float]:
    """Fit the head to groups of pictures, by label and source. Both labels count alike; within a label, every source.

    Args:
        groups: (label, source) -> moments of those pictures.
        steady: weight of the covariance of looks.
        blind: weight of the scatter of the sources' means about their label's mean.
        ridge: added to the diagonal, in units of a feature's variance.

    Returns:
        Slope (D,) and intercept of a score that grows with the log-odds of class 1, on the features as they came; its
        scale is not calibrated.
    """
    every = reduce(operator.add, groups.values())
    mean = every.total / every.count
    variance = np.diag(every.square) / every.count - mean**2 + np.diag(every.moved) / every.count
    deviation = np.sqrt(variance.clip(0))
    deviation = deviation + SHORTEST * deviation.mean() + 1e-8
    centre, scatter = {}, steady * every.moved / every.count
    for label in (0, 1):
        own = [moments for (of, _), moments in groups.items() if of == label]
        middles = np.stack([moments.total / moments.count for moments in own])
        centre[label] = middles.mean(0)
        for moments, middle in zip(own, middles, strict=True):
            apart = middle - centre[label]
            scatter = scatter + 0.5 / len(own) * (
                moments.square / moments.count + blind * np.outer(apart, apart)
            )
    middle = (centre[0] + centre[1]) / 2
    scatter = (scatter - np.outer(middle, middle)) / np.outer(deviation, deviation)
    scatter[np.diag_indices(len(scatter))] += ridge
    weight = SCALE * np.linalg.solve(scatter, (centre[1] - centre[0]) / 2 / deviation)
    slope = weight / deviation
    return slope, float(-slope @ middle)


def fit_steady(
    features: np.ndarray,
    labels: np.ndarray,
    sources: np.ndarray,
    *,
    steady: float,
    blind: float,
    ridge: float,
) -> tuple[np.ndarray, float]:
    """Fit the head, as `solve`, to features (N, L, D) of L looks of N pictures, labels (N,) 0 or 1, sources (N,)."""
    groups = {
        (label, source): Moments.of(features[(labels == label) & (sources == source)])
        for label in (0, 1)
        for source in np.unique(sources[labels == label])
    }
    return solve(groups, steady=steady, blind=blind, ridge=ridge)
