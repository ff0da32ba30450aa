"""All runs in one table, as Markdown and as a picture."""

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown

from hub_model import hub_folder
from hub_model.refused import Refused

CPU_RUNS = 15
HEADER = ("run", "modality", "network", "parameters", "MACs", "CPU ms", "test AUROC", "sensitivity / specificity at "
          "sensitivity", "balanced", "specificity", "accuracy (balanced)", "n")  # fmt: skip


class NothingToCompare(Refused):
    """None of the folders has been evaluated."""


def compare(
    runs: Annotated[list[Path], typer.Argument(help="evaluated hub folders, or a folder of them")],
    out: Annotated[Path | None, typer.Option(help="write PREFIX.md and PREFIX.png")] = None,
) -> str:
    """Put evaluated runs side by side: size, speed, AUROC and the operating points, with intervals.

    CPU milliseconds are the median of single pictures on one thread of this machine, all runs in one go.

    Raises:
        NothingToCompare: no folder with evaluation.json among the runs.
    """
    folders = [
        path
        for run in runs
        for path in ([run] if (run / hub_folder.CONFIG).is_file() else sorted(run.glob("*")))
    ]
    folders = [path for path in folders if (path / hub_folder.EVALUATION).is_file()]
    if not folders:
        raise NothingToCompare("No evaluated run there. Run `python -m train evaluate RUN --data ...` first.")
    rows = [_row(path) for path in folders]
    lines = [HEADER, ["---"] * len(HEADER), *(row["cells"] for row in rows)]
    table = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".md").write_text(table, encoding="utf-8")
        _draw(rows).savefig(
            out.with_suffix(".png"), dpi=110, bbox_inches="tight", metadata={"Software": None}
        )
    Console().print(Markdown(table))
    return table


def _row(path: Path) -> dict:
    folder = hub_folder.open_folder(path)
    evaluation = hub_folder.read_json(path / hub_folder.EVALUATION)
    test, points = evaluation["test"], evaluation["test"]["at"]
    name = f"{path.name} (LEAKS: random split)" if evaluation["data"].get("leaks") else path.name
    cells = [name, evaluation["modality"], evaluation["architecture"], f"{evaluation['parameters']:,}"]
    cells += [f"{macs(folder) / 1e9:.2f} G", f"{milliseconds(folder):.0f}", interval(test["auroc"])]
    for name in ("sensitivity", "balanced", "specificity"):
        cells.append(f"{interval(points[name]['sensitivity'])} / {interval(points[name]['specificity'])}")
    cells += [interval(points["balanced"]["accuracy"]), test["n"]]
    return {"name": name, "auroc": test["auroc"], "cells": cells}


def interval(figure: dict, digits: int = 3) -> str:
    """``0.931 (0.880-0.961)``, or a dash where there is no such figure."""
    if figure["value"] is None:
        return "-"
    return f"{figure['value']:.{digits}f} ({figure['low']:.{digits}f}-{figure['high']:.{digits}f})"


def macs(folder: hub_folder.HubFolder) -> int:
    """Multiply-accumulates of convolutions and linear layers for one picture."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        folder.model(torch.zeros(1, *folder.config["pretrained_cfg"]["input_size"]))
    return counter.get_total_flops() // 2


def milliseconds(folder: hub_folder.HubFolder) -> float:
    """Median time of one picture on one thread."""
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


def _draw(rows: list[dict]) -> Figure:
    figure = Figure(figsize=(6.4, 0.8 + 0.34 * len(rows)))
    axes = figure.subplots()
    rows = sorted(rows, key=lambda row: row["auroc"]["value"])
    value, low, high = (np.array([row["auroc"][key] for row in rows]) for key in ("value", "low", "high"))
    axes.errorbar(
        value, range(len(rows)), xerr=[value - low, high - value], fmt="o", color="#0b6e99", capsize=3
    )
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes.axvline(0.5, color="0.6", linestyle=":")
    axes.set(xlabel="test AUROC, 95 % interval (families resampled)", xlim=(0.3, 1.01))
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
