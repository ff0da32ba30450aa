"""The report as one page that needs nothing else: styles and plots are in it, and no script."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from . import drawing
from .report import COMPARED, USABLE

TEMPLATES = Path(__file__).parent / "templates"


def span(figure: Mapping[str, Any] | None, percent: bool = False) -> str:
    """Spell a record with its interval."""
    if figure is None or figure["value"] is None:
        return "not defined"

    def spelt(value: float) -> str:
        return f"{100 * value:.0f}" if percent else f"{value:.3f}"

    ends = "" if figure["low"] is None else f" ({spelt(figure['low'])} to {spelt(figure['high'])})"
    return f"{spelt(figure['value'])}{' %' if percent else ''}{ends}"


def render(
    told: Mapping[str, Any],
    adapted: Mapping[str, Any] | None = None,
    errors: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Render the report.

    Args:
        told: the contents of ``check.json``.
        adapted: of a ``site.json``, where local settings were fitted.
        errors: rows of the worst errors, whose pictures lie in the folder errors; none where nothing is kept.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    point = next(iter(told["figures"]["at"]))
    return environment.get_template("report.html").render(
        told=told, span=span, rows=_rows(told), plots=_plots(told, point), first_point=point, usable=USABLE,
        errors=errors, adapted=_adapted(adapted),
    )  # fmt: skip


def _rows(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List every figure with its label, the card's figure, and their difference in words."""
    compared = {(row["point"], row["figure"]): row for row in told["against_card"]}
    wanted = [(None, name) for name in ("auroc", "ece", "brier")]
    wanted += [(point, name) for point in told["figures"]["at"] for name in ("sensitivity", "specificity")]
    rows = []
    for point, name in wanted:
        here = told["figures"]["at"][point][name] if point else told["figures"][name]
        row = compared.get((point, name))
        label, more = COMPARED[name]
        kind = ""
        if row and row["difference"]["more_than_chance"]:
            kind = "better" if (row["difference"]["value"] > 0) == more else "worse"
        rows.append(
            {"label": f"{label} at {point}" if point else label, "here": here, "card": row and row["card"],
             "words": row and row["words"], "kind": kind}
        )  # fmt: skip
    return rows


def _plots(told: Mapping[str, Any], point: str) -> dict[str, str]:
    rows = [(row["label"], [("here", row["here"]), ("card", row["card"])]) for row in _rows(told)]
    plots = {
        "figures": drawing.whiskers(
            rows, "Figures here and on the card with intervals; the table below has the numbers"
        ),
        "roc": drawing.roc(told["figures"]["curve"], told["figures"]["at"], span(told["figures"]["auroc"])),
        "reliability": drawing.reliability(told["figures"]["calibration"]["bins"]),
    }
    if told["changes"]:
        changes = [(row["change"], [("here", row["flips"][point])]) for row in told["changes"]["rows"]]
        plots["changes"] = drawing.whiskers(changes, "Share of answers that flip by each harmless change")
    return plots


def _adapted(site: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Collect what the page says of fitted settings; None where none were fitted."""
    if site is None:
        return None
    before, after = site["figures"]["before"], site["figures"]["after"]
    rows = [
        {"label": COMPARED[name][0], "before": before[name], "after": after[name]}
        for name in ("auroc", "ece", "brier")
    ]
    for point in after["at"]:
        rows += [
            {"label": f"{COMPARED[name][0]} at {point}", "after": after["at"][point][name],
             "before": before["at"][point][name] if point in before["at"] else None}
            for name in ("sensitivity", "specificity")
        ]  # fmt: skip
    return {"rows": rows, "words": site["figures"]["words"], "fitted_on": site["data"]["fitted_on"],
            "measured_on": site["data"]["measured_on"]}  # fmt: skip
