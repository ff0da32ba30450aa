"""One picture to one finding, whichever model it is for."""

import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hub_model import Finding, FolderRefused, ImageRefused, Screener, read_image

DETECT = "detect"
log = logging.getLogger("covid_xct.demo")


@dataclass(frozen=True)
class Judgement:
    """A finding, and which model gave it.

    Attributes:
        finding: None where the server failed or it could not be told which model to ask.
        screener: None where no model took the picture.
        problem: key of the text that says why there is no finding.
        tied: another model would have taken the picture as well; it lay nearer to this one's.
    """

    finding: Finding | None
    screener: Screener | None = None
    problem: str | None = None
    tied: bool = False

    @property
    def decision(self) -> str:
        return self.finding.decision if self.finding else "refused"


def judge(
    screeners: Mapping[str, Screener],
    source: Any,
    kind: str,
    operating_point: str,
    *,
    frame: int | None = None,
    heat_map: bool = True,
) -> Judgement:
    """Screen one picture; whatever happens, there is an answer.

    Args:
        screeners: by modality.
        source: what `read_image` takes, or a function that fetches it.
        kind: ``xray``, ``ct``, or ``detect``: the model whose guard accepts the picture; where both do, the
            one to whose training images it lies nearer.
        operating_point: name of one; a model that lacks it uses its first.
        frame: which frame of a file with several.
        heat_map: also say where the model looked.
    """
    asked = [screeners[kind]] if kind in screeners else list(screeners.values())
    try:
        given = [_screen(screener, source, operating_point, frame, heat_map) for screener in asked]
        accepted = [judgement for judgement in given if judgement.decision != "refused"]
        if len(accepted) > 1:
            return _nearest(accepted)
    except Exception as error:
        # the message may hold a file name or a tag: say where, not what
        log.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
        return Judgement(None, problem="failed")
    return accepted[0] if accepted else _refused(given)


def _screen(
    screener: Screener, source: Any, operating_point: str, frame: int | None, heat_map: bool
) -> Judgement:
    point = (
        operating_point
        if operating_point in screener.operating_points
        else next(iter(screener.operating_points))
    )
    try:
        image = read_image(source() if callable(source) else source, frame=frame, modality=screener.modality)
    except ImageRefused as refusal:
        threshold = screener.operating_points[point]["threshold"]
        return Judgement(
            Finding("refused", None, point, threshold, screener.modality, (refusal.reason,)), screener
        )
    return Judgement(screener.screen(image, operating_point=point, heat_map=heat_map), screener)


def _nearest(accepted: Sequence[Judgement]) -> Judgement:
    """Of models that all take a picture, the one whose guard finds it the least foreign."""
    image = accepted[0].finding.image
    try:
        far = [judgement.screener.out_of_distribution_score(image) for judgement in accepted]
    except FolderRefused:  # a model without a guard takes everything
        return Judgement(None, problem="ambiguous")
    return replace(accepted[far.index(min(far))], tied=True)


def _refused(given: Sequence[Judgement]) -> Judgement:
    """One refusal out of several: the reasons of all, each once, and whatever picture could be read."""
    # that a CT slice is no X-ray is no news where the CT model has another reason to refuse it
    telling = [one for one in given if _codes(one) != {"other_modality"}] or given
    if len(telling) == 1:
        return telling[0]
    findings = [judgement.finding for judgement in telling]
    reasons = tuple(dict.fromkeys(reason for finding in findings for reason in finding.reasons))
    image = next((finding.image for finding in findings if finding.image is not None), None)
    return Judgement(replace(findings[0], reasons=reasons, image=image))


def _codes(judgement: Judgement) -> set[str]:
    return {getattr(reason, "code", "") for reason in judgement.finding.reasons}
