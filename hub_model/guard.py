"""The input guard: does this picture look like what the model was trained on?

A network answers every picture, a cat's too. The guard compares what the network saw on the way (channel
means on a coarse grid, at three depths) with the training images: a Mahalanobis distance in their principal
subspace and the energy outside it (Lee et al. 2018, arXiv:1807.03888; Ndiour et al. 2020, arXiv:2012.10923),
and a linear score that was taught on foreign pictures (outlier exposure, Hendrycks et al. 2019,
arXiv:1812.04606). Blank pictures never reach the network. How often it refuses wrongly and what it catches is
measured in ``evaluation.json``.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d

from .hub_folder import HubFolder
from .refused import Reason

BLANK_DEVIATION = 4.0
"""A picture whose grey levels (0..255) deviate less than this, outermost 2 % aside, shows nothing."""

BLANK = Reason(
    "The picture is blank: it shows no structure to judge. Choose another file or another frame.", "blank"
)
NAMES = {"xray": "frontal chest X-rays", "ct": "axial chest CT slices"}


def view(model: torch.nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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


@dataclass(frozen=True)
class Guard:
    """Limits and statistics of the training images.

    Attributes:
        mean, scale: (D,) of the guard features.
        basis: (K, D) principal directions of the standardised features, orthonormal rows.
        deviation: (K,) standard deviations along them.
        foreign, bias: (D,) and () of the logistic score on standardised features.
        limits: ``distance``, ``residual`` and ``foreign``; a value above one of them is refused.
        modality: what the model reads.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    basis: torch.Tensor
    deviation: torch.Tensor
    foreign: torch.Tensor
    bias: torch.Tensor
    limits: dict[str, float]
    modality: str

    @classmethod
    def of(cls, folder: HubFolder) -> "Guard | None":
        """The guard of a hub folder; None where it has none (not evaluated yet)."""
        if folder.guard is None:
            return None
        tensors = {name: tensor.float() for name, tensor in folder.guard.items()}
        return cls(**tensors, limits=folder.screening["guard"]["limits"], modality=folder.modality)

    def scores(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Three distances from the training images for features (N, D): each (N,), larger is more foreign."""
        z = (features - self.mean) / self.scale
        projected = z @ self.basis.T
        inside = (projected / self.deviation).square().mean(1).sqrt()
        outside = (z - projected @ self.basis).square().mean(1).sqrt()
        return {
            "distance": inside,
            "residual": outside,
            "foreign": torch.sigmoid(z @ self.foreign + self.bias),
        }

    def excess(self, features: torch.Tensor) -> torch.Tensor:
        """How far features (N, D) are beyond the limits: the largest ratio to a limit; above 1 is refused."""
        scores = self.scores(features)
        return torch.stack([scores[name] / limit for name, limit in self.limits.items()]).amax(0)

    def check(self, features: torch.Tensor) -> list[Reason]:
        """Reasons to refuse one picture with guard features (D,); empty when it may be judged."""
        excess = float(self.excess(features[None])[0])
        if excess <= 1:
            return []
        text = (
            f"This picture does not look like the {NAMES[self.modality]} that the model learnt from "
            f"({excess:.1f} times the accepted distance). Give the original picture, upright, without "
            "annotations or other views; a photograph of a screen, a screenshot, a drawing or another body "
            "part cannot be judged."
        )
        return [Reason(text, "foreign", modality=self.modality, excess=round(excess, 1))]


def is_blank(image: Image.Image) -> bool:
    """Whether a grey picture shows nothing: its grey levels hardly deviate, outermost 2 % aside."""
    grey = np.asarray(image, np.float32)
    low, high = np.percentile(grey, [1, 99])
    return bool(np.clip(grey, low, high).std() < BLANK_DEVIATION)
