"""Fit the input guard on what the network saw of the training pictures, and measure it on others."""

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from rich.progress import track
from sklearn.linear_model import LogisticRegression

from hub_model.check.files import read_bytes
from hub_model.check.labels import Row
from hub_model.check.metrics import Record, mean
from hub_model.check.sources import ANOTHER_MODALITY, open_sources
from hub_model.grey import ImageRefused
from hub_model.guard import Guard, Statistics, is_blank
from hub_model.hub_folder import HubFolder
from hub_model.images import read_image

from .foreign import foreign_pictures
from .predict import Predictions, run

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

COMPONENTS = 48
AT_MOST = 320
"""Training pictures used; as many of each source as there are, or an equal share."""
TEACH_A_KIND, MEASURE_A_KIND = 50, 25
OTHER_TEACH, OTHER_MEASURE = 150, 60
"""Pictures of the other modality, where the data hold any."""
FALSE_REFUSALS = 0.01
"""Share of validation pictures that the limits refuse at most."""
UNSEEN_REFUSALS = 0.01
"""Share of the pictures of a source that the guard did not see, which the limits refuse at most."""
SLACK = 1.15
"""Factor on the limits of both distances where there is but one source, so that none can be left out to measure it."""
MIN_SOURCE = 15
"""A source of fewer training pictures cannot be left out: its 99th percentile means nothing."""
LARGEST_OOD = 0.999
"""Limit of the taught score at most: no limit may let everything pass."""


@dataclass(frozen=True)
class Seen:
    """What the network saw of training pictures, of altered copies of them, and of pictures to refuse.

    Attributes:
        own, copies: (N, D) features.
        sources, families: (N,) str.
        foreign: (M, D) features.
    """

    own: np.ndarray
    copies: np.ndarray
    sources: np.ndarray
    families: np.ndarray
    foreign: np.ndarray

    def statistics(self, without: Sequence[str] = ()) -> Statistics:
        """Describe the training pictures, those of some sources left out."""
        known = ~np.isin(self.sources, without)
        return _statistics(np.concatenate([self.own[known], self.copies[known]]), self.foreign)


class LeftOut:
    """Guards that were fitted without one or two of the training sources: what pictures of a new collection meet.

    Attributes:
        names: the sources that can be left out; none where there is only one.
        fitted: (source,) or (source, source) -> statistics without them.
    """

    def __init__(self, seen: Seen) -> None:
        sources, counts = np.unique(seen.sources, return_counts=True)
        names = [str(source) for source, count in zip(sources, counts, strict=True) if count >= MIN_SOURCE]
        self.seen, self.names = seen, names if len(names) > 1 else []
        sizes = (1, 2) if len(self.names) > 2 else (1,)  # without both of two sources nothing would be left
        pairs = (pair for size in sizes for pair in itertools.combinations(self.names, size))
        self.fitted = {pair: seen.statistics(pair) for pair in pairs}

    def limits(self, of: Statistics, held_out: np.ndarray, without: tuple[str, ...] = ()) -> dict[str, float]:
        """Set the limits of a guard; see `fit_guard`.

        Args:
            of: its statistics.
            held_out: (n, D) features of validation pictures.
            without: the sources that it does not know.
        """
        found = [_quantiles(of.scores(held_out), FALSE_REFUSALS)]
        rest = [name for name in self.names if name not in without]
        if len(rest) < 2:
            found[0]["distance"] *= SLACK
            found[0]["residual"] *= SLACK
        else:
            each = []
            for name in rest:
                unseen = self.fitted[tuple(sorted((*without, name), key=self.names.index))]
                own = self.seen.own[self.seen.sources == name]
                each.append(_quantiles(unseen.scores(own), UNSEEN_REFUSALS))
            # the taught score is left at what was seen: beyond it, pictures to refuse would pass
            highest = {name: max(row[name] for row in each) for name in each[0]}
            beyond = {name: further([row[name] for row in each]) for name in ("distance", "residual")}
            found.append({**highest, **beyond})
        highest = {score: max(row[score] for row in found) for score in found[0]}
        return {**highest, "foreign": min(LARGEST_OOD, max(0.5, highest["foreign"]))}

    def refusals(self, validation: Predictions, seed: int) -> dict[str, Record]:
        """Measure how often each source is refused by a guard that was fitted, limits and all, without it."""
        found = {}
        for name in self.names:
            held_out = validation.features[validation.sources != name]
            if not len(held_out):  # all of validation is of this source: no limits could be set without it
                continue
            without, mask = self.fitted[(name,)], self.seen.sources == name
            limits = self.limits(without, held_out, (name,))
            scores = without.scores(self.seen.own[mask])
            refused = np.any([scores[key] > limit for key, limit in limits.items()], axis=0)
            found[name] = mean("refused", refused, self.seen.families[mask], seed)
        return found


@dataclass(frozen=True)
class Fitted:
    """A fitted guard.

    Attributes:
        tensors: for ``guard.safetensors``.
        limits: for ``screening.json``.
        unseen_source: false refusals of each source by a guard that was fitted, limits and all, without it.
        other: pictures of the other modality that took no part in fitting.
    """

    tensors: dict[str, Any]
    limits: dict[str, float]
    unseen_source: dict[str, Record]
    other: list[Image.Image]


def fit_guard(
    folder: HubFolder, parts: "DatasetDict", data: Sequence[str], validation: Predictions, seed: int = 0
) -> Fitted:
    """Fit the guard of a network and say how often it would refuse sources that it has not seen.

    The limits of the three scores are the highest that two demands ask for: validation pictures are refused with
    FALSE_REFUSALS at most, and so would be, with UNSEEN_REFUSALS, those of one more source, judged by what the pictures
    of each source get from a guard fitted without it (see `further`).

    Args:
        folder: the trained network; its own guard, if any, is not used.
        parts: ``train`` of the network's modality.
        data: what was given as data, in which pictures of the other modality may lie.
        validation: predictions of the validation split.
        seed: for the made pictures and the choice of training pictures.
    """
    rng = np.random.default_rng(seed)
    chosen = parts["train"].select(balanced(parts["train"]["source"], AT_MOST, rng))
    reals = [row["image"].convert("L") for row in chosen]
    kinds = foreign_pictures(reals, folder.modality, TEACH_A_KIND, seed, teaching=True)
    teaching, measuring = other_modality(folder.modality, data, seed)
    made = [p for pictures in kinds.values() for p in pictures if not is_blank(p)] + teaching
    seen = _look(folder, chosen, reals, made, rng)
    whole, left_out = seen.statistics(), LeftOut(seen)
    return Fitted(
        tensors={**vars(whole), "basis": whole.basis.astype(np.float16)},
        limits=left_out.limits(whole, validation.features),
        unseen_source=left_out.refusals(validation, seed),
        other=measuring,
    )


def _look(
    folder: HubFolder,
    rows: "Dataset",
    reals: list[Image.Image],
    made: list[Image.Image],
    rng: np.random.Generator,
) -> Seen:
    """Show the network the training pictures (`reals`, of `rows`), a copy of each, and pictures to refuse.

    What the preprocessing refuses teaches nothing, and is left out.
    """
    shaken = [_shake(image, rng) for image in reals]
    _, own = run(folder, track(reals, "guard: training pictures", transient=True))
    _, copies = run(folder, track(shaken, "guard: altered training pictures", transient=True))
    _, foreign = run(folder, track(made, "guard: pictures to refuse", transient=True))
    usable = np.isfinite(own).all(1) & np.isfinite(copies).all(1)
    sources, families = np.array(rows["source"]), np.array(rows["family"])
    own, copies, sources, families = (each[usable] for each in (own, copies, sources, families))
    return Seen(own, copies, sources, families, foreign[np.isfinite(foreign).all(1)])


def further(limits: Sequence[float]) -> float:
    """Estimate how far the limit of a new source may lie out, from the limits of the sources left out in turn.

    The largest of n would be passed by one source in n + 1. Going beyond it by its distance from the next is the
    estimate of where a distribution ends (Robson & Whitlock 1964, Biometrika 51:33-39). Of two sources, one left out
    leaves a guard that knows the other alone: what that says is too rough to go beyond.

    Args:
        limits: one a source.
    """
    *_, next_to, largest = [-np.inf, *sorted(limits)]
    return largest if len(limits) < 3 else largest + (largest - next_to)


def balanced(sources: Sequence[str], count: int, rng: np.random.Generator) -> np.ndarray:
    """Choose at most `count` rows, in order: all of the small sources, equal numbers of the others."""
    sources, order = np.asarray(sources), rng.permutation(len(sources))
    names, left, chosen = sorted(set(sources), key=lambda name: (sources == name).sum()), count, []
    for place, name in enumerate(names):
        mine = order[sources[order] == name][: left // (len(names) - place)]
        chosen.append(mine)
        left -= len(mine)
    return np.sort(np.concatenate(chosen))


def _statistics(own: np.ndarray, foreign: np.ndarray) -> Statistics:
    """Fit the statistics to features of own pictures (N, D) and of foreign ones (M, D)."""
    center, scale = own.mean(0), own.std(0).clip(1e-4)
    z = (own - center) / scale
    _, singular, basis = np.linalg.svd(z, full_matrices=False)
    k = min(COMPONENTS, len(basis))
    x, y = np.concatenate([z, (foreign - center) / scale]), np.r_[np.zeros(len(z)), np.ones(len(foreign))]
    taught = LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000).fit(x, y)
    # in halves, as it is stored: the basis is most of the file
    basis, deviation = basis[:k].astype(np.float16), (singular[:k] / len(z) ** 0.5).clip(1e-4)
    found = (center, scale, basis, deviation, taught.coef_[0], taught.intercept_[0])
    return Statistics(*(np.asarray(value, np.float32) for value in found))


def _quantiles(scores: dict[str, np.ndarray], share: float) -> dict[str, float]:
    """Set limits that refuse this share, each of the scores taking an equal part of it."""
    return {
        name: float(np.quantile(values, 1 - share / len(scores), method="higher"))
        for name, values in scores.items()
    }


def other_modality(
    modality: str, data: Sequence[str], seed: int
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Draw pictures of the other modality, to teach and to measure; both empty where the data hold none.

    Neither labels nor splits matter here, so no fault of theirs can make the guard learn less. Pictures that their
    collection names as of one patient or alike are all on one side; a picture that cannot be read is passed over.
    """
    rows = [
        row
        for row in open_sources(list(data), modality)
        if row.skipped and row.skipped.startswith(ANOTHER_MODALITY)
    ]
    rng = np.random.default_rng(seed)
    names, member = np.unique([min(row.known, default=row.path) for row in rows], return_inverse=True)
    teaches = rng.random(len(names)) < OTHER_TEACH / (OTHER_TEACH + OTHER_MEASURE)
    order = rng.permutation(len(rows))
    return tuple(
        _read((rows[place] for place in order if teaches[member[place]] == side), count)
        for side, count in ((True, OTHER_TEACH), (False, OTHER_MEASURE))
    )


def _read(rows: Iterable[Row], count: int) -> list[Image.Image]:
    """Read the first `count` of the rows that can be read."""
    images = []
    for row in rows:
        if len(images) == count:
            break
        with contextlib.suppress(ImageRefused, OSError):
            images.append(read_image(read_bytes(row.ref), modality=row.modality))
    return images


def measure_guard(
    folder: HubFolder, test: "Dataset", found: Predictions, fitted: Fitted, seed: int = 0
) -> dict[str, Any]:
    """Measure how often the guard refuses real test pictures, and what it catches of each kind it should refuse.

    Returns:
        ``false_refusals``, a record over the test pictures, families resampled; ``false_refusals_by_source``;
        ``unseen_source``, see `Fitted`; ``caught``: kind -> record over as many made pictures, resampled one by one.
    """
    guard = Guard.of(folder)
    images = (row["image"].convert("L") for row in test.select_columns("image"))
    refused = refuses(folder, guard, images, found.features)
    rng = np.random.default_rng(seed + 1)
    rows = balanced(found.sources, AT_MOST, rng)
    reals = [row["image"].convert("L") for row in test.select(rows)]
    kinds = foreign_pictures(reals, folder.modality, MEASURE_A_KIND, seed, teaching=False)
    if fitted.other:
        kinds["other modality"] = iter(fitted.other)
    caught = {}
    for kind, made in track(kinds.items(), "guard: kinds of pictures to refuse", transient=True):
        pictures = list(made)
        _, features = run(folder, pictures)
        hits = refuses(folder, guard, pictures, features)
        caught[kind] = mean("caught", hits, np.arange(len(hits)), seed)
    return {
        "false_refusals": mean("refused", refused, found.families, seed),
        "false_refusals_by_source": {
            str(source): mean("refused", refused[mask], found.families[mask], seed)
            for source in np.unique(found.sources)
            if (mask := found.sources == source).any()
        },
        "unseen_source": fitted.unseen_source,
        "caught": caught,
    }


def refuses(
    folder: HubFolder, guard: Guard | None, images: Iterable[Image.Image], features: np.ndarray
) -> np.ndarray:
    """Say which pictures (n,) get no answer in use: blank ones, those without lungs, and what the guard refuses.

    Args:
        folder: a hub folder, perhaps with a network that finds lungs.
        guard: its guard, if it has one.
        images: the n grey pictures.
        features: (n, D), what the network saw of them.
    """
    refused = guard.out_of_distribution(features) > 1 if guard else np.zeros(len(features), bool)
    useless = [
        is_blank(image) or bool(folder.finder and not folder.finder.find(image).found) for image in images
    ]
    return refused | np.array(useless, bool)


def _shake(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Make a copy as another hospital might have sent it: other window, sharpness, margin and a slight tilt."""
    image = image.rotate(float(rng.uniform(-8, 8)), Image.Resampling.BILINEAR)
    left, top, right, bottom = rng.uniform(-0.06, 0.1, 4)
    box = (left * image.width, top * image.height, (1 - right) * image.width, (1 - bottom) * image.height)
    image = image.crop(tuple(round(edge) for edge in box))
    image = ImageEnhance.Contrast(image).enhance(float(rng.uniform(0.7, 1.4)))
    image = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.75, 1.3)))
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.5))))
