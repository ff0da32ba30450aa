"""``covid-xct``: score pictures and look into models from a shell."""

import csv
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from . import hub_folder
from .refused import Refused
from .screener import REFUSED, AutoScreener, Screener

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
COLUMNS = ("file", "decision", "probability", "operating_point", "threshold", "modality", "reasons")


@app.command()
def score(
    paths: Annotated[list[Path], typer.Argument(help="pictures, or folders of them at any depth")],
    model: Annotated[
        str, typer.Option(help="xray or ct (embedded), auto (whichever fits), a hub folder, or a Hub id")
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="CSV file to write; by default rows go to the terminal")
    ] = None,
    operating_point: Annotated[str | None, typer.Option(help="sensitivity, balanced or specificity")] = None,
    revision: Annotated[str | None, typer.Option(help="revision of a Hub id")] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="one JSON object a line instead of CSV")] = False,
) -> None:
    """Screen pictures: one row a file. A file that cannot be judged gets a row with decision "refused" and the reason.

    Exit code 1 where every file was refused.
    """
    screener = (
        AutoScreener.from_pretrained() if model == "auto" else Screener.from_pretrained(model, revision)
    )
    files = list(_files(paths))
    if not files:
        raise NoPictures(
            f"There is no file under {', '.join(map(str, paths))}. Give pictures or folders with pictures."
        )
    rows = []
    for file in track(files, "screening", console=Console(stderr=True), transient=True):
        finding = screener.screen(file, operating_point)
        values = (file.as_posix(), finding.decision, finding.probability, finding.operating_point, finding.threshold,
                  finding.modality, " ".join(finding.reasons))  # fmt: skip
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    _write(rows, out, json_lines)
    if all(row["decision"] == REFUSED for row in rows):
        raise typer.Exit(1)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="xray or ct (embedded), a hub folder, or a Hub id")],
    revision: Annotated[str | None, typer.Option(help="revision of a Hub id")] = None,
) -> None:
    """Say what a model is: modality, architecture, operating points and the figures they were chosen on (JSON)."""
    folder = hub_folder.load(model, revision)
    shown = {key: folder.screening.get(key) for key in ("modality", "calibrated", "operating_points")}
    shown["leaks"] = folder.screening.get("provenance", {}).get("split") == "random"
    shown["architecture"] = folder.config["architecture"]
    shown["input_size"] = folder.config["pretrained_cfg"]["input_size"]
    shown["stored_numbers"] = sum(math.prod(place.shape) for place in folder.weights().header.values())
    shown["path"] = str(folder.path)
    print(json.dumps(shown, indent=2))


class NoPictures(Refused):
    """Nothing to score."""


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        else:
            yield path  # one that does not exist gets its row, too: nothing is dropped in silence


def _write(rows: list[dict], out: Path | None, json_lines: bool) -> None:
    temporary = out.with_name(f".{out.name}.partial") if out else None
    stream = open(temporary, "w", newline="", encoding="utf-8") if temporary else sys.stdout  # noqa: SIM115
    try:
        if json_lines:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    finally:
        if temporary:
            stream.close()
    if temporary:
        os.replace(temporary, out)


def main() -> None:
    try:
        app(prog_name="covid-xct")
    except (Refused, OSError) as error:
        Console(stderr=True, highlight=False, markup=False).print(f"Refused. {error}", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
