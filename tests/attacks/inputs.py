"""Broken JSON and tables of strangers, each a function of its number: a refusal in words or a right result.

Local settings, the JSON files of hub folders, and the labelled pictures of a check with their tables; now and then the
report is written too.
"""

import csv
import io
import json
import multiprocessing
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

SECONDS = 10
"""Of processor time that an input may take."""
SCRIPT = "<script>alert(1)</script>"
RAW = {"@huge": "1" + 400 * "0", "@far": "1e999", "@nan": "NaN", "@deep": 60_000 * "[" + 60_000 * "]",
       "@deepish": 700 * '{"a":' + "1" + 700 * "}", "@digits": 6000 * "9", "@twice": '"a", "format": 2'}  # fmt: skip
"""What `json.dumps` would not write, by the texts that stand for it until then."""
VALUES = [None, True, False, -1, 0, 1, 2, 1e308, -1e-308, 0.5, "", "x" * 100_000, "\ud800", "../../../etc/passwd",
          SCRIPT, [], {}, [[]], {"": {}}, [1, 2, 3], "0" * 64, *RAW]  # fmt: skip
CELLS = ["", " ", "COVID", "Non-COVID", "positive", "../../../etc/passwd", "/etc/passwd", "C:\\a.png", "0.png", "1.png",
         "=1+1", SCRIPT, "nan", "\0", "x" * 200_000, '"', "\n", "ct", "xray", "MR", "train", "test", "é\u0301", "45",
         "-3", "1e999", "p1", "{}", "0.png\n1.png"]  # fmt: skip
COLUMNS = ["file_name", "label", "patient_id", "modality", "split", "view", "age", "sex", "", "finding", "folder",
           "StudyInstanceUID", SCRIPT, "=1+1", "label ", "path", "machine"]  # fmt: skip
PICTURES = 40


# ---- JSON


def places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place in a JSON value, as keys and numbers from the outside in."""
    entries = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


def broken_json(
    text: str, rng: np.random.Generator, finish: Callable[[Any], Any] = lambda content: content
) -> bytes:
    """Change some values of a JSON text, or its bytes; `finish` has the changed contents before they are written."""
    if rng.integers(4) == 0:
        return broken_bytes(text.encode(), rng)
    content = json.loads(text)
    for _ in range(rng.integers(1, 4)):
        found = list(places(content))
        if not found:
            break
        *above, last = found[rng.integers(len(found))]
        home = content
        for key in above:
            home = home[key]
        if rng.integers(5) == 0:
            del home[last]
        else:
            home[last] = VALUES[rng.integers(len(VALUES))]
    if rng.integers(2):
        content = finish(content)
    written = json.dumps(content)
    for name, raw in RAW.items():
        written = written.replace(f'"{name}"', raw)
    return written.encode()


def broken_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut, repeat or overwrite a piece."""
    start, length = int(rng.integers(len(data))), int(2 ** rng.integers(0, 9))
    piece = data[start : start + length]
    return (
        data[:start],
        data[:start] + data[start + length :],
        data[:start] + piece * 5 + data[start:],
        data[:start] + rng.integers(0, 256, len(piece), np.uint8).tobytes() + data[start + length :],
        data.decode("utf-8", "replace").encode("utf-16"),
    )[rng.integers(5)]


def attack_site(made: Path, rng: np.random.Generator) -> None:
    """Local settings, sealed anew or not, for the model and a picture."""
    from hub_model import Screener
    from hub_model.site import read_site, sealed

    file = made / "site.json"
    file.write_bytes(broken_json((made / "good site.json").read_text(), rng, sealed))
    read_site(file).summary()
    if rng.integers(4) == 0:
        Screener.from_pretrained(made / "run", site=file).screen(made / "set" / "0.png")


@cache
def views() -> Any:
    """The page's module that shows a model; the page's modules are found beside each other."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))
    import views

    return views


def attack_folder(name: str) -> Callable[[Path, np.random.Generator], None]:
    """A JSON file of a hub folder, in what reads it: opening, another prevalence, a report, the page, screening."""

    def attack(made: Path, rng: np.random.Generator) -> None:
        from hub_model import Screener, hub_folder
        from hub_model.check.report import _card
        from hub_model.site import fitted_prevalence

        file = made / "run" / name
        good = file.read_bytes()
        try:
            file.write_bytes(broken_json(good.decode(), rng))
            folder = hub_folder.open_folder(made / "run")
            fitted_prevalence(folder, None)
            screener = Screener(folder)
            _card(screener)
            views()._evaluation_in.cache_clear()
            views().model(screener, "en")
            if rng.integers(4) == 0:
                screener.screen(made / "set" / "0.png")
        finally:
            file.write_bytes(good)

    return attack


# ---- tables


def rows() -> list[dict[str, Any]]:
    """The lines of a good table."""
    return [
        {"file_name": f"{number}.png", "label": ("COVID", "Non-COVID")[number % 2], "patient_id": f"p{number // 2}",
         "age": 20 + number, "machine": "AB"[number % 2]}
        for number in range(PICTURES)
    ]  # fmt: skip


def broken_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Change cells, columns and lines of a good table."""
    found = rows()
    for _ in range(rng.integers(1, 6)):
        way, line = rng.integers(6), int(rng.integers(len(found)))
        column = list(found[line])[rng.integers(len(found[line]))] if found[line] else "label"
        other = COLUMNS[rng.integers(len(COLUMNS))]
        if way < 2:
            found[line][column] = CELLS[rng.integers(len(CELLS))]
        elif way == 2:
            found = [{other if key == column else key: value for key, value in row.items()} for row in found]
        elif way == 3:
            found = [row | {other: CELLS[rng.integers(len(CELLS))]} for row in found]
        elif way == 4:
            found.insert(line, dict(found[rng.integers(len(found))]))
        else:
            found = [{key: value for key, value in row.items() if key != column} for row in found]
    return found


def as_csv(lines: list[dict[str, Any]], rng: np.random.Generator) -> bytes:
    stream = io.StringIO(newline="")
    columns = list(dict.fromkeys(key for row in lines for key in row))
    table = csv.DictWriter(stream, columns, delimiter=",;\t|"[rng.integers(4)])
    table.writeheader()
    table.writerows(lines)
    if rng.integers(8) == 0:
        stream.write("a,b,c,d,e,f,g,h,i,j,k\r\n")
    return stream.getvalue().encode("utf-8", "surrogatepass")


def as_jsonl(lines: list[dict[str, Any]], rng: np.random.Generator) -> bytes:
    written = [json.dumps(row) for row in lines]
    if rng.integers(2):
        written[rng.integers(len(written))] = str(RAW[list(RAW)[rng.integers(5)]])
    if rng.integers(2):
        place = int(rng.integers(len(written)))
        value = VALUES[rng.integers(len(VALUES))]
        written[place] = json.dumps({**lines[place], "label": value, "age": value})
    return "\n".join(written).encode()


def as_parquet(lines: list[dict[str, Any]], rng: np.random.Generator) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        key: [row.get(key) for row in lines] for key in dict.fromkeys(key for row in lines for key in row)
    }
    kinds = (
        str,
        lambda value: [value],
        lambda value: {"a": value},
        lambda value: str(value).encode(),
        lambda value: None,
    )
    odd = list(columns)[rng.integers(len(columns))]
    table = {
        key: [kinds[rng.integers(5)](value) for value in values[:1]] * len(values) if key == odd and rng.integers(2)
        else [str(value) for value in values]
        for key, values in columns.items()
    }  # fmt: skip
    stream = io.BytesIO()
    pq.write_table(pa.table(table), stream)
    return stream.getvalue()


def as_list(lines: list[dict[str, Any]], rng: np.random.Generator) -> bytes:
    """COVIDx's text list."""
    text = "\n".join(f"{row.get('patient_id')} {row.get('file_name')} {row.get('label')} a" for row in lines)
    return text.encode("utf-8", "surrogatepass")


TABLES = {
    "metadata.csv": as_csv,
    "metadata.jsonl": as_jsonl,
    "metadata.parquet": as_parquet,
    "train.txt": as_list,
}


def attack_table(name: str) -> Callable[[Path, np.random.Generator], None]:
    """A table beside pictures, in the check: listed, judged, now and then reported."""

    def attack(made: Path, rng: np.random.Generator) -> None:
        from hub_model.check import cases, report, writing

        file, lines = made / "set" / name, broken_rows(rng)
        try:
            data = TABLES[name](lines, rng)
            file.write_bytes(broken_bytes(data, rng) if rng.integers(4) == 0 else data)
            screener = _stand_in(made)
            material = cases.judge([made / "set"], screener)
            if rng.integers(4):
                return
            settings = report.Settings(tuple(list(lines[0])[:1]) if rng.integers(2) else (), 0)
            told = report.examine(material, screener, settings)
            out = writing.write(made / "report", told, material, screener, by=settings.by)
            assert SCRIPT not in (out / writing.PAGE).read_text("utf-8"), "the page runs what a table says"
            for line in csv.reader((out / writing.REFUSED).read_text("utf-8").splitlines()):
                assert not any(cell.startswith(("=", "+", "@")) for cell in line), (
                    "a spreadsheet runs what a table says"
                )
        finally:
            file.unlink(missing_ok=True)

    return attack


def _stand_in(made: Path) -> Any:
    """As much of a Screener as a check needs; its answer is how bright a picture is."""
    from hub_model import Finding
    from hub_model.images import read_image

    def screen(source: Any, heat_map: bool = False) -> Finding:
        picture = read_image(source)
        value = float(np.asarray(picture).mean() / 256)
        return Finding("positive", value, "balanced", 0.5, "ct", (), out_of_distribution=0.1, image=picture)

    return SimpleNamespace(
        path=made / "run", modality="ct", site=None, config={"architecture": "drawn"},
        screening={"weights_sha256": "0" * 64}, operating_points={"balanced": {"threshold": 0.5}},
        screen=screen, screen_many=lambda sources: map(screen, sources),
    )  # fmt: skip


def attack_prepared(made: Path, rng: np.random.Generator) -> None:
    """What `prepare` left beside its data."""
    from train.data.dataset import verify

    name = ("split.json", "manifest.parquet", "data/train-00000-of-00001.parquet")[
        max(0, int(rng.integers(5)) - 2)
    ]
    file = made / "data" / name
    good = file.read_bytes()
    try:
        file.write_bytes(broken_json(good.decode(), rng) if name == "split.json" else broken_bytes(good, rng))
        verify(made / "data")
    finally:
        file.write_bytes(good)


# ---- the attack


ATTACKS = {
    "site.json": attack_site,
    **{name: attack_folder(name) for name in ("screening.json", "config.json", "evaluation.json")},
    **{name: attack_table(name) for name in TABLES},
    "prepared data": attack_prepared,
}


def materials(made: Path) -> None:
    """A hub folder, local settings for it, prepared data, and labelled pictures without a table."""
    from hub_model import hub_folder
    from hub_model.site import sealed
    from tests.bad_files import grey_picture
    from train.data.prepare import prepare

    run = shutil.copytree(hub_folder.embedded()["ct"], made / "run")
    screening = hub_folder.read_json(run / hub_folder.SCREENING)
    site = {
        "format": 1, "made": "2026-01-01", "temperature": 1.2, "bias": 0.3, "figures": {"words": ["better"]},
        "model": {"modality": "ct", "architecture": "drawn", "weights_sha256": screening["weights_sha256"]},
        "data": {"sha256": "0" * 64, "pictures": 60, "families": 60, "prevalence": 0.4},
        "operating_points": screening["operating_points"],
    }  # fmt: skip
    (made / "good site.json").write_text(json.dumps(sealed(site)))
    for number in range(PICTURES):
        place = made / "set" / "CT" / ("COVID", "Non-COVID")[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        grey_picture(64, 64, seed=number).save(place)
    prepare([made / "set"], made / "data", families="known", jobs=1)
    for number in range(PICTURES):
        (made / "set" / "CT" / ("COVID", "Non-COVID")[number % 2] / f"{number}.png").replace(
            made / "set" / f"{number}.png"
        )
    shutil.rmtree(made / "set" / "CT")


def attack(numbers: range, folder: Path) -> dict[str, Any]:
    """Let a process read broken inputs; it is forked anew when it dies.

    Returns:
        ``count``, ``kinds``, ``outcomes``, ``slowest_s``, and ``wrong`` by number.
    """
    import hub_model.check.command  # noqa: F401 - imported before the fork
    import train.data.dataset  # noqa: F401

    made, context = folder / "made", multiprocessing.get_context("fork")
    maker = context.Process(
        target=materials, args=(made,)
    )  # its threads must not be there when others are forked
    maker.start()
    maker.join()
    if maker.exitcode:
        raise RuntimeError(f"the materials cannot be made (exit {maker.exitcode})")
    outcomes, wrong, slowest, next_one = Counter(), {}, 0.0, numbers.start
    while next_one < numbers.stop:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(range(next_one, numbers.stop), made, there))
        process.start()
        there.close()
        try:
            while next_one < numbers.stop:
                outcome, seconds = here.recv()
                outcomes[outcome if outcome in ("read", "refused") else "wrong"] += 1
                slowest = max(slowest, seconds)
                if outcome not in ("read", "refused"):
                    wrong[next_one] = f"{_kind(next_one)}: {outcome}"
                next_one += 1
        except EOFError:
            process.join()
            wrong[next_one] = f"{_kind(next_one)}: died with {process.exitcode}"
            next_one += 1
        process.join()
    return {"count": len(numbers), "kinds": len(ATTACKS), "outcomes": dict(outcomes), "slowest_s": slowest,
            "wrong": wrong}  # fmt: skip


def _kind(number: int) -> str:
    return list(ATTACKS)[number % len(ATTACKS)]


def _serve(numbers: range, made: Path, answers: Any) -> None:
    import os

    from hub_model.refused import Refused

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    for number in numbers:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(20 * SECONDS)  # one that waits for something takes no processor time
        began = time.process_time()
        try:
            ATTACKS[_kind(number)](made, np.random.default_rng(number))
            outcome = "read"
        except Refused:
            outcome = "refused"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"[:200]
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.send((outcome, time.process_time() - began))
    answers.close()
