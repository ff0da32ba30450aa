"""Fit the input guard on what the network saw of the training images, and measure it on others."""

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from rich.progress import track
from sklearn.linear_model import LogisticRegression

from hub_model.guard import Guard, is_blank
from hub_model.hub_folder import HubFolder

from .foreign import foreign_pictures
from .metrics import family_weights, record
from .predict import run

COMPONENTS = 48
TEACH_A_KIND, MEASURE_A_KIND = 150, 60
FALSE_REFUSALS = 0.01
"""Share of validation images that the limits refuse; the figure that counts is measured on the test part."""
SLACK = 1.15
"""The two distances were seen on few images of few sources; a picture of a new hospital lies a little further out."""
AT_MOST = 1500
"""Training images used, drawn at random."""


def fit_guard(
    folder: HubFolder, parts, other, seed: int = 0
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Fit the guard of a network.

    Args:
        folder: the trained network; its own guard, if any, is not used.
        parts: DatasetDict with ``train`` and ``validation`` of the network's modality.
        other: rows of the other modality, or None where the data has none.
        seed: for the foreign pictures.

    Returns:
        Tensors for ``guard.safetensors`` and the limits for ``screening.json``.
    """
    rng = np.random.default_rng(seed)
    reals = _some(parts["train"], AT_MOST, rng)
    shaken = [_shake(image, rng) for image in reals]
    _, own = run(folder, track(reals + shaken, "guard: training images", transient=True))
    _, held_out = run(
        folder, track(_some(parts["validation"], AT_MOST, rng), "guard: validation", transient=True)
    )
    kinds = foreign_pictures(reals, folder.modality, TEACH_A_KIND, seed, teaching=True)
    if other is not None:
        kinds["other modality"] = iter(_some(other, 3 * TEACH_A_KIND, rng))
    pictures = [p for made in kinds.values() for p in made if not is_blank(p)]
    _, foreign = run(folder, track(pictures, "guard: foreign pictures", transient=True))

    mean, scale = own.mean(0), own.std(0).clamp_min(1e-4)
    z = (own - mean) / scale
    _, singular, basis = torch.linalg.svd(z, full_matrices=False)
    k = min(COMPONENTS, len(basis))
    deviation = (singular[:k] / len(z) ** 0.5).clamp_min(1e-4)
    weights, bias = _separate(z, (foreign - mean) / scale)
    stored = basis[:k].half()  # most of the file; the limits below are those of what is stored
    tensors = {
        "mean": mean,
        "scale": scale,
        "basis": stored.float(),
        "deviation": deviation,
        "foreign": weights,
    }
    tensors["bias"] = bias
    return {**tensors, "basis": stored}, _limits(
        Guard(
            **{name: tensor.numpy() for name, tensor in tensors.items()}, limits={}, modality=folder.modality
        ),
        held_out.numpy(),
    )


def _limits(guard: Guard, held_out: np.ndarray) -> dict[str, float]:
    """Limits that refuse FALSE_REFUSALS of the held-out images, each score taking an equal part of it."""
    scores = guard.scores(held_out)
    level = 1 - FALSE_REFUSALS / len(scores)
    limits = {name: float(np.quantile(values, level)) for name, values in scores.items()}
    return {
        "distance": limits["distance"] * SLACK,
        "residual": limits["residual"] * SLACK,
        "foreign": min(0.98, max(0.5, limits["foreign"])),
    }


def _separate(own: torch.Tensor, foreign: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (D,) and bias () of the logistic score of being foreign."""
    x = torch.cat([own, foreign]).numpy()
    y = np.r_[np.zeros(len(own)), np.ones(len(foreign))]
    model = LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000).fit(x, y)
    return torch.tensor(model.coef_[0], dtype=torch.float32), torch.tensor(
        model.intercept_[0], dtype=torch.float32
    )


def measure_guard(folder: HubFolder, test, other, seed: int = 0) -> dict:
    """How often the guard refuses real test images, and what it catches of each foreign kind.

    Returns:
        ``false_refusals``: a record over the test images, families resampled; ``false_refusals_by_source``;
        ``caught``: kind -> record over as many made pictures (resampled one by one).
    """
    guard = Guard.of(folder)
    rng = np.random.default_rng(seed + 1)
    reals = [row["image"].convert("L") for row in test]
    _, features = run(folder, track(reals, "guard: test images", transient=True))
    refused = guard.out_of_distribution(features.numpy()) > 1
    families, sources = np.array(test["family"]), np.array(test["source"])
    kinds = foreign_pictures(reals, folder.modality, MEASURE_A_KIND, seed, teaching=False)
    if other is not None:
        kinds["other modality"] = iter(_some(other, AT_MOST, rng))
    caught = {}
    for kind, made in kinds.items():
        pictures = list(made)
        _, features = run(folder, pictures)
        hits = (guard.out_of_distribution(features.numpy()) > 1) | np.array([is_blank(p) for p in pictures])
        caught[kind] = _share("caught", hits, np.arange(len(hits)).astype(str))
    return {
        "false_refusals": _share("refused", refused, families),
        "false_refusals_by_source": {
            str(s): _share("refused", refused[sources == s], families[sources == s])
            for s in np.unique(sources)
        },
        "caught": caught,
    }


def _share(name: str, hits: np.ndarray, units: np.ndarray) -> dict:
    weights = family_weights(units)
    samples = (weights @ hits) / weights.sum(1)
    return record(name, float(hits.mean()), samples, len(hits), len(np.unique(units)))


def _some(part, count: int, rng: np.random.Generator) -> list[Image.Image]:
    chosen = rng.permutation(len(part))[:count]
    return [row["image"].convert("L") for row in part.select(np.sort(chosen))]


def _shake(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A copy as another hospital might have sent it: other window, sharpness, margin and a slight tilt."""
    image = image.rotate(float(rng.uniform(-8, 8)), Image.Resampling.BILINEAR)
    left, top, right, bottom = rng.uniform(-0.06, 0.1, 4)
    box = (left * image.width, top * image.height, (1 - right) * image.width, (1 - bottom) * image.height)
    image = image.crop(tuple(round(edge) for edge in box))
    image = ImageEnhance.Contrast(image).enhance(float(rng.uniform(0.7, 1.4)))
    image = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.75, 1.3)))
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.5))))
