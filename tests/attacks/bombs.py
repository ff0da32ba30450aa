"""The bombs of `tests.bombs`: each is read in a process of its own, under a ceiling."""

import multiprocessing
import resource
import signal
import time
from pathlib import Path
from typing import Any

from tests.bombs import BOMBS

SECONDS, MEGABYTES = 10, 1200
"""Of processor time, and of memory beyond what the process has before: ceilings of every bomb."""


def explode(name: str, folder: Path) -> dict[str, Any]:
    """Read a bomb in a process of its own.

    Returns:
        ``outcome`` ("refused", "read", an exception, or how the process died), ``seconds`` of processor time, ``mb`` of
        memory beyond what there was before, ``bytes`` of the file, ``held``: whether it stayed below the ceilings and
        was refused.
    """
    bomb = BOMBS[name]
    path = bomb.make(folder / bomb.name)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_explode, args=(path, there))
    process.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        found = {"outcome": "", "seconds": float(SECONDS), "mb": float(MEGABYTES)}
    process.join()
    if not found["outcome"]:
        found["outcome"] = f"died with {process.exitcode}"
    held = found["outcome"] == "refused" and found["seconds"] < SECONDS and found["mb"] < MEGABYTES
    return {**found, "bytes": path.stat().st_size, "held": held}


def _explode(path: Path, answer: Any) -> None:
    from hub_model.refused import Refused
    from tests.attacks.mutants import _read

    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    size = int((_memory("VmSize") + 2 * MEGABYTES) * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    began = time.process_time()
    try:
        _read(path)
        outcome = "read"
    except Refused:
        outcome = "refused"
    except BaseException as error:
        outcome = type(error).__name__
    answer.send({"outcome": outcome, "seconds": time.process_time() - began, "mb": _memory("VmHWM") - before})


def _memory(name: str) -> float:
    """A figure of this process in MB (proc(5))."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 1024
