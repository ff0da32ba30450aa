"""One answer for a CT series: slices that show a lung are judged, and a rule that was measured on patients joins them.

The rule, how it did on patients, and on how many slices each, lie in the model's folder (`python -m train patients`).
It was measured on series of up to a certain number of slices. How often it errs on longer ones is unknown, so the
finding gives no probability for them and says so: among three hundred slices the highest is high by chance.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .decision import NEGATIVE, POSITIVE, REFUSED, decide
from .grey import ImageRefused
from .refused import Reason
from .volumes import Unusable, Volume, read_volume

UNMEASURED = "unmeasured"
"""The decision where the slices are judged and nothing measured says what they mean for the patient."""
NO_LUNG = ("no_lung", "blank")
"""Codes of slices that are no part of the answer: they show no lung."""
TOP = 3
RULES: dict[str, Callable[[np.ndarray], float]] = {
    "mean": lambda p: float(p.mean()),
    "mean of the top 3": lambda p: float(np.sort(p)[-TOP:].mean()),
    "highest": lambda p: float(p.max()),
    "noisy-or": lambda p: float(1 - np.exp(np.log1p(-np.minimum(p, 1 - 1e-12)).sum())),
}
"""From the probabilities of a patient's slices to one number in 0..1, the plainest rule first."""

SERIES_NO_LUNG = Reason("No slice of the series shows a lung. Give a CT of the chest.", "series_no_lung")
SERIES_REFUSED = Reason("No slice of the series could be judged.", "series_refused")
NO_SERIES_RULE = Reason(
    "For this model no rule for a whole series was fitted on patients, so only its slices are answered for. Fit one: "
    "`python -m train patients`.",
    "no_series_rule",
)


class Screens(Protocol):
    """What of a `Screener` is needed here."""

    modality: str
    screening: dict[str, Any]
    operating_points: dict[str, dict[str, Any]]

    def screen_many(self, sources: Any, operating_point: str | None = None, heat_map: bool = False,
                    **options: Any) -> Iterator[Any]: ...  # fmt: skip


@dataclass(frozen=True)
class SliceFinding:
    """A slice of a series: its number from 1, its place in mm where the file says it, and its `Finding`."""

    number: int
    position: float | None
    finding: Any

    @property
    def probability(self) -> float | None:
        return self.finding.probability

    @property
    def shows_lung(self) -> bool:
        return not set(NO_LUNG) & set(self.finding.codes)

    def to_dict(self) -> dict[str, Any]:
        """Return `Finding.to_dict` with number and place."""
        return {"slice": self.number, "position": self.position, **self.finding.to_dict()}


@dataclass(frozen=True)
class SeriesFinding:
    """What the model says of a CT series.

    Attributes:
        name: of the file, or of the folder of the series.
        decision: as of a `Finding`, or ``unmeasured``: the slices are judged, but how the rule for a whole series
            errs on so many slices, or at all, was never measured; ``reasons`` say which.
        probability: P(COVID) of the patient by the model's rule; None where refused or unmeasured.
        operating_point: name of the operating point used.
        threshold: of the rule's value where there is one, else of single slices.
        rule: a name in `RULES`; None where the model has none.
        measured: sensitivity and specificity per patient at this operating point, with intervals, and on what they
            were measured; None where nothing was.
        reasons: why it was refused or not decided.
        slices: every slice from the head down, those without a lung among them.
        notes: what the volume says of itself: gaps, double slices, localizers left out.
        volume: the slices' pictures, for `picture`.
    """

    name: str
    decision: str
    probability: float | None
    operating_point: str
    threshold: float
    modality: str
    rule: str | None = None
    measured: Mapping[str, Any] | None = field(default=None, repr=False)
    reasons: tuple[str, ...] = ()
    slices: tuple[SliceFinding, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    volume: Volume | None = field(default=None, repr=False, compare=False)

    @property
    def judged(self) -> tuple[SliceFinding, ...]:
        """Slices with a probability, the most suspicious first."""
        found = [one for one in self.slices if one.probability is not None]
        return tuple(sorted(found, key=lambda one: -one.probability))

    @property
    def positive(self) -> int:
        """Number of slices that are positive by themselves."""
        return sum(one.finding.decision == POSITIVE for one in self.slices)

    @property
    def without_lung(self) -> int:
        """Number of slices that show no lung and were left out."""
        return sum(not one.shows_lung for one in self.slices)

    @property
    def codes(self) -> tuple[str, ...]:
        """Names of the reasons."""
        return tuple(getattr(reason, "code", "") for reason in self.reasons)

    def to_dict(self, *, per_slice: bool = False) -> dict[str, Any]:
        """Return everything but pictures, in types that JSON has; the slices if wanted."""
        first = self.judged[:1]
        told = {
            "name": self.name,
            "decision": self.decision,
            "probability": self.probability,
            "operating_point": self.operating_point,
            "threshold": self.threshold,
            "modality": self.modality,
            "rule": self.rule,
            "measured": dict(self.measured) if self.measured else None,
            "reasons": [str(reason) for reason in self.reasons],
            "codes": list(self.codes),
            "notes": [str(note) for note in self.notes],
            "slices": len(self.slices),
            "judged": len(self.judged),
            "positive": self.positive,
            "without_lung": self.without_lung,
            "most_suspicious": first[0].number if first else None,
            "highest": first[0].probability if first else None,
        }
        if per_slice:
            told["per_slice"] = [one.to_dict() for one in self.slices]
        return told

    def to_json(self, *, per_slice: bool = False) -> str:
        """Return `to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(per_slice=per_slice), ensure_ascii=False)

    def picture(self) -> Image.Image:
        """Draw the probability along the body, the most suspicious slices, and slices from head to foot."""
        return draw(self)


def screen_volume(
    screener: Screens, source: Any, point: str, series: int | None, batch_size: int, workers: int
) -> SeriesFinding:
    """Judge one series: see `Screener.screen_series`.

    Args:
        screener: of modality ct.
        source: what `read_volume` takes, or a `Volume`.
        point: name of the operating point.
        series: which one, where the source holds several.
        batch_size, workers: of `Screener.screen_many`.
    """
    try:
        volume = source if isinstance(source, Volume) else read_volume(source, series=series)
    except ImageRefused as refusal:
        return refused(screener, "", refusal.reason, point)
    return concluded(
        screener, volume, list(judged(screener, volume, point, False, batch_size, workers)), point
    )


def of_volume(
    screener: Screens, one: Volume | Unusable, point: str, batch_size: int, workers: int
) -> SeriesFinding:
    """Judge a volume that `read_volumes` gave; refuse one that cannot be used."""
    if isinstance(one, Unusable):
        return refused(screener, one.name, one.reason, point)
    return concluded(screener, one, list(judged(screener, one, point, False, batch_size, workers)), point)


def refused(screener: Screens, name: str, reason: Reason, point: str) -> SeriesFinding:
    """Return the finding of a series that is refused."""
    threshold = screener.operating_points[point]["threshold"]
    return SeriesFinding(name, REFUSED, None, point, threshold, screener.modality, reasons=(reason,))


def judged(
    screener: Screens, volume: Volume, point: str, heat_map: bool, batch_size: int, workers: int
) -> Iterator[SliceFinding]:
    """Judge the slices of a volume one after the other; a few of them are in memory at a time.

    Pictures are kept only together with heat maps: whoever shows one needs both.
    """
    found = screener.screen_many(
        volume.slices.readers, point, heat_map, batch_size=batch_size, workers=workers, keep_images=heat_map
    )
    places = volume.positions or [None] * len(volume)
    for number, (place, finding) in enumerate(zip(places, found, strict=True), start=1):
        yield SliceFinding(number, place, finding)


def concluded(screener: Screens, volume: Volume, slices: Sequence[SliceFinding], point: str) -> SeriesFinding:
    """Conclude what the slices of a volume mean for the patient, by the rule that the model's folder has.

    Args:
        screener: whose folder that is.
        volume: the series.
        slices: its slices, as `judged` gives them.
        point: name of the operating point.
    """

    def said(decision: str, reasons: tuple[str, ...] = (), **further: Any) -> SeriesFinding:
        told = {"probability": None, "threshold": screener.operating_points[point]["threshold"], **further}
        return SeriesFinding(
            volume.name, decision, operating_point=point, modality=screener.modality, reasons=reasons,
            slices=tuple(slices), notes=volume.notes, volume=volume, **told,
        )  # fmt: skip

    probabilities = np.array([one.probability for one in slices if one.probability is not None])
    if not len(probabilities):
        if not any(one.shows_lung for one in slices):
            return said(REFUSED, (SERIES_NO_LUNG,))
        common = Counter(reason for one in slices if one.shows_lung for reason in one.finding.reasons)
        return said(REFUSED, (SERIES_REFUSED, *(reason for reason, _ in common.most_common(1))))
    rule = rule_of(screener, point)
    if rule is None:
        return said(UNMEASURED, (NO_SERIES_RULE,))
    told = {"rule": rule["rule"], "measured": rule["points"][point].get("measured")}
    if len(probabilities) > rule["most_slices"]:
        return said(UNMEASURED, (_too_many(len(probabilities), rule["most_slices"]),), **told)
    value = RULES[rule["rule"]](probabilities)
    decision, reasons = decide(value, rule["points"][point])
    return said(decision, reasons, probability=value, threshold=rule["points"][point]["threshold"], **told)


def rule_of(screener: Screens, point: str) -> dict[str, Any] | None:
    """Find the rule for series in a model's folder; None where there is none, or one of other weights.

    Local settings change the slices' probabilities, and the rule was never measured on those: with them there is none.
    """
    rule = screener.screening.get("series")
    if (
        not rule
        or getattr(screener, "site", None)
        or rule["weights_sha256"] != screener.screening.get("weights_sha256")
    ):
        return None
    return rule if point in rule["points"] and rule["rule"] in RULES else None


def _too_many(count: int, most: int) -> Reason:
    return Reason(
        f"{count} slices were judged, and this model's answers for a whole series were measured on patients with at "
        f"most {most} slices. How it errs on more is not known, so no probability is given; look at the most "
        "suspicious slices.",
        "series_unmeasured",
        judged=count,
        most=most,
    )


# ---- the picture

WIDTH, MARGIN, PLOT = 960, 48, 220  # pixels
TILE, TILES = 144, 6  # of a suspicious slice; how many
SMALL, ROWS = 60, 3  # of a slice in the row from head to foot
PAPER, INK, FAINT = (255, 255, 255), (30, 41, 59), (203, 213, 225)
COLOURS = {POSITIVE: (194, 65, 12), NEGATIVE: (15, 118, 110)}
OTHER = (100, 116, 139)


def draw(found: SeriesFinding) -> Image.Image:
    """Draw a finding: the probability of each slice from head to feet, the most suspicious ones, and an overview."""
    columns = (WIDTH - MARGIN) // SMALL
    shown = np.unique(
        np.linspace(0, len(found.slices) - 1, min(len(found.slices), columns * ROWS)).astype(int)
    )
    rows = -(-len(shown) // columns) if len(found.slices) else 0
    top = PLOT + (TILE + 24 if found.judged else 0)
    page = Image.new("RGB", (WIDTH, top + rows * SMALL + 24), PAPER)
    pen = ImageDraw.Draw(page)
    _plot(pen, found)
    for place, one in enumerate(found.judged[:TILES]):
        left = MARGIN + place * (TILE + 6)
        page.paste(_tile(found, one, TILE), (left, PLOT))
        _frame(pen, left, PLOT, TILE, one)
        where = "" if one.position is None else f"  {one.position:.0f} mm"
        pen.text((left, PLOT + TILE + 3), f"{one.number}: {one.probability:.2f}{where}", INK, _font(12))
    for place, index in enumerate(shown):
        left, upper = MARGIN + place % columns * SMALL, top + place // columns * SMALL
        page.paste(_tile(found, found.slices[index], SMALL - 2), (left, upper))
        _frame(pen, left, upper, SMALL - 2, found.slices[index])
    return page


def _plot(pen: ImageDraw.ImageDraw, found: SeriesFinding) -> None:
    right, bottom, high = WIDTH - MARGIN, PLOT - 40, PLOT - 70
    for share in (0, 0.5, 1):
        level = bottom - share * high
        pen.line([(MARGIN, level), (right, level)], FAINT)
        pen.text((MARGIN - 28, level - 7), f"{share:.1f}", INK, _font(12))
    point = next((one.finding.threshold for one in found.slices), found.threshold)
    for left in range(MARGIN, right, 10):
        pen.line([(left, bottom - point * high), (left + 5, bottom - point * high)], OTHER)
    pen.text((MARGIN, 4), f"P(COVID) of each slice; dashed: threshold {point:.2f}", INK, _font(13))
    pen.text((MARGIN, PLOT - 34), "head", INK, _font(12))
    pen.text((right - 24, PLOT - 34), "feet", INK, _font(12))
    step = (right - MARGIN) / max(1, len(found.slices) - 1)
    for index, one in enumerate(found.slices):
        x = MARGIN + index * step
        if one.probability is None:
            pen.line([(x, bottom + 2), (x, bottom + 7)], FAINT if not one.shows_lung else OTHER, 2)
        else:
            y = bottom - one.probability * high
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], COLOURS.get(one.finding.decision, OTHER))


def _tile(found: SeriesFinding, one: SliceFinding, side: int) -> Image.Image:
    """Draw a slice, small; black where it cannot be read any more."""
    try:
        image = found.volume.slices[one.number - 1] if found.volume else Image.new("L", (side, side))
    except ImageRefused:
        image = Image.new("L", (side, side))
    image.thumbnail((side, side))
    tile = Image.new("RGB", (side, side))
    tile.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return tile


def _frame(pen: ImageDraw.ImageDraw, left: int, top: int, side: int, one: SliceFinding) -> None:
    colour = FAINT if one.probability is None else COLOURS.get(one.finding.decision, OTHER)
    pen.rectangle([left, top, left + side - 1, top + side - 1], outline=colour, width=2)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
