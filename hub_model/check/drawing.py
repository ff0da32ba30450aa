"""Pictures of figures as SVG that a page takes in: no script, no font, colours of the page, dark or light."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

SIDE, MARGIN = 260, 38
ROW, LABELS, SPAN = 26, 250, 340


def _square(title: str, x: str, y: str, inside: str) -> str:
    """Draw a square plot whose two axes are shares from 0 to 1."""
    ends = MARGIN + SIDE
    lines = "".join(
        f'<line x1="{_x(v):.1f}" y1="{_y(0):.1f}" x2="{_x(v):.1f}" y2="{_y(1):.1f}" class="grid"/>'
        f'<line x1="{_x(0):.1f}" y1="{_y(v):.1f}" x2="{_x(1):.1f}" y2="{_y(v):.1f}" class="grid"/>'
        f'<text x="{_x(v):.1f}" y="{ends + 15}" text-anchor="middle">{v:g}</text>'
        f'<text x="{MARGIN - 6}" y="{_y(v) + 4:.1f}" text-anchor="end">{v:g}</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        f'<svg viewBox="0 0 {ends + 14} {ends + 36}" role="img" aria-label="{escape(title)}">'
        f"{lines}{inside}"
        f'<text x="{MARGIN + SIDE / 2}" y="{ends + 32}" text-anchor="middle">{escape(x)}</text>'
        f'<text x="12" y="{MARGIN + SIDE / 2}" text-anchor="middle" transform="rotate(-90 12 {MARGIN + SIDE / 2})">'
        f"{escape(y)}</text></svg>"
    )


def _x(share: float) -> float:
    return MARGIN + SIDE * share


def _y(share: float) -> float:
    return MARGIN + SIDE * (1 - share)


def roc(curve: Sequence[Sequence[float]], points: Mapping[str, Mapping[str, Any]], area: str) -> str:
    """Draw the ROC curve, with the operating points on it."""
    path = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in curve)
    marks = "".join(
        f'<circle cx="{_x(1 - row["specificity"]["value"]):.1f}" cy="{_y(row["sensitivity"]["value"]):.1f}" r="4" '
        f'class="mark"/><text x="{_x(1 - row["specificity"]["value"]) + 8:.1f}" '
        f'y="{_y(row["sensitivity"]["value"]) + 14 + 13 * place:.1f}">{escape(name)}</text>'
        for place, (name, row) in enumerate(points.items())
        if None not in (row["sensitivity"]["value"], row["specificity"]["value"])
    )
    chance = f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" class="chance"/>'
    title = f"ROC curve: area {area}; the operating points are marked"
    inside = f'{chance}<polyline points="{path}" class="curve"/>{marks}'
    return _square(title, "1 - specificity", "sensitivity", inside)


def reliability(bins: Sequence[Mapping[str, float]]) -> str:
    """Draw the observed share of COVID-19 against the mean probability, in bins of equal count."""
    places = [(_x(row["probability"]), _y(row["share"])) for row in bins]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="mark"/>' for x, y in places)
    chance = f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" class="chance"/>'
    said = "; ".join(f"{row['probability']:.2f}: {row['share']:.2f}" for row in bins)
    inside = f'{chance}<polyline points="{path}" class="curve"/>{marks}'
    return _square(
        f"Reliability, probability and observed share: {said}", "probability", "observed share", inside
    )


def whiskers(rows: Sequence[tuple[str, Sequence[tuple[str, Mapping[str, Any] | None]]]], title: str) -> str:
    """Draw figures with their intervals on one axis from 0 to 1.

    Args:
        rows: label of a row, and its figures: class of the mark ("here", "card") and record.
        title: for those who cannot see it.
    """
    drawn, y = [], 14
    for label, marks in rows:
        drawn.append(f'<text x="{LABELS - 10}" y="{y + 4}" text-anchor="end">{escape(label)}</text>')
        for shift, (kind, figure) in zip((-4, 4), marks, strict=False):
            if figure is None or figure["value"] is None:
                continue
            low = figure["low"] if figure["low"] is not None else figure["value"]
            high = figure["high"] if figure["high"] is not None else figure["value"]
            x, start, end = (LABELS + SPAN * min(max(value, 0), 1) for value in (figure["value"], low, high))
            drawn.append(
                f'<line x1="{start:.1f}" y1="{y + shift}" x2="{end:.1f}" y2="{y + shift}" class="whisker {kind}"/>'
                f'<circle cx="{x:.1f}" cy="{y + shift}" r="3.5" class="{kind}"/>'
            )
        y += ROW
    axis = "".join(
        f'<line x1="{LABELS + SPAN * v}" y1="0" x2="{LABELS + SPAN * v}" y2="{y - 6}" class="grid"/>'
        f'<text x="{LABELS + SPAN * v}" y="{y + 10}" text-anchor="middle">{v:g}</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        f'<svg viewBox="0 0 {LABELS + SPAN + 16} {y + 16}" role="img" aria-label="{escape(title)}">'
        f"{axis}{''.join(drawn)}</svg>"
    )
