"""The input guard: does this picture look like what the model was trained on?

A network answers every picture, a cat's too. The guard compares what the network saw on the way (channel
means on a coarse grid, at three depths; `evidence.view` and the ONNX graph give them) with the training images: a
Mahalanobis distance in their principal subspace and the energy outside it (Lee et al. 2018, arXiv:1807.03888;
Ndiour et al. 2020, arXiv:2012.10923), and a linear score that was taught on foreign pictures (outlier exposure,
Hendrycks et al. 2019, arXiv:1812.04606). Blank pictures never reach the network. How often it refuses wrongly and
what it catches is measured in ``evaluation.json``.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .hub_folder import HubFolder
from .refused import Reason

BLANK_DEVIATION = 4.0
"""A picture whose grey levels (0..255) deviate less than this, outermost 2 % aside, shows nothing."""

BLANK = Reason(
    "The picture is blank: it shows no structure to judge. Choose another file or another frame.", "blank"
)
NAMES = {"xray": "frontal chest X-rays", "ct": "axial chest CT slices"}


@dataclass(frozen=True)
class Statistics:
    """Describe the training pictures by what the network saw of them: the arrays of ``guard.safetensors``.

    Attributes:
        mean, scale: (D,) of the guard features.
        basis: (K, D) principal directions of the standardised features, orthonormal rows.
        deviation: (K,) standard deviations along them.
        foreign, bias: (D,) and () of the logistic score on standardised features.
    """

    mean: np.ndarray
    scale: np.ndarray
    basis: np.ndarray
    deviation: np.ndarray
    foreign: np.ndarray
    bias: np.ndarray

    def scores(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """Measure how far features (N, D) lie from the training pictures, in three ways.

        Returns:
            ``distance``, ``residual`` and ``foreign``, each (N,); larger is further out.
        """
        z = (features - self.mean) / self.scale
        projected = z @ self.basis.T
        inside = np.sqrt(np.square(projected / self.deviation).mean(1))
        outside = np.sqrt(np.square(z - projected @ self.basis).mean(1))
        with np.errstate(over="ignore"):  # exp of a large number is infinite, and the score then rightly 0
            foreign = 1 / (1 + np.exp(-(z @ self.foreign + self.bias)))
        return {"distance": inside, "residual": outside, "foreign": foreign}


@dataclass(frozen=True)
class Guard:
    """Decide which pictures the model may judge.

    Attributes:
        statistics: of the training pictures.
        limits: by name of a score (see `Statistics.scores`); a value above one of them is refused.
        modality: what the model reads.
    """

    statistics: Statistics
    limits: dict[str, float]
    modality: str

    @classmethod
    def of(cls, folder: HubFolder) -> "Guard | None":
        """Open the guard of a hub folder; None where it has none (not evaluated yet)."""
        if folder.guard is None:
            return None
        tensors = {name: tensor.astype(np.float32) for name, tensor in folder.guard.items()}
        return cls(Statistics(**tensors), folder.screening["guard"]["limits"], folder.modality)

    def out_of_distribution(self, features: np.ndarray) -> np.ndarray:
        """Compute out-of-distribution scores (N,) of features (N, D): the largest ratio to a limit. Above 1 is refused.

        Features that are no finite numbers score infinity.
        """
        scores = self.statistics.scores(features)
        highest = np.max([scores[name] / limit for name, limit in self.limits.items()], axis=0)
        return np.where(np.isfinite(highest), highest, np.inf)

    def reason(self, score: float) -> Reason | None:
        """Say why a picture with this out-of-distribution score is refused; None where it may be judged."""
        if score <= 1:
            return None
        text = (
            f"This picture does not look like the {NAMES[self.modality]} that the model learnt from "
            f"({score:.1f} times the accepted distance). Give the original picture, upright, without "
            "annotations or other views; a photograph of a screen, a screenshot, a drawing or another body "
            "part cannot be judged."
        )
        return Reason(text, "foreign", modality=self.modality, score=round(score, 1))


def is_blank(image: Image.Image) -> bool:
    """Say whether a grey picture shows nothing: its grey levels hardly deviate, outermost 2 % aside."""
    counts = np.array(image.histogram())  # a film has millions of pixels, but 256 levels
    below, places = np.cumsum(counts), np.array([0.01, 0.99]) * (counts.sum() - 1)
    lower, upper = (np.searchsorted(below, ends(places), side="right") for ends in (np.floor, np.ceil))
    low, high = lower + (upper - lower) * (places % 1)
    levels = np.clip(np.arange(len(counts)), low, high)
    mean = np.average(levels, weights=counts)
    return bool(np.average((levels - mean) ** 2, weights=counts) < BLANK_DEVIATION**2)
