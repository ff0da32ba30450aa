"""Put evaluated runs into one table, as Markdown and as a picture."""

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown

from hub_model import hub_folder
from hub_model.check.harmless import worst
from hub_model.check.metrics import interval
from hub_model.refused import Refused
from hub_model.whole import whole_files

from . import plots

CPU_RUNS = 15
HEADER = ("run", "modality", "network", "parameters", "MACs", "CPU ms", "test AUROC", "sensitivity / specificity at "
          "sensitivity", "balanced", "specificity", "accuracy (balanced)", "n",
          "worst harmless change: flips at its default point")  # fmt: skip


def compare(
    runs: Annotated[list[Path], typer.Argument(help="evaluated hub folders, or a folder of them")],
    out: Annotated[Path | None, typer.Option(help="write PREFIX.md and PREFIX.png")] = None,
) -> str:
    """Put evaluated runs side by side: size, speed, AUROC and the operating points, with intervals.

    CPU milliseconds are the median of single pictures on one thread of this machine, all runs in one go.

    Raises:
        Refused: no folder with evaluation.json among the runs.
    """
    folders = [
        path
        for run in runs
        for path in ([run] if (run / hub_folder.CONFIG).is_file() else sorted(run.glob("*")))
    ]
    folders = [path for path in folders if (path / hub_folder.EVALUATION).is_file()]
    if not folders:
        raise Refused("No evaluated run there. Run `python -m train evaluate RUN --data ...` first.")
    rows = [_row(path) for path in folders]
    lines = [HEADER, ["---"] * len(HEADER), *(row["cells"] for row in rows)]
    table = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"
    if out is not None:
        with whole_files(out.parent) as new:
            (new / f"{out.stem}.md").write_text(table, encoding="utf-8")
            plots.save(_draw(rows), new / f"{out.stem}.png")
    Console().print(Markdown(table))
    return table


def _row(path: Path) -> dict[str, Any]:
    folder = hub_folder.open_folder(path)
    evaluation = hub_folder.read_json(path / hub_folder.EVALUATION)
    test, points = evaluation["test"], evaluation["test"]["at"]
    name = f"{path.name} (LEAKS: random split)" if evaluation["data"].get("leaks") else path.name
    cells = [name, evaluation["modality"], evaluation["architecture"], f"{evaluation['parameters']:,}"]
    cells += [f"{macs(folder) / 1e9:.2f} G", f"{milliseconds(folder):.0f}", interval(test["auroc"])]
    for name in ("sensitivity", "balanced", "specificity"):
        cells.append(f"{interval(points[name]['sensitivity'])} / {interval(points[name]['specificity'])}")
    cells += [interval(points["balanced"]["accuracy"]), test["n"], _worst_change(evaluation)]
    return {"name": name, "auroc": test["auroc"], "cells": cells}


def _worst_change(evaluation: dict) -> str:
    """Name the harmless change that flips most answers at the default operating point; a dash where none was tried."""
    measured = evaluation.get("audits", {}).get("harmless")
    if not measured:
        return "-"
    default = next(iter(evaluation["test"]["at"]))
    row = worst(measured, default)
    return f"{row['change']}: {interval(row['flips'][default], 1, percent=True)}"


def macs(folder: hub_folder.HubFolder) -> int:
    """Count the multiply-accumulates of convolutions and linear layers for one picture."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        folder.model(torch.zeros(1, *folder.config["pretrained_cfg"]["input_size"]))
    return counter.get_total_flops() // 2


def milliseconds(folder: hub_folder.HubFolder) -> float:
    """Measure the median time of one picture on one thread."""
    pixels, threads = torch.zeros(1, *folder.config["pretrained_cfg"]["input_size"]), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            times = []
            for _ in range(CPU_RUNS + 3):
                start = time.perf_counter()
                folder.model(pixels)
                times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1000 * float(np.median(times[3:]))


def _draw(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(6.4, 0.8 + 0.34 * len(rows)))
    axes = figure.subplots()
    rows = sorted(rows, key=lambda row: row["auroc"]["value"])
    value, low, high = (np.array([row["auroc"][key] for row in rows]) for key in ("value", "low", "high"))
    axes.errorbar(
        value, range(len(rows)), xerr=[value - low, high - value], fmt="o", color="#0b6e99", capsize=3
    )
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes.axvline(0.5, color="0.6", linestyle=":")
    plots.styled(axes, "", "test AUROC, 95 % interval (families resampled)", "", xlim=(0.3, 1.01))
    return figure
