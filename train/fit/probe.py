"""A logistic regression on what a frozen network sees: where the head starts, or all that is trained.

A head that starts at random distorts the features that came with the weights (Kumar et al. 2022, arXiv:2202.10054).
"""

import numpy as np
import torch
from rich.progress import track
from sklearn.linear_model import LogisticRegression

from hub_model.hub_folder import LABELS

from .batches import Batches, Images

SOURCE_STRENGTH = 1e-3
"""C of the regressions that tell sources apart: strong enough a penalty that only what is plain counts."""


def probe_head(network: torch.nn.Module, images: Images, batches: Batches, weights: torch.Tensor) -> None:
    """Start the head from a logistic regression on the frozen features of the pictures and of one changed copy of each.

    Args:
        network: its classifier is overwritten.
        images: the training images; those without a label are passed over.
        batches: how they are standardised and changed.
        weights: (N,) how often the sampler draws each image.
    """
    labelled = torch.nonzero(images.labels >= 0).flatten()
    plain = Batches(batches.pretrained_cfg, batches.modality)
    features = torch.cat([features_of(network, images, labelled, collate) for collate in (plain, batches)])
    slope, intercept = fit_probe(
        features.numpy(),
        images.labels[labelled].repeat(2).numpy(),
        np.tile(images.sources[labelled], 2),
        weights[labelled].repeat(2).numpy(),
        strength=batches.recipe.probe,
        blind=batches.recipe.blind,
    )
    slope, head = torch.from_numpy(slope).float(), network.get_classifier()
    # two logits share the log-odds between them; the documented networks have one unit, the log-odds itself
    shares = torch.tensor([-0.5, 0.5] if len(head.weight) == len(LABELS) else [1.0])
    with torch.no_grad():
        head.weight.copy_(torch.outer(shares, slope).view_as(head.weight))
        head.bias.copy_(shares * intercept)


@torch.inference_mode()
def features_of(
    network: torch.nn.Module, images: Images, chosen: torch.Tensor, collate: Batches
) -> torch.Tensor:
    """What the head sees of some images, (n, D); the network is left in evaluation mode."""
    network.eval()
    features = []
    for some in track(chosen.split(32), "fitting the head", transient=True):
        pixels = collate([images[int(index)] for index in some])["pixel_values"]
        features.append(network.forward_head(network.forward_features(pixels), pre_logits=True).float())
    return torch.cat(features)


def fit_probe(
    features: np.ndarray,
    labels: np.ndarray,
    sources: np.ndarray,
    weights: np.ndarray,
    strength: float,
    blind: int = 0,
) -> tuple[np.ndarray, float]:
    """Logistic regression on standardised features.

    Args:
        features: (N, D).
        labels: (N,) 0 or 1.
        sources: (N,) str.
        weights: (N,) of any scale.
        strength: C, the inverse of the penalty.
        blind: rounds of `source_directions` that it may not use.

    Returns:
        Slope (D,) and intercept of the log-odds of class 1, on the features as they came.
    """
    mean, deviation = features.mean(0), features.std(0, ddof=1)
    deviation = deviation + 1e-3 * deviation.mean() + 1e-8
    standard = (features - mean) / deviation
    basis = source_directions(standard, labels, sources, blind)
    model = LogisticRegression(C=strength, max_iter=300).fit(
        standard - standard @ basis @ basis.T, labels, sample_weight=weights / weights.mean()
    )
    slope = (model.coef_[0] - basis @ (basis.T @ model.coef_[0])) / deviation
    return slope, float(model.intercept_[0]) - float(slope @ mean)


def source_directions(
    features: np.ndarray, labels: np.ndarray, sources: np.ndarray, rounds: int
) -> np.ndarray:
    """What tells the collections apart among pictures of one class: it says nothing of the disease.

    Iterative null-space projection (Ravfogel et al. 2020, arXiv:2004.07667): each round fits a linear classifier of
    the source within each class on what the rounds before have left.

    Args:
        features: (N, D) standardised.
        labels: (N,) classes.
        sources: (N,) str.
        rounds: how often; 0 gives an empty basis, as does data with one source a class.

    Returns:
        (D, K) orthonormal directions.
    """
    basis = np.zeros((features.shape[1], 0), features.dtype)
    for _ in range(rounds):
        rest = features - features @ basis @ basis.T
        found = [
            LogisticRegression(C=SOURCE_STRENGTH, max_iter=300, class_weight="balanced")
            .fit(rest[labels == label], sources[labels == label])
            .coef_.T
            for label in np.unique(labels)
            if len(np.unique(sources[labels == label])) > 1
        ]
        if not found:
            break
        basis, _ = np.linalg.qr(np.concatenate([basis, *found], axis=1))
    return basis.astype(features.dtype)
