"""Fit a network's head by logistic regression on its frozen features: to start from, or as all that is trained.

A head that starts at random distorts the features that came with the weights (Kumar et al. 2022, arXiv:2202.10054).
"""

import numpy as np
import torch
from rich.progress import track
from sklearn.linear_model import LogisticRegression

from hub_model.hub_folder import LABELS

from . import speed
from .batches import Batches, Images


def probe_head(network: torch.nn.Module, images: Images, batches: Batches, weights: torch.Tensor) -> None:
    """Start the head from a logistic regression on the frozen features of the pictures and of one changed copy of each.

    Args:
        network: the timm network; its classifier is overwritten.
        images: N training images; those without a label are passed over.
        batches: how images are standardised, and changed for the copies.
        weights: (N,) how often the sampler draws each image, in any unit.
    """
    labelled = torch.nonzero(images.labels >= 0).flatten()
    plain = Batches(batches.pretrained_cfg, batches.modality)
    features = torch.cat([features_of(network, images, labelled, collate) for collate in (plain, batches)])
    slope, intercept = fit_probe(
        features.numpy(),
        images.labels[labelled].repeat(2).numpy(),
        weights[labelled].repeat(2).numpy(),
        strength=batches.recipe.probe,
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
    """Compute what the head sees of some images.

    Args:
        network: the timm network; it is left in evaluation mode.
        images: N images.
        chosen: (n,) places among them.
        collate: how they are standardised, and changed where it has a recipe.

    Returns:
        (n, D) float32, the input of the last layer.
    """
    network.eval()
    features, device = [], speed.device_of(network)
    for some in track(chosen.split(32), "fitting the head", transient=True):
        pixels = collate([images[int(index)] for index in some])["pixel_values"].to(device)
        seen = network.forward_head(network.forward_features(pixels), pre_logits=True)
        features.append(seen.float().cpu())
    return torch.cat(features)


def fit_probe(
    features: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    strength: float,
) -> tuple[np.ndarray, float]:
    """Fit a logistic regression on standardised features.

    Args:
        features: (N, D).
        labels: (N,) 0 or 1.
        weights: (N,) how much each row counts, in any unit.
        strength: scikit-learn's C, the inverse of the penalty.

    Returns:
        Slope (D,) and intercept of the log-odds of class 1, on the features as they came.
    """
    mean, deviation = features.mean(0), features.std(0, ddof=1)
    deviation = deviation + 1e-3 * deviation.mean() + 1e-8
    standard = (features - mean) / deviation
    model = LogisticRegression(C=strength, max_iter=300)
    model.fit(standard, labels, sample_weight=weights / weights.mean())
    slope = model.coef_[0] / deviation
    return slope, float(model.intercept_[0]) - float(slope @ mean)
