"""Verbs that are killed, run into a full disk or a closed folder, or meet another process: afterwards old or new.

Each run is a fork of a process that has imported everything, so that a kill meets the work and not the imports.
"""

import contextlib
import ctypes
import hashlib
import importlib
import io
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ENDED, REFUSED, FAILED = 0, 3, 4  # exit codes of a run


class Verb(NamedTuple):
    """A verb on a folder: `run` writes ``out`` below it from what `inputs` has put there.

    `same` says what of ``out`` must be equal whenever it is complete; `needs` are modules imported before any run.
    """

    inputs: Callable[[Path], None]
    run: Callable[[Path, str], Any]
    same: Callable[[Path], Any]
    needs: tuple[str, ...]
    out: str = "out"
    resumes: bool = False


def digest(place: Path) -> str | None:
    """Hash of a file or of all files in a folder, unfinished work of killed processes left out; None where none is."""
    if not place.exists():
        return None
    found = hashlib.sha256()
    for path in [place] if place.is_file() else sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_file() and ".partial-" not in name:
            found.update(name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


# ---- verbs


def collection(folder: Path) -> None:
    """Small pictures of both classes, as CT slices."""
    from tests.bad_files import grey_picture

    for number in range(24):
        place = folder / "set" / "CT" / ("COVID", "Non-COVID")[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        grey_picture(96, 96, seed=number).save(place)


def run_prepare(folder: Path, seed: str) -> None:
    from train.data import reading
    from train.data.prepare import prepare

    reading.CHUNK = 4
    prepare([folder / "set"], folder / "out", families="known", jobs=1, seed=int(seed))


def prepared(folder: Path) -> None:
    collection(folder)
    from train.data.prepare import prepare

    prepare([folder / "set"], folder / "data", families="known", jobs=1)


def run_explore(folder: Path, seed: str) -> None:
    from train.data.explore import explore

    explore([str(folder / "data")], folder / "out", seed=0, examples=1 + int(seed))


def run_phantom(folder: Path, seed: str) -> None:
    from train.phantom.phantom import phantom

    if (folder / "out").is_dir():  # phantoms of other settings are never replaced, so the old ones go first
        shutil.rmtree(folder / "out")
    phantom(folder / "out", n=4, patients=4, size=64, modality="ct", seed=int(seed))


def slices(folder: Path) -> None:
    """CT slices that can be outlined."""
    from PIL import Image

    from tests.data.test_outline import slice_of

    for label, level in (("COVID", 100), ("Non-COVID", 140)):
        (folder / "set" / label).mkdir(parents=True)
        for index in range(6):
            picture = slice_of(index > 1, level + 10 * index, 180 + index)[0]
            Image.fromarray(picture).save(folder / "set" / label / f"{index}.png")
    run_outline(folder, "0")  # the data are in the cache from now on
    shutil.rmtree(folder / "out")


def run_outline(folder: Path, seed: str) -> None:
    from train.data.outline import outline

    outline([str(folder / "set")], folder / "out", families="known", seed=int(seed))


class _Sizes:
    """Stands for a model: its answer is the mean of a picture, so that a run costs nothing but reading and writing."""

    modality, operating_points, screening = "ct", {"balanced": {"threshold": 0.5}}, {}
    site = prevalence = None

    def screen_many(self, sources: Any, *_: Any, **__: Any) -> Any:
        from hub_model import Finding
        from hub_model.images import read_image

        for source in sources:
            picture = read_image(source)
            yield Finding(
                "negative", picture.getpixel((9, 9)) / 256, "balanced", 0.5, "ct", (), image=picture
            )


def run_score(ending: str) -> Callable[[Path, str], None]:
    def run(folder: Path, seed: str) -> None:
        from hub_model.scoring import Options, score

        score([folder / "set"], _Sizes(), folder / f"out{ending}", Options(batch_size=2, workers=1))

    return run


def rows(place: Path) -> list[str] | None:
    """Whole lines of a file of rows, the places of the pictures left out; None where none is."""
    if not place.exists():
        return None
    if place.suffix == ".parquet":
        import pyarrow.parquet as pq

        return [str({**line, "file": Path(line["file"]).name}) for line in pq.read_table(place).to_pylist()]
    text = place.read_text("utf-8")
    assert text.endswith("\n") or "\n" not in text or not text.splitlines()[-1].endswith("\n")
    return [re.sub(r"/\S*/", "", line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


DATA = ("datasets", "pyarrow.parquet", "scipy.sparse.csgraph", "train.data.prepare", "tests.bad_files")
SCORE = ("hub_model.scoring", "pyarrow.parquet", "tests.bad_files")
VERBS = {
    "prepare": Verb(collection, run_prepare, digest, DATA, resumes=True),
    "explore": Verb(prepared, run_explore, digest, (*DATA, "train.data.explore", "matplotlib.pyplot")),
    "phantom": Verb(lambda folder: None, run_phantom, digest, ("train.phantom.phantom",)),
    "outline": Verb(slices, run_outline, digest, (*DATA, "train.data.outline")),
    "score to .csv": Verb(collection, run_score(".csv"), rows, SCORE, "out.csv", True),
    "score to .jsonl": Verb(collection, run_score(".jsonl"), rows, SCORE, "out.jsonl", True),
    "score to .parquet": Verb(collection, run_score(".parquet"), rows, SCORE, "out.parquet", True),
}


# ---- faults


def kills(name: str, count: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Kill a verb at random times, SIGKILL and SIGTERM in turn, over nothing and over an old result in turn.

    Returns:
        ``kills`` that met a running process, ``states`` after them (old, new, none, begun), ``wrong``.
    """
    verb, draw, wrong = VERBS[name], random.Random(seed), []
    made, expected, length = _made(verb, folder)
    states: dict[str, int] = {}
    met = 0
    for number in range(count):
        place = Path(shutil.copytree(made, folder / f"kill{number}"))
        over = not verb.resumes and number % 2 == 1
        if over:
            shutil.copytree(folder / "good0", place, dirs_exist_ok=True)
        process = _forked(verb, place, "1")
        process.join(draw.uniform(0.02, 1) * length)
        met += process.is_alive()
        (process.terminate if number % 4 > 1 else process.kill)()
        process.join()
        state = _state(verb, place, expected)
        states[state] = states.get(state, 0) + 1
        if state == "half" or (state == "none" and over and name != "phantom"):
            wrong.append(f"{name}, kill {number}: {state} is left")
            continue
        code = _ran(verb, place, "1")
        if code != ENDED or verb.same(place / verb.out) != expected["1"]:
            wrong.append(f"{name}, kill {number}: run again it gives another result (exit {code})")
        if left := [path.name for path in place.iterdir() if "partial" in path.name]:
            wrong.append(f"{name}, kill {number}: {left} stay")
        shutil.rmtree(place)
    return {"kills": met, "states": states, "wrong": wrong}


def troubles(name: str, folder: Path) -> list[str]:
    """A full disk, a closed folder, two processes at once: what goes wrong in a verb."""
    verb, wrong = VERBS[name], []
    made, expected, _ = _made(verb, folder)
    for size in (0, 500, 3_000, 20_000):
        place = Path(shutil.copytree(made, folder / f"full{size}"))
        code = _ran(
            verb, place, "1", lambda size=size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        )
        state = _state(verb, place, expected)
        if state == "half" or code not in (ENDED, REFUSED, FAILED) or (code == ENDED and state != "new"):
            wrong.append(f"{name}, disk full after {size} bytes: exit {code}, {state} is left")
    place = Path(shutil.copytree(made, folder / "closed"))
    place.chmod(0o500)
    code = _ran(verb, place, "1", _common_user)
    place.chmod(0o700)
    if code not in (REFUSED, FAILED) or digest(place) != digest(made):
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
    made, expected = folder / "inputs", {}
    made.mkdir()
    if (code := _ran(verb._replace(run=lambda place, text: verb.inputs(place)), made, "0")) != ENDED:
        raise RuntimeError(f"the inputs cannot be made (exit {code})")
    for text in "01":
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
    from hub_model.refused import Refused

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
    except OSError:
        code = FAILED
    os._exit(code)


def _common_user() -> None:
    """Give up what lets the superuser write everywhere (capabilities(7)); files stay its own."""
    if os.geteuid() == 0:
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None).capset(header, nothing):
            raise RuntimeError("capset failed")
