"""What a network in torch saw of pictures: logits, guard features, and where its evidence lies.

The evidence at a place is (gradient of the log-odds) x (feature map) there, summed over channels: Grad-CAM
(Selvaraju et al. 2017, arXiv:1610.02391) before its gradient is averaged over places, which changes nothing
for a head that pools and keeps the place for one that flattens (HiResCAM, Draelos & Carin 2020,
arXiv:2011.08891). Where the head is a pooled-linear one this product *is* the class activation map (Zhou et
al. 2016, arXiv:1512.04150), exactly; so the model itself decides, and no architecture is named here.

The map is scaled so that its mean over the picture is the network's own log-odds, and shown as a probability:
0.5 is neutral, and the same value means the same in every picture. It shows what moved the network, not
disease. `graph` writes the same as an ONNX graph, for screening without torch.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

MAX_PLACES = 14  # a side; in the finer maps of flattening heads neighbours cancel, so these are averaged


def view(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run the network once and keep what the guard and the heat map need.

    Args:
        model: a timm network with ``forward_intermediates`` and ``forward_head``.
        pixels: (N, 3, H, W).

    Returns:
        logits (N, 2); the last feature map (N, C, h, w); guard features (N, D): the means of the last three
        levels, on a 2 x 2 grid for the first two of these so that a picture lying on its side differs.
    """
    last, levels = model.forward_intermediates(pixels)
    parts = [adaptive_avg_pool2d(level, 2).flatten(1) for level in levels[-3:-1]]
    parts.append(last.mean((2, 3)))
    return model.forward_head(last), last, torch.cat(parts, 1)


def log_odds(logits: Tensor, class_index: int = 1) -> Tensor:
    """Compute the log-odds (N,) of one of two classes from logits (N, 2)."""
    return logits[:, class_index] - logits[:, 1 - class_index]


def gradient(model: nn.Module, features: Tensor, class_index: int = 1) -> Tensor:
    """Compute the gradient of the log-odds by the feature map (N, C, h, w), through the head alone.

    No hook is set and no parameter's `.grad` touched, so threads may share the model.
    """
    with torch.inference_mode(False), torch.enable_grad():
        features = features.detach().clone().requires_grad_()
        logits = model.forward_head(features)
        towards = torch.full_like(logits, -1)  # the log-odds are the class's logit minus the other's
        towards[:, class_index] = 1
        return torch.autograd.grad(logits, features, towards)[0]


def local_evidence(features: Tensor, gradient: Tensor, odds: Tensor) -> Tensor:
    """Compute local log-odds (N, h, w), whose mean over places is `odds` (N,); at most MAX_PLACES a side."""
    local = (features * gradient).sum(1) * (features.shape[2] * features.shape[3])
    if max(local.shape[1:]) > MAX_PLACES:
        local = adaptive_avg_pool2d(local, [min(side, MAX_PLACES) for side in local.shape[1:]])
    return local + (odds - local.mean((1, 2)))[:, None, None]


def heat_map(model: nn.Module, pixels: Tensor, class_index: int = 1) -> np.ndarray:
    """Compute a heat map of where one picture speaks for the class.

    Args:
        model: A timm network with two logits, in evaluation mode, whose `forward_features` is a map (N, C, h,
            w).
        pixels: (1, 3, H, W), as the model's transform gives them.
        class_index: 1 is COVID.

    Returns:
        (h, w) float32 in 0..1, about as fine as the feature map: above 0.5 speaks for the class, below
        against.

    Raises:
        ValueError: For more than one picture, or a network without a 4-D feature map.
    """
    if pixels.ndim != 4 or len(pixels) != 1:
        raise ValueError(
            f"heat_map takes one picture, (1, 3, H, W); got {tuple(pixels.shape)}. Call it once for each."
        )
    with torch.no_grad():
        features = model.forward_features(pixels)
    return heat_map_of_features(model, features, class_index)


def heat_map_of_features(model: nn.Module, features: Tensor, class_index: int = 1) -> np.ndarray:
    """Compute the heat map from a known feature map (1, C, h, w); this saves a second run of the network."""
    if features.ndim != 4:
        raise ValueError(
            f"This network's features have the shape {tuple(features.shape)}; a heat map needs (N, C, h, w). "
            "Choose a convolutional network."
        )
    slope = gradient(model, features, class_index)
    with torch.no_grad():
        odds = log_odds(model.forward_head(features), class_index)
        return torch.sigmoid(local_evidence(features, slope, odds))[0].float().cpu().numpy()
