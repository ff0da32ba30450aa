"""What screening costs: this version beside an older one, on one machine in one run.

    python -m tests.benchmarks.light [SECTION ...] [--old cf14cc7] [--data ../shared/data] [--count 500]

Sections, all by default, each written to docs/measured/light.json when it is done, so that a later run goes on:

- install: seconds and megabytes of new environments, by `pip install` and as `make demo` makes them;
- start: the first answer of the command line, and the memory of its process;
- score: pictures a second on real pictures of both kinds, DICOM and 16 bits among them, beside what it is held against:
  the networks' own time in ONNX Runtime with all cores, and transformers' `pipeline` in batches;
- page: answers of the web page, heat map included, as `tests.benchmarks.demo` asks for them;
- growth: time and memory with ever more pictures; kills.csv and its kin: killed again and again; ray: two nodes, one of
  them killed. These are about reading and writing, so an untrained network of 96 pixels judges there.

Old and new take turns. docs/measured/light.md says how busy the machine was with other work.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from hub_model.rows import FORMATS
from tests.benchmarks import demo
from tests.benchmarks.measured import FOLDER, environment, table, write
from tests.served import Server, served

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "demo" / "examples" / "phantom_ct_1.png"
STARTS, BATCH, KILLS, TURNS = 3, 8, 20, 3
ANSWERS = (("xray", 1, 8), ("ct", 1, 8), ("detect", 1, 8), ("xray", 16, 32))
"""Of the page, in one turn: kind, clients at once, answers."""
GROWTH = (1_000, 10_000, 100_000)
FILMS = 10_000_000
FILM_COPIES = 60
FILM_MB, STORE_MB_S = 15, 1000
"""On paper: the size of a film, and what a store gives a cluster in a second."""
INSTALLED = 6
"""Rows of the table that tell of installing; they come first."""
PIPELINE = """
import sys
from pathlib import Path
from transformers import pipeline
classify = pipeline("image-classification", model=sys.argv[1])
files = sorted(map(str, Path(sys.argv[2]).iterdir()))
print(sum(1 for _ in classify(files, batch_size=8)))
"""
LIMIT = """
import sys, time
import numpy as np
from hub_model import Screener
count, found = int(sys.argv[1]), {"classifiers": 0.0, "lungs": 0.0}
for name in ("xray", "ct"):
    screener = Screener.from_pretrained(name)
    pixels = np.zeros((8, *screener.config["pretrained_cfg"]["input_size"]), np.float32)
    runs = {"classifiers": lambda: screener._network.run(pixels, heat_maps=False)}
    if finder := screener._folder.finder:
        side = np.zeros((8, 1, 128, 128), np.float32)
        # one core each, as in screening: as many at once as there are cores
        from concurrent.futures import ThreadPoolExecutor
        import os
        pool = ThreadPoolExecutor(os.cpu_count())
        one = lambda _: finder.network(side[:1])
        runs["lungs"] = lambda: list(pool.map(one, range(8)))
    for kind, run in runs.items():
        run()
        began = time.perf_counter()
        for _ in range(0, count, 8):
            run()
        found[kind] += time.perf_counter() - began
import json
print(json.dumps(found))
"""
RAY = """
import json, os, sys, time
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
from ray.cluster_utils import Cluster
from hub_model import scoring, scoring_ray
files, model, out = sys.argv[1:]
cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
pieces, killed = [], []
def watch(tally):
    pieces.append(tally.decisions.total())
    if len(pieces) == 5:
        cluster.remove_node(other, allow_graceful=False)
        killed.append(pieces[-1])
began = time.perf_counter()
tally = scoring_ray.score([files], scoring.Models(model), out, watch=watch)
told = {"seconds": time.perf_counter() - began, "killed_after": killed, "judged": tally.decisions.total()}
print(json.dumps(told), flush=True)
ray.shutdown()
cluster.shutdown()
"""


# --- processes and pictures -----------------------------------------------------------------------


def run(
    checkout: Path, arguments: list[object], python: str | Path = sys.executable, **variables: str
) -> tuple[float, float, str]:
    """Seconds, megabytes at most, and what was printed, of a process that imports from a checkout."""
    report = tempfile.NamedTemporaryFile("r+", suffix=".txt")  # noqa: SIM115 - read below
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[2:], capture_output=True, text=True)\n"
        "most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "open(sys.argv[1], 'w').write(str(most))\n"
        "sys.stdout.write(done.stdout); sys.stderr.write(done.stderr); sys.exit(done.returncode)\n"
    )
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    own |= {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", **variables}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, report.name, str(python), *map(str, arguments)],
        env=own,
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stdout[-500:]} {done.stderr[-2000:]}")
    with report:
        per_unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
        return seconds, int(report.read()) * per_unit / 2**20, done.stdout


def pictures(data: Path, count: int, target: Path) -> None:
    """Copies of real pictures of both kinds in turn; of ten one becomes DICOM and one a PNG of 16 bits."""
    for folder in ("plain", "mixed"):
        (target / folder).mkdir(parents=True)
    kinds = [[f for f in sorted((data / kind).rglob("*")) if f.is_file()] for kind in ("xray", "ct")]
    for files in kinds:
        random.Random(0).shuffle(files)
    turns = itertools.cycle(itertools.chain.from_iterable(zip(*map(itertools.cycle, kinds), strict=False)))
    for number, file in zip(range(count), turns, strict=False):
        name = f"{number:06d}"
        if number % 10 == 8:
            _dicom(file, target / "mixed" / f"{name}.dcm")
        elif number % 10 == 9:
            deep = np.asarray(Image.open(file).convert("L")).astype(np.uint16) * 200 + 1000
            Image.fromarray(deep).save(target / "mixed" / f"{name}.png")
        else:
            shutil.copy(file, target / "mixed" / f"{name}{file.suffix}")
            os.link(target / "mixed" / f"{name}{file.suffix}", target / "plain" / f"{name}{file.suffix}")


def _dicom(file: Path, target: Path) -> None:
    """A picture as an uncompressed secondary capture, which every model looks at."""
    _write_dicom(np.asarray(Image.open(file).convert("L")), target, "OT")


def _film(target: Path) -> None:
    """A synthetic film at a detector's size: 2500 x 3000 pixels of 12 bits."""
    film = Image.open(ROOT / "demo" / "examples" / "phantom_xray_1.png").convert("L").resize((2500, 3000))
    _write_dicom(np.asarray(film).astype(np.uint16) * 14 + 300, target, "DX")


def _write_dicom(cells: np.ndarray, target: Path, modality: str) -> None:
    from pydicom import Dataset, FileDataset, uid

    kinds = {"OT": uid.SecondaryCaptureImageStorage, "DX": uid.DigitalXRayImageStorageForPresentation}
    meta = Dataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = kinds[modality], uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    made = FileDataset(str(target), {}, file_meta=meta, preamble=bytes(128))
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.Modality, made.PhotometricInterpretation, made.SamplesPerPixel = modality, "MONOCHROME2", 1
    made.Rows, made.Columns = cells.shape
    bits = 8 if cells.itemsize == 1 else 12
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = (
        8 * cells.itemsize,
        bits,
        bits - 1,
        0,
    )
    made.PixelData = cells.tobytes() + bytes(cells.nbytes % 2)
    made.save_as(target, enforce_file_format=True)


def copies(target: Path, count: int) -> Path:
    """Many names of few small pictures, in folders of a thousand."""
    from tests.made_run import pictures as drawn

    originals = target / "originals"
    originals.mkdir(parents=True)
    for number, picture in enumerate(drawn(10)):
        picture.save(originals / f"{number}.png")
    for number in range(count):
        folder = target / "in" / f"{number // 1000:03d}"
        if number % 1000 == 0:
            folder.mkdir(parents=True)
        os.link(originals / f"{number % 10}.png", folder / f"{number:06d}.png")
    return target / "in"


@contextlib.contextmanager
def older(commit: str) -> Iterator[Path]:
    """A checkout of another commit."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "old"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", place, commit], cwd=ROOT, check=True)
        try:
            yield place
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", place], cwd=ROOT, check=True)


def stand_in(folder: Path) -> Path:
    from tests.made_run import make_run

    return make_run(folder, "xray")


# --- sections -------------------------------------------------------------------------------------


def install(chosen: argparse.Namespace, scratch: Path) -> dict:
    """`pip install`, and what `make demo` installs, each into a new environment; what was old ends after a while."""
    place = scratch / "env"

    def installed(arguments: list[str]) -> dict:
        began = time.perf_counter()
        subprocess.run(arguments, check=True, cwd=scratch, env=_clean())
        return {"seconds": time.perf_counter() - began}

    def by_pip(extra: str) -> dict:
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip = [place / "bin" / "python", "-m", "pip", "install", "--quiet"]
        found = installed([*map(str, pip), f"{ROOT}{extra}"])
        found["mb"] = _megabytes(place)
        shutil.rmtree(place)
        return found

    def by_make(checkout: Path) -> dict:
        """As `make demo` does, up to the first answer, with which all byte code is there that it takes."""
        make = ["make", "--quiet", f"--directory={checkout}", f"PYTHON={sys.executable}", f"VENV={place}"]
        try:
            found = installed(["timeout", str(chosen.most), *make, f"{place}/.demo"])
        except subprocess.CalledProcessError as error:
            if error.returncode != 124:
                raise
            return {"seconds": chosen.most, "mb": _megabytes(place), "ended": True}
        uploads = scratch / "uploads"
        uploads.mkdir()
        python, without = place / "bin" / "python", {"PYTHONDONTWRITEBYTECODE": ""}
        with served(uploads, python=python, checkout=checkout, PYTHONPATH="", **without) as server:
            demo.answer(server.url, demo.picture("xray"), "xray")
        found |= {"mb": _megabytes(place), "packages": _packages(place)}
        shutil.rmtree(place)
        shutil.rmtree(uploads)
        return found

    found = {"new": by_pip(""), "new, extra": by_pip("[demo]"), "new, page": by_make(ROOT)}
    with older(chosen.old) as old:
        found["old, page"] = by_make(old)
    return found


def _clean() -> dict[str, str]:
    """The variables of this process without those that tell Python what to do."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _megabytes(place: Path) -> float:
    return sum(f.stat().st_size for f in place.rglob("*") if f.is_file() and not f.is_symlink()) / 2**20


def _packages(env: Path) -> dict[str, float]:
    """Megabytes of each package in an environment, byte code included; the largest first."""
    found = {}
    (site,) = env.glob("lib/python*/site-packages")
    for one in distributions(path=[str(site)]):
        files = {file.locate() for file in one.files or ()}
        files |= {code for file in files for code in file.parent.glob(f"__pycache__/{file.stem}.*.pyc")}
        found[one.name] = sum(file.stat().st_size for file in files if file.is_file()) / 2**20
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def start(chosen: argparse.Namespace, scratch: Path) -> dict:
    """First answers of the command line, in turns."""
    command = ["-m", "hub_model", "score", EXAMPLE, "--model", "ct"]
    with older(chosen.old) as old:
        found = {"old": [], "new": []}
        for _ in range(STARTS):
            for name, checkout in (("old", old), ("new", ROOT)):
                found[name].append(run(checkout, command)[:2])
    return {
        name: {"seconds": min(s for s, _ in some), "mb": min(m for _, m in some)}
        for name, some in found.items()
    }


def score(chosen: argparse.Namespace, scratch: Path) -> dict:
    """Pictures a second of `covid-xct score`, and what it is held against."""
    pictures(chosen.data, chosen.count, scratch)
    mixed, plain = scratch / "mixed", scratch / "plain"

    def scored(checkout: Path, files: Path, model: str) -> dict:
        out = scratch / f"{time.monotonic_ns()}.csv"
        seconds, memory, _ = run(
            checkout, ["-m", "hub_model", "score", files, "--model", model, "--out", out]
        )
        decisions = Counter(line.split(",")[1] for line in out.read_text("utf-8").splitlines()[1:])
        return {"seconds": seconds, "mb": memory, "refused": decisions["refused"]}

    found: dict[str, Any] = {"pictures": chosen.count, "plain": len(list(plain.iterdir()))}
    found["limit_before"] = json.loads(run(ROOT, ["-c", LIMIT, chosen.count])[2])
    found["new"] = scored(ROOT, mixed, "auto")
    found["limit"] = json.loads(run(ROOT, ["-c", LIMIT, chosen.count])[2])
    for name in ("xray", "ct"):
        found[f"new {name}"] = scored(ROOT, plain, name)
        model = ROOT / "hub_model" / "checkpoints" / name
        seconds, memory, _ = run(ROOT, ["-c", PIPELINE, model, plain])
        found[f"pipeline {name}"] = {"seconds": seconds, "mb": memory}
    films = scratch / "films"
    films.mkdir()
    _film(films / "0.dcm")
    for number in range(1, FILM_COPIES):
        os.link(films / "0.dcm", films / f"{number}.dcm")
    found["films"] = FILM_COPIES
    for name in ("xray", "auto"):
        found[f"new films, {name}"] = scored(ROOT, films, name)
    with older(chosen.old) as old:
        found["old"] = scored(old, mixed, "auto")
    return found


def page(chosen: argparse.Namespace, scratch: Path) -> dict:
    """Answers of the web page of each version, heat map included; both run at once and are asked in turns."""
    servers: dict[str, Server] = {}
    found: dict[str, dict] = {"old": {}, "new": {}}
    took: dict[tuple, tuple[list[float], list[float], list[float]]] = {}
    with contextlib.ExitStack() as stack:
        checkouts = {"old": stack.enter_context(older(chosen.old)), "new": ROOT}
        firsts = {name: [] for name in checkouts}
        for turn, (name, checkout) in itertools.product(range(STARTS), checkouts.items()):
            place = scratch / f"{name}{turn}"
            place.mkdir()
            with served(place, checkout=checkout, PYTHONPATH=str(checkout)) as server:
                firsts[name].append(server.started + demo.answer(server.url, demo.picture("xray"), "xray"))
        for name, checkout in checkouts.items():
            found[name]["first_answers_s"] = firsts[name]
            found[name]["first_answer_s"] = statistics.median(firsts[name])
            (scratch / name).mkdir()
            server = served(scratch / name, checkout=checkout, PYTHONPATH=str(checkout))
            servers[name] = stack.enter_context(server)
            for kind, _, _ in ANSWERS:
                demo.answer(servers[name].url, demo.picture(kind), kind)  # warm
        for _, (name, server), one in itertools.product(range(chosen.turns), servers.items(), ANSWERS):
            all_answers, walls, computing = took.setdefault((name, *one[:2]), ([], [], []))
            before = _computed(server)
            answers, wall = demo.timed(server, *one)
            all_answers += answers
            walls.append(wall)
            computing.append(_computed(server) - before)
        for name, server in servers.items():
            rows = [(kind, clients, *took[name, kind, clients]) for kind, clients, _ in ANSWERS]
            found[name]["latency"] = [
                {**demo.latency(*row, sum(walls)), "computing_ms": 1e3 * sum(computing) / len(row[2])}
                for *row, walls, computing in rows
            ]
            found[name]["mb"] = psutil.Process(server.process.pid).memory_info().rss / 2**20
            found[name]["answers"] = sum(len(row[2]) for row in rows)
    return found


def _computed(server: Server) -> float:
    """Seconds of a processor that the server has used so far."""
    times = psutil.Process(server.process.pid).cpu_times()
    return times.user + times.system


def growth(chosen: argparse.Namespace, scratch: Path) -> dict:
    """Seconds and memory with ever more pictures, and of a second run that finds all of them judged."""
    model, rows = stand_in(scratch / "model"), []
    for count in chosen.growth:
        files = copies(scratch / str(count), count)
        command = ["-m", "hub_model", "score", files, "--model", model, "--out", scratch / f"{count}.csv"]
        seconds, memory, _ = run(ROOT, command)
        again, memory_again, _ = run(ROOT, command)
        lines = (scratch / f"{count}.csv").read_text("utf-8").count("\n") - 1
        rows.append({"pictures": count, "rows": lines, "seconds": seconds, "mb": memory, "again_s": again,
                     "again_mb": memory_again})  # fmt: skip
        shutil.rmtree(scratch / str(count))
    return {"rows": rows}


def kills(suffix: str, chosen: argparse.Namespace, scratch: Path) -> dict:
    """Killed at random points and given again until it ends: is every picture there once?"""
    model, count, random_ = stand_in(scratch / "model"), 4000, random.Random(suffix)
    files, out = copies(scratch, count), scratch / f"o{suffix}"
    command = [sys.executable, "-m", "hub_model", "score", *map(str, (files, "--model", model, "--out", out))]
    partial_ = scratch / "o.parquet.rows.jsonl" if suffix == ".parquet" else out
    done = []
    for point in sorted(random_.sample(range(50, count - 200), KILLS)):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=_here())
        while process.poll() is None:
            if partial_.exists() and partial_.read_bytes().count(b"\n") > point:
                time.sleep(random_.random() / 50)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        process.wait()
        done.append(partial_.read_bytes().count(b"\n") if partial_.exists() else count)
    last = subprocess.run(command, capture_output=True, text=True, env=_here())
    if last.returncode:
        raise RuntimeError(last.stderr)
    names = Counter(Path(name).name for name in _names(out))
    wanted = Counter(file.name for file in files.rglob("*.png"))
    return {
        "kills": KILLS,
        "pictures": count,
        "lost": (wanted - names).total(),
        "twice": (names - wanted).total(),
        "rows_at_kills": done,
    }


def ray(chosen: argparse.Namespace, scratch: Path) -> dict:
    """Two local nodes, one killed in the middle; and the rows of one machine."""
    model, count = stand_in(scratch / "model"), 3000
    files = copies(scratch, count)
    told = json.loads(run(ROOT, ["-c", RAY, files, model, scratch / "out"])[2].strip().splitlines()[-1])
    run(ROOT, ["-m", "hub_model", "score", files, "--model", model, "--out", scratch / "one.parquet"])
    import pyarrow.dataset
    import pyarrow.parquet

    many = pyarrow.dataset.dataset(sorted((scratch / "out").glob("part-*"))).to_table().to_pylist()
    one = {row["file"]: row for row in pyarrow.parquet.read_table(scratch / "one.parquet").to_pylist()}
    names = Counter(row["file"] for row in many)
    words = ("decision", "codes", "reasons", "modality", "operating_point")
    return {
        **told,
        "pictures": count,
        "lost": len(one.keys() - names.keys()),
        "twice": sum(n - 1 for n in names.values()),
        "other_decisions": sum(any(row[key] != one[row["file"]][key] for key in words) for row in many),
        "largest_difference": max(
            abs((row["probability"] or 0) - (one[row["file"]]["probability"] or 0)) for row in many
        ),
    }


def _here() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def _names(out: Path) -> list[str]:
    import csv

    if out.suffix == ".csv":
        with open(out, encoding="utf-8", newline="") as stream:
            return [row["file"] for row in csv.DictReader(stream)]
    if out.suffix == ".jsonl":
        return [json.loads(line)["file"] for line in out.read_text("utf-8").splitlines()]
    import pyarrow.parquet

    return pyarrow.parquet.read_table(out)["file"].to_pylist()


SECTIONS: dict[str, Callable[[argparse.Namespace, Path], dict]] = {
    **{f"kills{suffix}": partial(kills, suffix) for suffix in FORMATS},
    "ray": ray,
    "growth": growth,
    "install": install,
    "start": start,
    "score": score,
    "page": page,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; by default all")
    parser.add_argument("--old", default="cf14cc7", help="commit to compare with")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--turns", type=int, default=TURNS, help="of the two pages")
    parser.add_argument("--most", type=int, default=600, help="seconds after which an installation is ended")
    parser.add_argument("--count", type=int, default=500, help="real pictures to score")
    parser.add_argument(
        "--growth", type=int, nargs="+", default=GROWTH, help="numbers of pictures to grow by"
    )
    chosen = parser.parse_args()
    if wrong := set(chosen.sections) - SECTIONS.keys():
        parser.error(f"there is no section {', '.join(sorted(wrong))}; there are {', '.join(SECTIONS)}")
    file = FOLDER / "light.json"
    for name in chosen.sections or SECTIONS:
        before = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as scratch:
            found = SECTIONS[name](chosen, Path(scratch))
        found |= {"load": [round(before, 1), round(os.getloadavg()[0], 1)], "old_commit": chosen.old,
                  "environment": environment("numpy", "onnxruntime", "pillow", "torch", "transformers")}  # fmt: skip
        result = json.loads(file.read_text("utf-8")) if file.exists() else {}
        result[name] = found
        write("light", result, told(result))


# --- in words -------------------------------------------------------------------------------------


def told(result: dict) -> str:
    """What was measured so far, as a table and sentences."""
    parts = []
    if rows := _beside(result):
        commit = next(iter(result.values()))["old_commit"]
        parts.append(table(["", f"commit {commit}", "this version", "ratio"], rows))
    parts += [words(result[name]) for name, words in WORDS.items() if name in result]
    if any(name.startswith("kills") for name in result):
        parts.append(_kills_words(result))
    if "score" in result:
        parts.append(_on_paper(result["score"]))
    env = next(iter(result.values()))["environment"]
    loads = ", ".join(f"{name} {one['load'][0]:g} to {one['load'][1]:g}" for name, one in result.items())
    parts.append(
        f"{env['cpu']}, {env['cores']} cores, `python -m tests.benchmarks.light`. Load of the machine before "
        "and after "
        f"each part, other work included: {loads}."
    )
    return "\n\n".join(parts)


def _beside(result: dict) -> list[list[str]]:
    """Rows of what both versions do."""
    found: list[tuple[str, float, float, int]] = []
    if one := result.get("install"):
        for name, label in (
            ("new, page", "`make demo` from nothing: install"),
            ("new, extra", "`pip install 'covid-xct[demo]'` (before: `make demo`)"),
            ("new", "`pip install covid-xct` (before: `make demo`)"),
        ):
            for key, unit, what in (("seconds", "s", label), ("mb", "MB", "its environment")):
                found.append((f"{what}, {unit}", one["old, page"][key], one[name][key], 0))
    if one := result.get("start"):
        found.append(("first answer of the command line, s", one["old"]["seconds"], one["new"]["seconds"], 1))
        found.append(("memory of that process, MB", one["old"]["mb"], one["new"]["mb"], 0))
    if one := result.get("score"):
        rate = {name: one["pictures"] / one[name]["seconds"] for name in ("old", "new")}
        found.append(("`covid-xct score`, pictures a second", rate["old"], rate["new"], 1))
        found.append(("memory of that process, MB", one["old"]["mb"], one["new"]["mb"], 0))
    if one := result.get("page"):
        old, new = one["old"], one["new"]
        found.append(("first answer of the page, s", old["first_answer_s"], new["first_answer_s"], 1))
        words = {"xray": "X-ray", "ct": "CT slice", "detect": "kind detected"}
        for a, b in zip(old["latency"], new["latency"], strict=True):
            label = f"page, {words[b['kind']]}, {b['clients']} at once"
            found.append((f"{label}: p50, ms", a["p50_ms"], b["p50_ms"], 0))
            key = "computing_ms"
            found.append((f"{label}: processor time of an answer, ms", a[key], b[key], 0))
            if b["clients"] > 1:
                found.append((f"{label}: answers a second", a["per_second"], b["per_second"], 1))
        found.append((f"memory of the page after {new['answers']} answers, MB", old["mb"], new["mb"], 0))
    rows = [[label, f"{a:,.{d}f}", f"{b:,.{d}f}", f"{b / a:.2f}"] for label, a, b, d in found]
    if result.get("install", {}).get("old, page", {}).get("ended"):
        for row in rows[:INSTALLED]:
            row[1], row[3] = f"more than {row[1]}", f"less than {row[3]}"
    return rows


def _score_words(one: dict) -> str:
    seconds, limit = one["new"]["seconds"], one["limit"]
    both = sum(min(limit[key], one["limit_before"][key]) for key in limit)
    classifiers = min(limit["classifiers"], one["limit_before"]["classifiers"])
    versus = "; ".join(
        f"{kind} {one[f'new {key}']['seconds']:.0f} s against {one[f'pipeline {key}']['seconds']:.0f} s"
        for key, kind in (("xray", "X-ray network"), ("ct", "CT network"))
    )
    return (
        f"**Score.** {one['pictures']} real pictures, X-ray and CT in turn, a tenth of them DICOM and a tenth "
        "of 16 bits, "
        f"through both models: {seconds:.0f} s. The networks alone, on pixels that are there already, need "
        f"{both:.0f} s "
        f"in ONNX Runtime with all cores, {both / seconds:.0%} of that: the two classifiers {classifiers:.0f} s "
        "in batches "
        f"of {BATCH}, the two lung networks, without which there is no answer, the rest. With one model, `score "
        "--model` "
        "(which finds lungs, guards and decides) against transformers' `pipeline` (which does not) in batches "
        f"of {BATCH} "
        f"on the {one['plain']} pictures that it opens: {versus}."
    )


def _page_words(one: dict) -> str:
    return (
        f"**The page.** An answer is an upload of {demo.SIDE} x {demo.SIDE} pixels, judged, and its tinted picture "
        f"fetched ({one['new']['latency'][-1]['n']} answers with many clients, {one['new']['latency'][0]['n']} in the "
        "other rows). Both versions ran at once and were asked in turns; processor time depends less on other work on "
        "the machine than the rest. The first answer is the median of several starts, in turns, too; what is left of "
        "it is mostly the import of Gradio."
    )


def _growth_words(one: dict) -> str:
    rows = [
        [f"{r['pictures']:,}", f"{r['rows']:,}", f"{r['seconds']:.0f}", f"{r['pictures'] / r['seconds']:.0f}",
         f"{r['mb']:.0f}", f"{r['again_s']:.0f}", f"{r['again_mb']:.0f}"]
        for r in one["rows"]
    ]  # fmt: skip
    head = ["pictures", "rows", "s", "a second", "MB", "given again, s", "MB"]
    return f"**Growth.** Small copies, judged by an untrained network of 96 pixels.\n\n{table(head, rows)}"


def _kills_words(result: dict) -> str:
    found = {name.removeprefix("kills"): one for name, one in result.items() if name.startswith("kills")}
    told = "; ".join(f"`{name}`: {one['lost']} lost, {one['twice']} twice" for name, one in found.items())
    first = next(iter(found.values()))
    return (
        f"**Kills.** {first['pictures']:,} pictures, killed at {first['kills']} random points and given again: "
        f"{told}."
    )


def _ray_words(one: dict) -> str:
    return (
        f"**Two Ray nodes, one killed** after {one['killed_after'][0]:,} of {one['pictures']:,} pictures: "
        f"{one['lost']} "
        f"lost, {one['twice']} twice, {one['other_decisions']} rows that say something else than those of one "
        "machine; "
        f"probabilities differ by at most {one['largest_difference']:.0e}."
    )


def _install_words(one: dict) -> str:
    packages = one["new, page"]["packages"]
    most = {name: mb for name, mb in packages.items() if mb >= 10}
    listed = ", ".join(f"{name} {mb:.0f}" for name, mb in most.items())
    old = one["old, page"]
    ended = (
        f" That of commit {one['old_commit']} was ended after {old['seconds']:.0f} s, unfinished."
        if old.get("ended")
        else ""
    )
    return (
        f"**Installing** into new environments, everything fetched from a package index.{ended} The environment of "
        "`make demo` is weighed after the page's first answer, with the byte code that this takes, pip and setuptools "
        "included; `pip install` compiles everything, which takes longer and more room. What weighs most in it, MB: "
        f"{listed}; {len(packages) - len(most)} more {sum(packages.values()) - sum(most.values()):.0f}."
    )


WORDS: dict[str, Callable[[dict], str]] = {
    "install": _install_words,
    "page": _page_words,
    "score": _score_words,
    "growth": _growth_words,
    "ray": _ray_words,
}


def _on_paper(one: dict) -> str:
    """Ten million films, from the measured rates."""
    cores = one["environment"]["cores"]
    film, small = (
        one["new films, xray"]["seconds"] * cores / one["films"],
        one["new"]["seconds"] * cores / one["pictures"],
    )
    hours, feed = FILMS * film / 3600, STORE_MB_S / FILM_MB
    return (
        f"**On paper, {FILMS:,} films.** A synthetic film of 2500 x 3000 pixels (DICOM, 12 bits, {FILM_MB} MB) takes "
        f"{film:.2f} s of a core through the X-ray model ({one['films']} in a run, its start included), a small "
        "picture "
        f"{small:.2f} s through both models: most of a film's time goes into reading it. {FILMS:,} films are "
        f"{hours:,.0f} core hours, {hours / 1000:.1f} hours on 1,000 cores, and {FILMS * FILM_MB / 1e6:,.0f} "
        "TB. A store "
        f"that gives {STORE_MB_S / 1000:g} GB/s feeds {feed:.0f} films a second, as many as "
        f"{math.ceil(feed * film):,} "
        f"cores judge, and takes {FILMS / feed / 3600:.0f} hours: beyond that many cores the store is the "
        "bottleneck, "
        f"before it the processors. The list of names takes about {FILMS * 150 / 1e9:.1f} GB on the machine "
        "that starts "
        f"the run, and listing a bucket of so many {FILMS / 1000 * 0.1 / 60:.0f} minutes at a thousand names in "
        "0.1 s. No "
        "run was that large."
    )


if __name__ == "__main__":
    main()
