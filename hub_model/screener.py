"""The door: open a hub folder, screen a picture or a million, read the findings."""

import base64
import html
import io
import json
import logging
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from . import hub_folder, layout, lungs
from .backends import BACKENDS, Backend, BackendRefused, OnnxRuntime, TorchNetwork
from .decision import REFUSED, decide
from .grey import ImageRefused
from .guard import BLANK, Guard, is_blank
from .heatmap import overlay
from .images import read_for
from .preprocess import preprocessing
from .refused import Reason, Refused
from .series import SeriesFinding, screen_volume
from .site import Site, SiteRefused, fitted_prevalence, read_site, shift

if TYPE_CHECKING:
    import torch

BATCH = 2
"""Pictures that the network sees at once. On a CPU larger batches are no faster and take more memory (265 MB for both
embedded models with 2, 575 MB with 8); a GPU wants 32 or more."""
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WORKERS = min(max(2, _CORES), 16)
"""Threads that decode the next pictures meanwhile and find their lungs: one a core that this process may use, from 2 to
16. With 16 cores, two threads kept the network waiting (docs/speed.md)."""
FAILED = Reason(
    "An error in this program kept the picture from being judged; it is in the log. Please report it.",
    "failed",
)
AMBIGUOUS = Reason(
    "More than one model takes this picture, and one has no input guard to say how well it fits. Say which model to "
    "ask.",
    "ambiguous",
)
NO_NUMBER = Reason("The network gave no number for this picture. Nothing can be said of it.", "no_number")
log = logging.getLogger("covid_xct")
Given, Made = TypeVar("Given"), TypeVar("Made")


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
        out_of_distribution: how far the picture lies from what the model learnt from; above 1 it is refused. None
            where the network did not see it, or has no guard.
        also_fits: modalities of other models that would have taken the picture; only `AutoScreener` says.
        site: name of the local settings that were used (see `hub_model.site`); None for the model's own.
        at_prevalence: P(COVID) at the prevalence that was asked for; None where none was.
        heat_map: (h, w) float32 in 0..1, where the model looked; None unless asked for.
        image: the grey 8-bit picture as the model took it; None when it could not be read.
    """

    decision: str
    probability: float | None
    operating_point: str
    threshold: float
    modality: str
    reasons: tuple[str, ...] = ()
    out_of_distribution: float | None = field(default=None, repr=False, compare=False)
    also_fits: tuple[str, ...] = field(default=(), repr=False, compare=False)
    site: str | None = field(default=None, repr=False)
    at_prevalence: float | None = field(default=None, repr=False)
    heat_map: np.ndarray | None = field(default=None, repr=False, compare=False)
    image: Image.Image | None = field(default=None, repr=False, compare=False)

    @property
    def codes(self) -> tuple[str, ...]:
        """Names of the reasons, which stay when their wording changes."""
        return tuple(getattr(reason, "code", "") for reason in self.reasons)

    def to_dict(self, *, heat_map: bool = False) -> dict[str, Any]:
        """Return everything but the picture, in types that JSON has; the heat map as rows of numbers if wanted."""
        told = {
            "decision": self.decision,
            "probability": self.probability,
            "operating_point": self.operating_point,
            "threshold": self.threshold,
            "modality": self.modality,
            "reasons": [str(reason) for reason in self.reasons],
            "codes": list(self.codes),
            "out_of_distribution": self.out_of_distribution,
            "also_fits": list(self.also_fits),
            "site": self.site,
            "at_prevalence": self.at_prevalence,
        }
        if heat_map:
            rows = None if self.heat_map is None else np.round(self.heat_map.astype(float), 4).tolist()
            told["heat_map"] = rows
        return told

    def to_json(self, *, heat_map: bool = False) -> str:
        """Return `to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(heat_map=heat_map), ensure_ascii=False)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the figures, and the picture tinted by the heat map where there is one."""
        rows = {
            "decision": self.decision,
            "P(COVID)": "" if self.probability is None else f"{self.probability:.3f}",
            "threshold": f"{self.threshold:.3f} ({self.operating_point})",
            "model": self.modality,
            "local settings": self.site or "",
            "P(COVID) at the prevalence": "" if self.at_prevalence is None else f"{self.at_prevalence:.3f}",
            "reasons": " ".join(self.reasons),
        }
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in rows.items()
            if value
        )
        shown = ""
        if self.image is not None:
            image = self.image.copy()
            image.thumbnail((360, 360))
            if self.heat_map is not None:
                image = overlay(image, self.heat_map)
            stream = io.BytesIO()
            image.save(stream, "png")
            source = base64.b64encode(stream.getvalue()).decode("ascii")
            shown = f"<img alt='the picture as judged' src='data:image/png;base64,{source}'>"
        return f"<div style='display:flex;gap:1em'>{shown}<table>{cells}</table></div>"


class Frame(NamedTuple):
    """One frame of a source with several, for `screen_many`."""

    source: Any
    number: int | None = None


class Taken(NamedTuple):
    """A picture ready for the network, or the reason why it never gets there."""

    image: Image.Image | None = None
    pixels: np.ndarray | None = None
    reason: Reason | None = None
    box: lungs.Box | None = None


class Screener:
    """A trained model with its preprocessing, input guard and operating points.

    May be shared by threads, pickled, and used in spawned and forked processes; a pickle holds the place of the
    folder, not the weights.

    Args:
        folder: as `hub_folder.open_folder` gives it.
        backend: ``onnx`` or ``torch``.
        device: what the network runs on.
        threads: cores for one batch, of ONNX Runtime on a CPU; by default all.
        site: local settings, which take the place of the model's own.
        prevalence: share of COVID-19 among those who are screened; each finding then says P(COVID) there, too.

    Raises:
        SiteRefused: local settings of another model, or a prevalence that cannot be used.
        FolderRefused: the folder's graph, network or lung network is not accepted.
        BackendRefused: an unknown backend or device, or one that is not installed here.
    """

    def __init__(
        self,
        folder: hub_folder.HubFolder,
        backend: str = "onnx",
        device: str = "cpu",
        threads: int | None = None,
        site: Site | None = None,
        prevalence: float | None = None,
    ) -> None:
        self._folder, self.backend, self.device, self.threads = folder, backend, device, threads
        self.site = None if site is None else site.check(folder)
        self.prevalence = prevalence
        self._shift = None if prevalence is None else shift(prevalence, fitted_prevalence(folder, site))
        self._guard = Guard.of(folder)
        self._pixels = preprocessing(folder.config)
        self._network = _started(folder, backend, device, threads)
        self._finder = folder.finder  # opened now, so that its damage is said once and not of every picture
        if isinstance(self._network, OnnxRuntime):
            width = None if folder.guard is None else len(folder.guard["mean"])
            self._network.check_shapes(folder.config["pretrained_cfg"]["input_size"], width)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        revision: str | None = None,
        backend: str = "onnx",
        device: str = "cpu",
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        threads: int | None = None,
        site: str | os.PathLike | None = None,
        prevalence: float | None = None,
    ) -> "Screener":
        """Open a model.

        Args:
            name: ``"xray"``, ``"ct"``, ``"xray-covid_cnn_3"`` or ``"ct-covid_cnn_3"`` (embedded in the package), a hub
                folder, or a Hub id ``"org/name"``.
            revision: branch, tag or commit of a Hub id.
            backend: ``"onnx"`` (ONNX Runtime) or ``"torch"``; they give the same decisions, and on a CPU
                probabilities within 1e-5.
            device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; with torch any device that torch has.
            token: for a private Hub repository; by default the one that `hf auth login` stored.
            cache_dir: where downloads are kept; by default the Hub's own cache.
            threads: cores for one batch, of ONNX Runtime on a CPU; by default all. 1 where several processes work.
            site: file of local settings that `covid-xct check --adapt` wrote for this model.
            prevalence: share of COVID-19 among those who are screened; findings then say P(COVID) there, too.

        Raises:
            FolderRefused: there is no such folder, or it cannot be trusted.
            SiteRefused: local settings that were changed or are for another model, or no such prevalence.
            BackendRefused: an unknown backend or device, or one that is not installed here.
        """
        local = None if site is None else read_site(site)
        folder = hub_folder.load(name, revision, token=token, cache_dir=cache_dir)
        return cls(folder, backend, device, threads, local, prevalence)

    def __reduce__(self) -> tuple:
        weights = self.screening.get("weights_sha256")
        made = (self.backend, self.device, self.threads, self.site, self.prevalence)
        return _reopened, (type(self), str(self.path.absolute()), made, weights)

    @property
    def folder(self) -> hub_folder.HubFolder:
        """The opened hub folder."""
        return self._folder

    @property
    def path(self) -> Path:
        return self._folder.path

    @property
    def model(self) -> "torch.nn.Module":
        """The timm network, (N, 3, H, W) -> (N, 2) calibrated logits, whichever the backend; needs torch.

        Raises:
            FolderRefused: torch is not installed.
        """
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
        """Operating points by name: ``threshold``, ``target``, ``abstain`` [low, high] or None, and ``validation``
        figures; those of the local settings where there are any."""
        return self.site.operating_points if self.site else self.screening["operating_points"]

    def __repr__(self) -> str:
        return (
            f"Screener({self.config['architecture']!r}, modality={self.modality!r}, "
            f"operating_points={list(self.operating_points)}, backend={self.backend!r}, device={self.device!r})"
        )

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Convert a grey picture (mode "L") to float32 pixels (3, H, W), just as in training.

        Raises:
            ImageRefused: the folder's lung network finds no lung.
        """
        return self._pixels(self._shown(image).image)

    def _shown(self, image: Image.Image) -> lungs.Shown:
        return lungs.shown(image, self._finder, self._folder.view)

    def out_of_distribution_score(self, image: Image.Image) -> float:
        """Measure how far a grey picture lies from what the model learnt from; above 1 it is refused.

        Raises:
            FolderRefused: the model has no input guard, so it cannot tell.
        """
        if self._guard is None:
            raise hub_folder.FolderRefused(
                f"{self.path} has no input guard, so it takes every picture for one of its own. Evaluate the run: "
                f"`python -m train evaluate {self.path.name} --data ...`."
            )
        seen = self._network.run(self.preprocess(image)[None], heat_maps=False)
        return float(self._guard.out_of_distribution(seen.features)[0])

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
            Refused: the model has no such operating point.
        """
        point = self._point(operating_point)
        return self._judged([self._taken(source, frame)], point, heat_map)[0]

    def screen_many(
        self,
        sources: Iterable[Any],
        operating_point: str | None = None,
        heat_map: bool = False,
        *,
        batch_size: int = BATCH,
        workers: int = WORKERS,
        keep_images: bool = True,
    ) -> Iterator[Finding]:
        """Judge many pictures, each as `screen` would; a bad one gives a refusal and the rest goes on.

        Args:
            sources: any number of what `screen` takes, of functions that fetch it, or of `Frame`; read as they are
                needed.
            operating_point: as for `screen`.
            heat_map: as for `screen`.
            batch_size: pictures that the network sees at once.
            workers: threads that fetch and decode the next pictures while the network is busy.
            keep_images: give each finding its picture; without, less memory is used.

        Returns:
            Findings in the order of the sources, as they are ready; at most a few batches are held in memory.

        Raises:
            Refused: the model has no such operating point.
            ValueError: a batch size or number of workers below 1.
        """
        point = self._point(operating_point)

        def judged(batch: list[Taken]) -> list[Finding]:
            return self._judged(batch, point, heat_map)

        def taken(source: Any) -> Taken:
            return self._surely_taken(source, keep_images)

        return _in_batches(
            sources, taken, lambda batch: self._surely_judged(batch, point, judged), batch_size, workers
        )

    def screen_series(
        self,
        source: Any,
        operating_point: str | None = None,
        *,
        series: int | None = None,
        batch_size: int = BATCH,
        workers: int = WORKERS,
    ) -> SeriesFinding:
        """Judge a CT series: every slice that shows a lung, and the series as a whole where that was measured.

        Args:
            source: what `read_volume` takes, or a `Volume`.
            operating_point: as for `screen`.
            series: which one, where the source holds several.
            batch_size, workers: as for `screen_many`; the slices are read as they are needed.

        Returns:
            A `SeriesFinding`; what cannot be used gives one with ``decision="refused"`` and the reason.

        Raises:
            Refused: the model has no such operating point.
        """
        return screen_volume(self, source, self._point(operating_point)[0], series, batch_size, workers)

    def _taken(self, source: Any, frame: int | None = None) -> Taken:
        """Read a picture and make it ready for the network."""
        return self._ready(read_for(source, (self.modality,), frame=frame)[self.modality])

    def _ready(self, image: Image.Image | ImageRefused) -> Taken:
        """Make a picture that was read ready for the network."""
        if isinstance(image, ImageRefused):
            return Taken(reason=image.reason)
        if is_blank(image):
            return Taken(image, reason=BLANK)
        try:
            shown = self._shown(image)
            return Taken(image, self._pixels(shown.image), box=shown.box)
        except ImageRefused as refusal:
            return Taken(image, reason=refusal.reason)

    def _surely_taken(self, source: Any, keep_image: bool = True) -> Taken:
        """Read a picture as `_taken` does, and turn any exception into a refusal."""

        def taken() -> Taken:
            given, frame = source if isinstance(source, Frame) else (source, None)
            return self._taken(given() if callable(given) else given, frame)

        return _surely(taken, keep_image)

    def _judged(self, batch: Sequence[Taken], point: tuple[str, dict], heat_map: bool) -> list[Finding]:
        """Judge pictures that were made ready; the network runs once."""
        name, told = point
        site = self.site.name if self.site else None
        findings = [
            Finding(
                REFUSED,
                None,
                name,
                told["threshold"],
                self.modality,
                (taken.reason,),
                site=site,
                image=taken.image,
            )
            if taken.reason
            else None
            for taken in batch
        ]
        seen = [index for index, taken in enumerate(batch) if taken.reason is None]
        if not seen:
            return findings
        view = self._network.run(np.stack([batch[index].pixels for index in seen]), heat_maps=heat_map)
        odds = view.logits[:, layout.COVID].astype(np.float64) - view.logits[:, 1 - layout.COVID]
        odds = self.site.log_odds(odds) if self.site else odds
        probabilities = _sigmoid(odds)
        elsewhere = None if self._shift is None else _sigmoid(odds + self._shift)
        scores = None if self._guard is None else self._guard.out_of_distribution(view.features)
        for row, index in enumerate(seen):
            score = None if scores is None else float(scores[row])
            reason = None if score is None else self._guard.reason(score)
            if reason is None and not np.isfinite(odds[row]):
                reason = NO_NUMBER
            if reason:
                decision, probability, reasons, heat, there = REFUSED, None, (reason,), None, None
            else:
                there = None if elsewhere is None else float(elsewhere[row])
                probability = float(probabilities[row])
                decision, reasons = decide(probability, told)
                heat = lungs.placed(view.heat_maps[row], batch[index].box) if heat_map else None
            findings[index] = Finding(decision, probability, name, told["threshold"], self.modality, reasons,
                                      score, site=site, at_prevalence=there, heat_map=heat,
                                      image=batch[index].image)  # fmt: skip
        return findings

    def _surely_judged(
        self, batch: Sequence[Taken], point: tuple[str, dict], judged: Callable[[list[Taken]], list[Finding]]
    ) -> list[Finding]:
        """Judge pictures as `_judged` does; those of a failed batch one by one, and refuse each that fails alone."""
        try:
            return judged(list(batch))
        except Exception as error:
            _logged(error)
            if len(batch) > 1:
                return [finding for one in batch for finding in self._surely_judged([one], point, judged)]
            site = self.site.name if self.site else None
            return [
                Finding(REFUSED, None, point[0], point[1]["threshold"], self.modality, (FAILED,), site=site)
            ]

    def _point(self, name: str | None) -> tuple[str, dict[str, Any]]:
        if name is None:
            name = next(iter(self.operating_points))
        if name not in self.operating_points:
            raise Refused(f"No operating point {name!r}; this model has {', '.join(self.operating_points)}.")
        return name, self.operating_points[name]


class AutoScreener:
    """Several models used as one: a picture is judged by the one that takes it.

    Every model looks at the picture, and its guard says whether it is like those it was trained on. Where one guard
    accepts, that model answers; where several do, the one with the lowest out-of-distribution score, and
    ``Finding.also_fits`` names the others. Where none does, the picture is refused with the reasons of all.

    Args:
        screeners: opened models, each with an input guard.
    """

    def __init__(self, screeners: Iterable[Screener]) -> None:
        self.screeners = tuple(screeners)

    @classmethod
    def from_pretrained(
        cls,
        *names: str | os.PathLike,
        backend: str = "onnx",
        device: str = "cpu",
        threads: int | None = None,
        sites: Iterable[str | os.PathLike] = (),
        prevalence: float | None = None,
    ) -> "AutoScreener":
        """Open models, by default the embedded X-ray and CT ones; raises as `Screener.from_pretrained` does.

        Each of the `sites`, files of local settings, goes to the model that it was made for.
        """
        folders = [hub_folder.load(name) for name in names or hub_folder.MODALITIES]
        local = sites_of(folders, sites)
        return cls(
            Screener(folder, backend, device, threads, site, prevalence)
            for folder, site in zip(folders, local, strict=True)
        )

    def choose(self, source: Any, frame: int | None = None) -> Screener:
        """Find the model that answers for a picture; where all refuse it, the one with the lowest score."""
        modality = self.screen(source, frame=frame).modality
        return next(screener for screener in self.screeners if screener.modality == modality)

    def screen(
        self,
        source: Any,
        operating_point: str | None = None,
        heat_map: bool = False,
        frame: int | None = None,
    ) -> Finding:
        """Judge one picture as `Screener.screen` does, by the model that takes it; ``Finding.modality`` says which.

        Raises:
            Refused: no model has such an operating point; a model that lacks it uses its first.
        """
        points = self._points(operating_point)
        images = read_for(source, self._modalities, frame=frame)
        given = [
            screener._judged([screener._ready(images[screener.modality])], point, heat_map)[0]
            for screener, point in zip(self.screeners, points, strict=True)
        ]
        return chosen(given)

    def screen_many(
        self,
        sources: Iterable[Any],
        operating_point: str | None = None,
        heat_map: bool = False,
        *,
        batch_size: int = BATCH,
        workers: int = WORKERS,
        keep_images: bool = True,
    ) -> Iterator[Finding]:
        """Judge many pictures as `Screener.screen_many` does, each by the model that takes it."""
        points = self._points(operating_point)

        def taken(source: Any) -> list[Taken]:
            try:
                given, frame = source if isinstance(source, Frame) else (source, None)
                images = read_for(given() if callable(given) else given, self._modalities, frame=frame)
            except ImageRefused as refusal:  # by the function that fetches it
                return [Taken(reason=refusal.reason)] * len(self.screeners)
            except Exception as error:
                _logged(error)
                return [Taken(reason=FAILED)] * len(self.screeners)
            return [
                _surely(partial(screener._ready, images[screener.modality]), keep_images)
                for screener in self.screeners
            ]

        def judged(batch: list[list[Taken]]) -> list[Finding]:
            rows = [
                screener._surely_judged(
                    [row[index] for row in batch],
                    point,
                    lambda some, s=screener, p=point: s._judged(some, p, heat_map),
                )
                for index, (screener, point) in enumerate(zip(self.screeners, points, strict=True))
            ]
            return [chosen(list(given)) for given in zip(*rows, strict=True)]

        return _in_batches(sources, taken, judged, batch_size, workers)

    @property
    def _modalities(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(screener.modality for screener in self.screeners))

    def screen_series(
        self,
        source: Any,
        operating_point: str | None = None,
        *,
        series: int | None = None,
        batch_size: int = BATCH,
        workers: int = WORKERS,
    ) -> SeriesFinding:
        """Judge a CT series as `Screener.screen_series` does, by the model for CT.

        Raises:
            Refused: none of the models is for CT, or the one that is has no such operating point.
        """
        for screener in self.screeners:
            if screener.modality == "ct":
                return screener.screen_series(
                    source, operating_point, series=series, batch_size=batch_size, workers=workers
                )
        raise Refused(
            "None of these models reads CT, so there is none for a series. Open one: AutoScreener of 'ct'."
        )

    def _points(self, name: str | None) -> list[tuple[str, dict[str, Any]]]:
        known = [name is None or name in screener.operating_points for screener in self.screeners]
        if not any(known):
            raise Refused(
                f"No operating point {name!r}; these models have "
                f"{', '.join(dict.fromkeys(p for s in self.screeners for p in s.operating_points))}."
            )
        return [s._point(name if has else None) for s, has in zip(self.screeners, known, strict=True)]


def chosen(given: Sequence[Finding]) -> Finding:
    """Choose one of the findings that several models gave for the same picture, by the rule of `AutoScreener`."""
    accepted = [finding for finding in given if finding.decision != REFUSED]
    if len(accepted) > 1 and any(finding.out_of_distribution is None for finding in accepted):
        return replace(accepted[0], decision=REFUSED, probability=None, reasons=(AMBIGUOUS,), heat_map=None)
    if accepted:
        nearest = min(accepted, key=_distance)
        others = tuple(finding.modality for finding in accepted if finding is not nearest)
        return replace(nearest, also_fits=others)
    # that a CT slice is no X-ray is no news where the CT model has another reason to refuse it
    telling = [finding for finding in given if set(finding.codes) != {"other_modality"}] or list(given)
    reasons = tuple(dict.fromkeys(reason for finding in telling for reason in finding.reasons))
    nearest = min(telling, key=_distance)
    image = next((finding.image for finding in telling if finding.image is not None), None)
    return replace(nearest, reasons=reasons, image=image)


def _surely(take: Callable[[], Taken], keep_image: bool) -> Taken:
    """Call `take`, and turn any exception into a refusal."""
    try:
        taken = take()
    except ImageRefused as refusal:  # by the function that fetches it
        return Taken(reason=refusal.reason)
    except Exception as error:
        _logged(error)
        return Taken(reason=FAILED)
    return taken if keep_image else taken._replace(image=None)


def _distance(finding: Finding) -> float:
    return np.inf if finding.out_of_distribution is None else finding.out_of_distribution


def _started(folder: hub_folder.HubFolder, backend: str, device: str, threads: int | None) -> Backend:
    if backend not in BACKENDS:
        raise BackendRefused(f"There is no backend {backend!r}; accepted are {', '.join(BACKENDS)}.")
    if backend == "torch":
        return TorchNetwork(folder.model, device)
    try:
        return OnnxRuntime(folder.graph(), folder.weights(), device, threads)
    except ImportError as error:
        raise BackendRefused(
            f"ONNX Runtime cannot be used here ({error}). pip install onnxruntime; where there is none for this "
            "platform, pip install 'covid-xct[torch]' and say backend='torch'."
        ) from error


def sites_of(
    folders: Sequence[hub_folder.HubFolder], places: Iterable[str | os.PathLike]
) -> list[Site | None]:
    """Find the local settings of each model among some files; None for a model without.

    Raises:
        SiteRefused: a file that cannot be trusted or is for none of the models, or two for one of them.
    """
    found: list[Site | None] = [None] * len(folders)
    for place in places:
        site = read_site(place)
        fits = [
            index
            for index, folder in enumerate(folders)
            if folder.screening.get("weights_sha256") == site.weights_sha256
        ]
        if not fits:
            site.check(next((one for one in folders if one.modality == site.modality), folders[0]))
        for index in fits:
            if found[index] is not None:
                raise SiteRefused(
                    f"{place} is the second file of local settings for one model. Give one of them."
                )
            found[index] = site
    return found


def _sigmoid(odds: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-odds))


def _reopened(kind: type[Screener], path: str, made: tuple, weights: str | None) -> Screener:
    """Open a screener in another process than the one that pickled it."""
    folder = hub_folder.open_folder(path)
    if folder.screening.get("weights_sha256") != weights:
        raise hub_folder.FolderRefused(
            f"{path} holds other weights than when the screener was pickled. Open it anew: Screener.from_pretrained."
        )
    return kind(folder, *made)


def _in_batches(
    given: Iterable[Given],
    take: Callable[[Given], Any],
    judge: Callable[[list], list[Finding]],
    batch_size: int,
    workers: int,
) -> Iterator[Finding]:
    """Yield findings in order; `take` runs in threads, a batch or two ahead of `judge`."""
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size and workers are 1 or more; got {batch_size} and {workers}.")

    def findings() -> Iterator[Finding]:
        batch = []
        for taken in ahead(take, given, workers, 2 * batch_size + workers):
            batch.append(taken)
            if len(batch) == batch_size:
                yield from judge(batch)
                batch = []
        if batch:
            yield from judge(batch)

    return findings()


def ahead(make: Callable[[Given], Made], given: Iterable[Given], workers: int, most: int) -> Iterator[Made]:
    """Apply `make` to each in threads and yield in order, with at most `most` results waiting."""
    waiting = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="covid-xct-read") as pool:
        try:
            for one in given:
                waiting.append(pool.submit(make, one))
                if len(waiting) >= most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also when the caller wants no more
            for future in waiting:
                future.cancel()


def _logged(error: Exception) -> None:
    """Log the type and place of an error, not its message, which may hold a file name or a tag."""
    log.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
