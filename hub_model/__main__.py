"""``covid-xct``: score pictures, look into models and check them from a shell."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import hub_folder, scoring
from .refused import Refused
from .screener import BATCH, WORKERS

ENGINES = ("local", "ray")

NAMES = ", ".join(hub_folder.EMBEDDED)
CHECK = "check"


class Verbs(typer.core.TyperGroup):
    """The commands. `check` is known by its line of help; its module, and the packages of the extra `check`, are
    imported only when it is run.
    """

    def list_commands(self, ctx: typer.Context) -> list[str]:
        """List the names of all commands, `check` among them."""
        return [*super().list_commands(ctx), CHECK]

    def get_command(self, ctx: typer.Context, name: str) -> Any:
        """Find a command; for `check` return a stand-in with its line of help."""
        if name != CHECK:
            return super().get_command(ctx, name)
        return _single(lambda: None, "Check a model on labelled pictures of your own, or plan such a check.")

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command to run; import `check` only if it is that one.

        Raises:
            Refused: a package of the extra is missing.
        """
        name, command, rest = super().resolve_command(ctx, args)
        if name != CHECK:
            return name, command, rest
        try:
            module = import_module(".check.command", __package__)
        except ModuleNotFoundError as error:
            raise Refused(
                f"The check needs {error.name}, which is not installed: pip install 'covid-xct[check]'."
            ) from error
        return name, _single(module.check), rest


def _single(function: Callable[..., Any], words: str | None = None) -> Any:
    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    one.command(CHECK, help=words)(function)
    return typer.main.get_command(one)


app = typer.Typer(cls=Verbs, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def score(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="pictures, zip or tar archives, or folders of them at any depth; with --engine ray also s3://..."
        ),
    ],
    model: Annotated[
        str, typer.Option(help=f"{NAMES}, auto (xray or ct, whichever fits), a hub folder, or a Hub id")
    ] = "auto",
    out: Annotated[
        str | None,
        typer.Option(
            help=".csv, .jsonl or .parquet file (with --engine ray a folder); the same command goes on where a killed "
            "one stopped"
        ),
    ] = None,
    operating_point: Annotated[str | None, typer.Option(help="sensitivity, balanced or specificity")] = None,
    revision: Annotated[str | None, typer.Option(help="revision of a Hub id")] = None,
    json_lines: Annotated[
        bool, typer.Option("--json", help="on the terminal, one JSON object a line instead of CSV")
    ] = False,
    heat_maps: Annotated[
        str | None, typer.Option(help="folder for pictures tinted by where the model looked")
    ] = None,
    per_slice: Annotated[
        bool,
        typer.Option(
            help="a row for each slice of a CT series, not one for the series (with --engine ray always)"
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="pictures that the network sees at once")] = BATCH,
    workers: Annotated[int, typer.Option(min=1, help="threads that read the next pictures")] = WORKERS,
    backend: Annotated[str, typer.Option(help="onnx or torch")] = "onnx",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; with torch any of its devices")] = "cpu",
    engine: Annotated[str, typer.Option(help="local, or ray: all machines of a Ray cluster")] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of the cluster's head; by default Ray uses this machine alone"),
    ] = None,
    site: Annotated[
        list[Path] | None, typer.Option(help="site.json of `check --adapt`; one for each model")
    ] = None,
    prevalence: Annotated[
        float | None, typer.Option(help="share of COVID-19 where you are: adds P(COVID) there")
    ] = None,
) -> None:
    """Screen pictures: one row for each file, one for a CT series (DICOM slices, NIfTI, NRRD, MetaImage, many frames).
    What cannot be judged gets a row with decision "refused" and the reason.

    Exit code 1 where every file was refused.
    """
    _check_options(engine, address, paths, out, json_lines, model, revision)
    models = scoring.Models(model, revision, backend, device, tuple(map(str, site or ())), prevalence)
    options = scoring.Options(operating_point, heat_maps, batch_size, workers, per_slice)
    console = Console(stderr=True)
    with _progress(console) as watch:
        if engine == "ray":
            from . import scoring_ray

            tally = scoring_ray.score(paths, models, out, options, address=address, watch=watch)
        else:
            tally = scoring.score(paths, models.opened(), out, options, json_lines=json_lines, watch=watch)
    console.print(scoring.told(tally), highlight=False)
    if scoring.all_refused(tally):
        raise typer.Exit(1)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[scoring.Tally], None]]:
    """Show a progress bar; yield the function to call after every row."""
    columns = (TextColumn("screening"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("screening", total=None, rate="")

        def watch(tally: scoring.Tally) -> None:
            speed = progress.tasks[task].finished_speed or progress.tasks[task].speed or 0
            done = tally.decisions.total()
            total = max(done, tally.expected - tally.earlier)
            progress.update(task, completed=done, total=total, rate=f"{speed:.1f} a second")

        yield watch


def _check_options(
    engine: str,
    address: str | None,
    paths: list[str],
    out: str | None,
    json_lines: bool,
    model: str,
    revision: str | None,
) -> None:
    """Refuse options that contradict each other."""
    if engine not in ENGINES:
        raise Refused(f"There is no engine {engine!r}; accepted are {', '.join(ENGINES)}.")
    if engine == "ray" and (out is None or json_lines):
        raise Refused("--engine ray writes Parquet files: give --out a folder for them, and no --json.")
    if engine == "local":
        if address is not None:
            raise Refused("--address is of a Ray cluster: say --engine ray, too.")
        elsewhere = [path for path in (*paths, out or "") if "://" in path]
        if elsewhere:
            raise Refused(f"{elsewhere[0]} does not lie on this machine: say --engine ray, or copy it here.")
    if json_lines and out is not None:
        raise Refused(
            "--json is for the terminal; the name of --out says what is written (.csv, .jsonl, .parquet)."
        )
    if model == "auto" and revision is not None:
        raise Refused(
            f"--model auto means the models in this package, which have no revision {revision!r}. Name the Hub id that "
            "has it: --model org/name."
        )


@app.command()
def info(
    model: Annotated[str, typer.Argument(help=f"{NAMES}, a hub folder, or a Hub id")],
    revision: Annotated[str | None, typer.Option(help="revision of a Hub id")] = None,
) -> None:
    """Print a model's modality, architecture, operating points and the figures they were chosen on (JSON)."""
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


def main() -> None:
    """Run the command line; print a refusal as one sentence."""
    try:
        app(prog_name="covid-xct")
    except (Refused, OSError) as error:
        Console(stderr=True, highlight=False, markup=False).print(f"Refused. {error}", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
