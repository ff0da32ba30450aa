"""``covid-xct check``: is a model any good here, how many pictures tell, and settings fitted to this place."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .. import hub_folder
from ..refused import Refused
from ..screener import Screener, sites_of
from . import planning, report, writing
from .adapt import adapt as fit_settings
from .cases import Material, judge


def check(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="labelled pictures: folder, zip, DICOM with a table, datasets folder, as [NAME=]PATH"
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="xray or ct (embedded), a hub folder, or a Hub id")] = "ct",
    out: Annotated[Path | None, typer.Option(help="folder for the report")] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="a column: figures for each of its values, too")
    ] = None,
    labels: Annotated[list[str] | None, typer.Option(help="further class name, as Normal=Non-COVID")] = None,
    changes: Annotated[
        int, typer.Option(min=0, help="pictures on which harmless changes are tried; 0 for none")
    ] = report.CHANGED,
    prevalence: Annotated[float | None, typer.Option(help="share of COVID-19 where you are")] = None,
    adapt: Annotated[bool, typer.Option("--adapt", help="fit local settings too; writes site.json")] = False,
    site: Annotated[Path | None, typer.Option(help="check the model with these local settings")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="say how many pictures a check needs")] = False,
    sensitivity: Annotated[float, typer.Option(help="of the plan: what is expected")] = 0.9,
    specificity: Annotated[
        float | None, typer.Option(help="of the plan; by default as the sensitivity")
    ] = None,
    width: Annotated[float, typer.Option(help="of the plan: of the interval, from end to end")] = 0.1,
    seed: Annotated[int, typer.Option(help="of the bootstrap and of the draws")] = 0,
    revision: Annotated[str | None, typer.Option(help="revision of a Hub id")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
) -> dict[str, Any]:
    """Check a model on labelled pictures of your own, or plan such a check; writes a page and its figures.

    Everything stays on this machine. The page holds no picture and no file name; the worst errors are in
    a folder beside it.
    """
    if plan:
        return _say_plan(planning.plan(sensitivity, width, prevalence, specificity), as_json)
    if not data or out is None:
        raise Refused(
            "Give labelled pictures and a folder for the report: covid-xct check DATA --model ct --out report. Or say "
            "--plan to be told how many pictures it takes."
        )
    if prevalence is not None and not 0 < prevalence < 1:
        raise Refused(f"--prevalence is a number between 0 and 1; got {prevalence:g}.")
    writing.check_place(out)
    folder = hub_folder.load(model, revision)
    screener = Screener(folder, site=sites_of([folder], [site] if site else ())[0])
    material = _judged(data, screener, labels)
    settings = report.Settings(tuple(by or ()), changes, prevalence, seed)
    fitted = fit_settings(material, screener, seed)[0] if adapt else None  # first: it may be refused
    console = Console(stderr=True, highlight=False, markup=False)
    told = report.examine(material, screener, settings, lambda step: console.print(f"{step} ..."))
    writing.write(out, told, material, screener, fitted, settings.by)
    if as_json:
        print(json.dumps(told, ensure_ascii=False))
    else:
        _say(told, fitted, out, console)
    return told


def _judged(data: list[str], screener: Screener, labels: list[str] | None) -> Material:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("judging", total=None)
        return judge(
            data, screener, labels, lambda done, total: progress.update(task, completed=done, total=total)
        )


def _say(told: dict[str, Any], fitted: dict[str, Any] | None, out: Path, console: Console) -> None:
    """Print the main results for the user."""
    for line in told["first"]:
        console.print(line, soft_wrap=True)
    console.print(told["verdict"]["sentence"], soft_wrap=True)
    for line in told["verdict"]["limits"]:
        console.print(f"- {line}", soft_wrap=True)
    if fitted:
        for line in fitted["figures"]["words"]:
            console.print(f"Local settings. {line}", soft_wrap=True)
        console.print(f"Use them: covid-xct score PICTURES --site {out / writing.SITE}", soft_wrap=True)
    console.print(f"The report: {out / writing.PAGE}", soft_wrap=True)


def _say_plan(told: dict[str, Any], as_json: bool) -> dict[str, Any]:
    if as_json:
        print(json.dumps(told))
        return told
    table = Table(title=f"Patients of a class for a 95 % interval {told['width']:g} wide (exact binomial)")
    for name in ("share expected", "patients", "right answers", "interval"):
        table.add_column(name, justify="right")
    for row in told["rows"]:
        table.add_row(
            f"{row['share']:g}", f"{row['n']:,}", f"{row['hits']:,}", f"{row['low']:.3f} to {row['high']:.3f}"
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{told['covid']:,} patients with COVID-19 (sensitivity {told['sensitivity']:g}) and {told['others']:,} "
        "without "
        f"(specificity {told['specificity']:g}), one picture each.",
        soft_wrap=True,
    )
    if told["consecutive"]:
        console.print(
            f"Where {100 * told['prevalence']:g} % have it, that is about {told['consecutive']:,} patients in a row.",
            soft_wrap=True,
        )
    return told
