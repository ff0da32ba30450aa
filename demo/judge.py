"""From pictures to findings, whichever model they are for."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hub_model import AutoScreener, Finding, Frame, Refused, Screener

DETECT = "detect"
BATCH = 4
"""Pictures that a network sees at once; ten or so of them are in memory."""


@dataclass(frozen=True)
class Judgement:
    """A finding, and which model gave it.

    Attributes:
        finding: a refusal where the server failed or it could not be told which model to ask.
        screener: None where several models were asked and none took the picture.
    """

    finding: Finding
    screener: Screener | None = None

    @property
    def decision(self) -> str:
        return self.finding.decision

    @property
    def tied(self) -> bool:
        """Whether another model would have taken the picture as well; it lay nearer to this one's."""
        return bool(self.finding.also_fits)


def points(screeners: Mapping[str, Screener]) -> list[str]:
    """List the names of the operating points that any of the models has, in their order."""
    return list(dict.fromkeys(name for screener in screeners.values() for name in screener.operating_points))


def judge(
    screeners: Mapping[str, Screener],
    source: Any,
    kind: str,
    operating_point: str,
    *,
    frame: int | None = None,
    heat_map: bool = True,
) -> Judgement:
    """Screen one picture, as `judge_many` does."""
    return next(judge_many(screeners, [Frame(source, frame)], kind, operating_point, heat_map=heat_map))


def judge_many(
    screeners: Mapping[str, Screener],
    sources: Iterable[Any],
    kind: str,
    operating_point: str,
    *,
    heat_map: bool = True,
) -> Iterator[Judgement]:
    """Screen pictures in batches; every picture gets an answer, and an error in one does not stop the rest.

    Args:
        screeners: by modality, and further ones by name.
        sources: what `Screener.screen_many` takes.
        kind: a modality, the name of a further model, or ``detect``: the model of a modality whose guard accepts the
            picture; where several do, the one to whose training pictures it lies nearest (`AutoScreener`).
        operating_point: name of one.
        heat_map: also say where the model looked.

    Returns:
        Judgements in the order of the sources, as they are ready.

    Raises:
        Refused: there is no such kind or operating point.
    """
    models = chosen(screeners, kind, operating_point)
    asked = AutoScreener(models.values()) if len(models) > 1 else next(iter(models.values()))
    return (
        Judgement(finding, None if _nobodys(finding, asked) else models[finding.modality])
        for finding in asked.screen_many(sources, operating_point, heat_map, batch_size=BATCH)
    )


def defaults(screeners: Mapping[str, Screener]) -> dict[str, Screener]:
    """Return the default model for each modality: the one with the modality's name."""
    return {name: screener for name, screener in screeners.items() if name == screener.modality}


def chosen(screeners: Mapping[str, Screener], kind: str, operating_point: str) -> dict[str, Screener]:
    """Choose the models to ask, by modality.

    Raises:
        Refused: there is no such kind or operating point.
    """
    kinds = [DETECT, *screeners]
    if kind not in kinds:
        raise Refused(f"kind {_named(kind)} is not known. Accepted: {', '.join(kinds)}.")
    chosen = defaults(screeners) if kind == DETECT else {screeners[kind].modality: screeners[kind]}
    if operating_point not in (known := points(chosen)):
        raise Refused(
            f"operating_point {_named(operating_point)} is not known. Accepted: {', '.join(known)}."
        )
    return chosen


def _named(word: object) -> str:
    """Return the given word, shortened for an error message."""
    return repr(word) if len(repr(word)) <= 60 else f"{repr(word)[:60]}..."


def _nobodys(finding: Finding, asked: Screener | AutoScreener) -> bool:
    return finding.decision == "refused" and isinstance(asked, AutoScreener)
