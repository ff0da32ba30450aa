"""The door: open a hub folder, screen a picture, read the finding."""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import heatmap, hub_folder
from .grey import ImageRefused
from .guard import BLANK, Guard, is_blank, view
from .images import read_image
from .refused import Refused

POSITIVE, NEGATIVE, INCONCLUSIVE, REFUSED = "positive", "negative", "inconclusive", "refused"


class UnknownOperatingPoint(Refused):
    """An operating point that the model does not have."""


@dataclass(frozen=True)
class Finding:
    """What the model says of one picture.

    Attributes:
        decision: ``positive`` (COVID suspected), ``negative``, ``inconclusive`` (too close to the threshold to
            call) or ``refused`` (not a picture this model can judge; see ``reasons``).
        probability: P(COVID) in 0..1 after calibration at the training set's prevalence; None when refused.
        operating_point: name of the operating point used.
        threshold: a probability at or above it is positive.
        modality: ``xray`` or ``ct``.
        reasons: why the picture was refused or not decided, in words.
        heat_map: (h, w) float32 in 0..1, where the model looked; None unless asked for.
        image: the grey 8-bit picture as the model took it; None when it could not be read.
    """

    decision: str
    probability: float | None
    operating_point: str
    threshold: float
    modality: str
    reasons: tuple[str, ...] = ()
    heat_map: np.ndarray | None = field(default=None, repr=False, compare=False)
    image: Image.Image | None = field(default=None, repr=False, compare=False)


class Screener:
    """A trained model with its preprocessing, input guard and operating points."""

    def __init__(self, folder: hub_folder.HubFolder) -> None:
        self._folder = folder
        self._guard = Guard.of(folder)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, revision: str | None = None) -> "Screener":
        """Open a model.

        Args:
            name: ``"xray"`` or ``"ct"`` (embedded in the package), a hub folder, or a Hub id ``"org/name"``.
            revision: branch, tag or commit of a Hub id.

        Raises:
            FolderRefused: there is no such folder, or it cannot be trusted.
        """
        return cls(hub_folder.load(name, revision))

    @property
    def path(self) -> Path:
        return self._folder.path

    @property
    def model(self) -> torch.nn.Module:
        """The timm network, (N, 3, H, W) -> (N, 2) calibrated logits."""
        return self._folder.model

    @property
    def config(self) -> dict[str, Any]:
        return self._folder.config

    @property
    def screening(self) -> dict[str, Any]:
        return self._folder.screening

    @property
    def modality(self) -> str:
        return self._folder.modality

    @property
    def operating_points(self) -> dict[str, dict[str, Any]]:
        """By name: ``threshold``, ``target``, ``abstain`` [low, high] or None, and ``validation`` figures."""
        return self.screening["operating_points"]

    def __repr__(self) -> str:
        return (
            f"Screener({self.config['architecture']!r}, modality={self.modality!r}, "
            f"operating_points={list(self.operating_points)})"
        )

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Grey picture (mode "L") -> float tensor (3, H, W), just as in training."""
        return self._folder.transform(image)

    def foreignness(self, image: Image.Image) -> float:
        """How far a grey picture lies from what the model learnt from; above 1 it is refused.

        Raises:
            FolderRefused: the model has no input guard, so it cannot tell.
        """
        if self._guard is None:
            raise hub_folder.FolderRefused(
                f"{self.path} has no input guard, so it takes every picture for one of its own. Evaluate the run: "
                f"`python -m train evaluate {self.path.name} --data ...`."
            )
        with torch.inference_mode():
            return float(self._guard.excess(view(self.model, self.preprocess(image)[None])[2])[0])

    def screen(
        self,
        source: Any,
        operating_point: str | None = None,
        heat_map: bool = False,
        frame: int | None = None,
    ) -> Finding:
        """Judge one picture.

        Args:
            source: what `read_image` takes: a path, bytes, an open binary file, a PIL picture or a numpy array.
            operating_point: a name in `operating_points`; by default the first, which is ``sensitivity`` on an
                evaluated model.
            heat_map: also say where the model looked.
            frame: which frame of a file that holds several (see `hub_model.images.frame_count`).

        Returns:
            A `Finding`; unreadable and foreign pictures give one with ``decision="refused"`` and the reasons.

        Raises:
            UnknownOperatingPoint: one that the model does not have.
        """
        name, point = self._point(operating_point)

        def finding(decision: str, **details: Any) -> Finding:
            return Finding(
                decision, details.pop("probability", None), name, point["threshold"], self.modality, **details
            )

        try:
            image = read_image(source, frame=frame, modality=self.modality)
        except ImageRefused as refusal:
            return finding(REFUSED, reasons=(refusal.reason,))
        if is_blank(image):
            return finding(REFUSED, reasons=(BLANK,), image=image)
        pixels = self.preprocess(image)[None]
        with torch.inference_mode():
            logits, last, features = view(self.model, pixels)
        if self._guard is not None and (reasons := self._guard.check(features[0])):
            return finding(REFUSED, reasons=tuple(reasons), image=image)
        probability = float(logits.softmax(1)[0, hub_folder.COVID])
        decision, reasons = decide(probability, point)
        shown = heatmap.heat_map_of_features(self.model, last) if heat_map else None
        return finding(decision, probability=probability, reasons=reasons, heat_map=shown, image=image)

    def _point(self, name: str | None) -> tuple[str, dict[str, Any]]:
        if name is None:
            name = next(iter(self.operating_points))
        if name not in self.operating_points:
            raise UnknownOperatingPoint(
                f"No operating point {name!r}; this model has {', '.join(self.operating_points)}."
            )
        return name, self.operating_points[name]


class AutoScreener:
    """Several models behind one door: a picture goes to the one whose training pictures it resembles most.

    Args:
        screeners: opened models, each with an input guard.
    """

    def __init__(self, screeners: Iterable[Screener]) -> None:
        self.screeners = tuple(screeners)

    @classmethod
    def from_pretrained(cls, *names: str | os.PathLike) -> "AutoScreener":
        """Open models, by default the embedded X-ray and CT ones; raises as `Screener.from_pretrained` does."""
        return cls(map(Screener.from_pretrained, names or hub_folder.MODALITIES))

    def choose(self, source: Any, frame: int | None = None) -> Screener:
        """The model to ask about a picture: of those that can read it, the one to which it is least foreign.

        Raises:
            FolderRefused: a model has no input guard.
        """
        foreignness = {}
        for screener in self.screeners:
            with contextlib.suppress(ImageRefused):  # as a DICOM file of the other modality is
                image = read_image(source, frame=frame, modality=screener.modality)
                foreignness[screener] = screener.foreignness(image)
        return min(foreignness, key=foreignness.get, default=self.screeners[0])

    def screen(
        self,
        source: Any,
        operating_point: str | None = None,
        heat_map: bool = False,
        frame: int | None = None,
    ) -> Finding:
        """As `Screener.screen`, by the model that fits the picture: ``Finding.modality`` says which it was."""
        source = source.read() if hasattr(source, "read") else source
        return self.choose(source, frame).screen(source, operating_point, heat_map, frame)


def decide(probability: float, point: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Decision and reasons for a probability at an operating point."""
    low, high = point.get("abstain") or (point["threshold"], point["threshold"])
    if low <= probability < high:
        return INCONCLUSIVE, (
            f"The probability {probability:.2f} is too close to the threshold {point['threshold']:.2f} to call "
            f"(between {low:.2f} and {high:.2f}). Repeat the imaging or test by other means.",
        )
    return (POSITIVE if probability >= point["threshold"] else NEGATIVE), ()
