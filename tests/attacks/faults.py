"""Verbs that are killed, run into a full disk or a closed folder, or meet another process: afterwards old or new.

Each run is a fork of a process that has imported everything, so that a kill meets the work and not the imports.
"""

import contextlib
import ctypes
import importlib
import io
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .uploads import hub
from .verbs import HUB, VERBS, Verb
from .work import digest, graphs

ENDED, REFUSED, FAILED, BROKEN = (
    0,
    3,
    4,
    5,
)  # exit codes of a run; the last one leaves a traceback beside its folder


def kills(name: str, count: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Kill a verb at random times, SIGKILL and SIGTERM in turn, over nothing and over an old result in turn.

    A verb that has ended before its kill is begun again, so that ``count`` kills meet a running process; at most five
    times that number are tried.

    Returns:
        ``kills`` that met a running process, ``states`` after all (old, new, none, begun), ``wrong``.
    """
    verb, draw, wrong = VERBS[name], random.Random(seed), []
    made, expected, length = _made(verb, folder)
    states: dict[str, int] = {}
    met = 0
    for number in range(5 * count):
        if met == count:
            break
        place = Path(shutil.copytree(made, folder / f"kill{number}"))
        over = not verb.resumes and not verb.changes and number % 2 == 1
        if over and verb.remote:
            _ran(verb, place, "0")
        elif over:
            shutil.copytree(folder / "good0", place, dirs_exist_ok=True)
        began, process = time.monotonic(), _forked(verb, place, "1")
        process.join(draw.uniform(0.02, 1) * length)
        if process.is_alive():
            met += 1
        else:  # it was faster than the run before: what is timed must not lie behind its end
            length = min(length, time.monotonic() - began)
        (process.terminate if number % 4 > 1 else process.kill)()
        process.join()
        state = _state(verb, place, expected)
        states[state] = states.get(state, 0) + 1
        if state == "half" or (state == "none" and (over or verb.changes) and name != "phantom"):
            wrong.append(f"{name}, kill {number}: {state} is left")
            continue
        code = _ran(verb, place, "1")
        done = code == ENDED or (code == REFUSED and state == "new")  # what is there already may be refused
        if not done or verb.same(place / verb.out) != expected["1"]:
            wrong.append(f"{name}, kill {number}, {state}: run again it gives another result (exit {code})")
        if left := [path.name for path in place.rglob("*") if "partial-" in path.name]:
            wrong.append(f"{name}, kill {number}: {left} stay")
        shutil.rmtree(place)
    return {"kills": met, "states": states, "wrong": wrong}


def troubles(name: str, folder: Path) -> list[str]:
    """A full disk, a closed folder, two processes at once: what goes wrong in a verb."""
    verb, wrong = VERBS[name], []
    made, expected, _ = _made(verb, folder)
    for size in () if verb.remote else (0, 500, 3_000, 20_000, 300_000):
        place = Path(shutil.copytree(made, folder / f"full{size}"))
        code = _ran(
            verb, place, "1", lambda size=size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        )
        state = _state(verb, place, expected)
        if state == "half" or code not in (ENDED, REFUSED, FAILED) or (code == ENDED and state != "new"):
            wrong.append(f"{name}, disk full after {size} bytes: exit {code}, {state} is left")
    place = Path(shutil.copytree(made, folder / "closed"))
    folders = [place, *(path for path in place.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o500)
    code = _ran(verb, place, "1", _common_user)
    for path in folders:
        path.chmod(0o700)
    if code not in ((ENDED,) if verb.remote else (REFUSED, FAILED)) or digest(place) != digest(made):
        wrong.append(f"{name}, closed folder: exit {code}")
    place = Path(shutil.copytree(made, folder / "two"))
    processes = [_forked(verb, place, "1") for _ in range(2)]
    for process in processes:
        process.join()
    codes = sorted(process.exitcode for process in processes)
    if ENDED not in codes or not set(codes) <= {ENDED, REFUSED} or _state(verb, place, expected) != "new":
        wrong.append(f"{name}, two at once: exits {codes}, {_state(verb, place, expected)} is left")
    return wrong


def _made(verb: Verb, folder: Path) -> tuple[Path, dict[str, Any], float]:
    """Inputs, results of two settings that nothing disturbed, and the seconds of the latter."""
    for module in verb.needs:
        importlib.import_module(module)
    graphs()  # here, so that all forks share them
    if set(HUB) <= set(verb.needs):
        hub()
    made, expected = folder / "inputs", {}
    made.mkdir()
    if (code := _ran(verb._replace(run=lambda place, text: verb.inputs(place)), made, "0")) != ENDED:
        raise RuntimeError(f"the inputs cannot be made (exit {code})")
    if verb.changes:
        expected["0"] = verb.same(made / verb.out)
    for text in "1" if verb.changes else "01":
        began = time.monotonic()
        expected[text] = _result(verb, made, folder / f"good{text}", text)
    return made, expected, time.monotonic() - began


def _result(verb: Verb, made: Path, place: Path, text: str) -> Any:
    shutil.copytree(made, place)
    if (code := _ran(verb, place, text)) != ENDED:
        raise RuntimeError(f"the verb itself fails (exit {code})")
    return verb.same(place / verb.out)


def _state(verb: Verb, place: Path, expected: dict[str, Any]) -> str:
    found = verb.same(place / verb.out)
    if found is None:
        return "none"
    if found == expected["1"]:
        return "new"
    if found == expected["0"]:
        return "old"
    begun = isinstance(found, list) and found == expected["1"][: len(found)]
    return "begun" if begun else "half"


def _forked(
    verb: Verb, place: Path, text: str, before: Callable[[], None] = lambda: None
) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=_run, args=(verb, place, text, before))
    process.start()
    return process


def _ran(verb: Verb, place: Path, text: str, before: Callable[[], None] = lambda: None) -> int:
    process = _forked(verb, place, text, before)
    process.join()
    return process.exitcode


def _run(verb: Verb, place: Path, text: str, before: Callable[[], None]) -> None:
    from hub_model import whole
    from hub_model.refused import Failed, Refused

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    whole._tidy.cache_clear()  # as in a new process
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    before()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            verb.run(place, text)
        code = ENDED
    except Refused:
        code = REFUSED
    except (Failed, OSError):
        code = FAILED
    except BaseException:
        code = BROKEN
        place.with_name(f"{place.name}.said").write_text(traceback.format_exc())
    os._exit(code)


def _common_user() -> None:
    """Give up what lets the superuser write everywhere (capabilities(7)); files stay its own."""
    if os.geteuid() == 0:
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None).capset(header, nothing):
            raise RuntimeError("capset failed")
