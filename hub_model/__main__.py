"""``covid-xct``: score pictures and look into models from a shell."""

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import hub_folder, scoring
from .refused import Refused
from .screener import BATCH, WORKERS, AutoScreener, Screener

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def score(
    paths: Annotated[
        list[Path], typer.Argument(help="pictures, zip or tar archives, or folders of them at any depth")
    ],
    model: Annotated[
        str, typer.Option(help="xray or ct (embedded), auto (whichever fits), a hub folder, or a Hub id")
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help=".csv, .jsonl or .parquet file; the same command goes on where a killed one stopped"
        ),
    ] = None,
    operating_point: Annotated[str | None, typer.Option(help="sensitivity, balanced or specificity")] = None,
    revision: Annotated[str | None, typer.Option(help="revision of a Hub id")] = None,
    json_lines: Annotated[
        bool, typer.Option("--json", help="on the terminal, one JSON object a line instead of CSV")
    ] = False,
    heat_maps: Annotated[
        Path | None, typer.Option(help="folder for pictures tinted by where the model looked")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="pictures that the network sees at once")] = BATCH,
    workers: Annotated[int, typer.Option(min=1, help="threads that read the next pictures")] = WORKERS,
    backend: Annotated[str, typer.Option(help="onnx or torch")] = "onnx",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; with torch any of its devices")] = "cpu",
) -> None:
    """Screen pictures: one row a file. A file that cannot be judged gets a row with decision "refused" and the reason.

    Exit code 1 where every file was refused.
    """
    if json_lines and out is not None:
        raise WrongOptions(
            "--json is for the terminal; the name of --out says what is written (.csv, .jsonl, .parquet)."
        )
    if model == "auto" and revision is not None:
        raise WrongOptions(
            f"--model auto means the models in this package, which have no revision {revision!r}. Name the Hub id that "
            "has it: --model org/name."
        )
    if model == "auto":
        screener = AutoScreener.from_pretrained(backend=backend, device=device)
    else:
        screener = Screener.from_pretrained(model, revision, backend, device)
    console = Console(stderr=True)
    columns = (TextColumn("screening"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("screening", total=None, rate="")

        def watch(tally: scoring.Tally) -> None:
            speed = progress.tasks[task].finished_speed or progress.tasks[task].speed or 0
            done = tally.decisions.total()
            progress.update(
                task,
                completed=done,
                total=max(done, tally.expected - tally.earlier),
                rate=f"{speed:.1f} a second",
            )

        tally = scoring.score(
            paths,
            screener,
            out,
            operating_point=operating_point,
            heat_maps=heat_maps,
            batch_size=batch_size,
            workers=workers,
            json_lines=json_lines,
            watch=watch,
        )
    console.print(scoring.told(tally), highlight=False)
    if scoring.all_refused(tally):
        raise typer.Exit(1)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="xray or ct (embedded), a hub folder, or a Hub id")],
    revision: Annotated[str | None, typer.Option(help="revision of a Hub id")] = None,
) -> None:
    """Say what a model is: modality, architecture, operating points and the figures they were chosen on (JSON)."""
    folder = hub_folder.load(model, revision)
    shown = {key: folder.screening.get(key) for key in ("modality", "calibrated", "operating_points")}
    shown["leaks"] = (folder.screening.get("provenance") or {}).get("split") == "random"
    shown["architecture"] = folder.config["architecture"]
    shown["input_size"] = folder.config["pretrained_cfg"]["input_size"]
    shown["stored_numbers"] = sum(math.prod(place.shape) for place in folder.weights().header.values())
    shown["path"] = str(folder.path)
    print(json.dumps(shown, indent=2))


@app.command()
def graph(
    folder: Annotated[Path, typer.Argument(help="hub folder that lacks model.onnx")],
) -> None:
    """Write model.onnx into an older hub folder, so that it screens without torch. Needs covid-xct[train]."""
    print(hub_folder.add_graph(folder) / hub_folder.GRAPH)


class WrongOptions(Refused):
    """Options that contradict each other."""


def main() -> None:
    try:
        app(prog_name="covid-xct")
    except (Refused, OSError) as error:
        Console(stderr=True, highlight=False, markup=False).print(f"Refused. {error}", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
