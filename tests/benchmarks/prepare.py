"""How long preparing data takes, how much memory, how both grow, and what a killed run costs.

    python -m tests.benchmarks.prepare ../shared/data

Makes augmented archives (`tests/augmented.py`) of the wanted sizes from real pictures of both modalities, and
prepares each from zip to parquet, families included, by the verb a user types, in a process of its own. The
memory is the sum of the resident sets of all its processes, pages they share counted in each of them, sampled
every second. One size is run once more, killed when half of its pictures are read, and resumed.

`cpu_seconds` is what the processes used; `others_cpu_seconds` what the rest of the machine used meanwhile:
where it is not small, the seconds are too long. Writes docs/measured/prepare.json and prepare.md. With --work
a run that was stopped goes on where it was.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.augmented import originals, write_archive
from tests.benchmarks.measured import environment, table, write
from train.data.reading import CHUNK

COPIES = 10
SAMPLE_SECONDS = 1.0
GIB = 2**30


def make_archive(data: Path, folder: Path, size: int) -> Path:
    """A zip in the documented layout with `size` pictures: originals and ten copies of each, both
    modalities."""
    archive = folder / f"{size}.zip"
    if not archive.is_file():
        chosen = originals(data)
        wanted = -(-size // (COPIES + 1))
        some = [chosen[place * len(chosen) // wanted] for place in range(wanted)]
        write_archive(some, folder / "part.zip", COPIES)
        os.replace(folder / "part.zip", archive)
    return archive


def command(archive: Path, out: Path, jobs: int) -> list[str]:
    return [sys.executable, "-m", "train", "prepare", str(archive), "--out", str(out), "--jobs", str(jobs)]


def memory_of(process: psutil.Process) -> int:
    """Bytes resident in a process and all its children."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.Error:  # one of them has just ended
        pass
    return total


def busy() -> float:
    """Seconds that the cores of this machine have worked since it started."""
    found = psutil.cpu_times()
    return found.user + found.nice + found.system


def measured(argv: list[str], stop: Callable[[], bool] = lambda: False) -> dict:
    """Run a command to its end, or kill it and its children once `stop` says so."""
    cpu, all_cpu, started, peak, killed = children(), busy(), time.monotonic(), 0, False
    process = subprocess.Popen(argv, start_new_session=True, stderr=subprocess.PIPE, text=True)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        peak = max(peak, memory_of(watched))
        if stop():
            os.killpg(process.pid, signal.SIGKILL)
            killed = True
            break
        time.sleep(SAMPLE_SECONDS)
    told = process.communicate()[1]
    if process.returncode and not killed:
        raise SystemExit(told)
    used = children() - cpu
    figures = {"seconds": time.monotonic() - started, "cpu_seconds": used}
    figures |= {"others_cpu_seconds": max(0.0, busy() - all_cpu - used), "peak_gib": peak / GIB}
    return {name: round(value, 2) for name, value in figures.items()}


def children() -> float:
    """CPU seconds of the children that have ended."""
    found = os.times()
    return found.children_user + found.children_system


def told(out: Path) -> dict:
    """What the prepared folder says of itself."""
    report = json.loads((out / "leak_report.json").read_text("utf-8"))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "pictures": report["pictures"],
        "families": report["families"],
        "contradictory": sum(len(one["dropped"]) for one in report["contradictions"]),
        "stored_gib": round(size / GIB, 2),
    }


def one_size(data: Path, folder: Path, size: int, jobs: int) -> dict:
    """Prepare an archive of `size` pictures from nothing to the end."""
    out = folder / f"out-{size}"
    run = measured(command(make_archive(data, folder, size), out, jobs))
    found = {"size": size, **run, **told(out)}
    shutil.rmtree(out)
    return found


def killed_and_resumed(data: Path, folder: Path, size: int, jobs: int) -> dict:
    """Kill a run when half of its chunks are done, then run it to the end."""
    out, chunks = folder / f"killed-{size}", -(-size // CHUNK)
    argv, work = command(make_archive(data, folder, size), out, jobs), Path(f"{out}.partial") / "work"

    def chunks_done() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in work.glob("*.parquet")}

    first = measured(argv, stop=lambda: len(chunks_done()) >= chunks // 2)
    kept, again = chunks_done(), set()

    def watch() -> bool:
        """Never stops it; notes finished chunks that were written anew."""
        now = chunks_done()
        again.update(name for name in kept if name in now and now[name] != kept[name])
        return False

    second = measured(argv, stop=watch)
    found = {
        "size": size,
        "chunks": chunks,
        "chunks_done_when_killed": len(kept),
        "of_those_redone": len(again),
    }
    del first["cpu_seconds"], first["others_cpu_seconds"]  # those of killed grandchildren are not told
    found |= {"killed_run": first, "resumed_run": second, **told(out)}
    shutil.rmtree(out)
    return found


def remembered(file: Path, measure: Callable[[], dict]) -> dict:
    """What an earlier call measured, else what `measure` finds now."""
    if not file.is_file():
        found = measure()
        file.write_text(json.dumps(found), "utf-8")
        print(json.dumps(found), file=sys.stderr)
    return json.loads(file.read_text("utf-8"))


def text(result: dict) -> str:
    """The paragraph and table for the README."""
    rows = [
        [
            f"{run['pictures']:,}",
            f"{run['families']:,}",
            f"{run['seconds']:.0f}",
            f"{1000 * run['cpu_seconds'] / run['pictures']:.0f}",
            f"{run['cpu_seconds']:.0f}",
            f"{run['others_cpu_seconds']:.0f}",
            f"{run['peak_gib']:.1f}",
        ]
        for run in result["runs"]
    ]
    head = ["pictures", "families", "seconds", "CPU ms a picture", "CPU seconds", "others' CPU seconds"]
    head += ["memory, GiB"]
    found = result["resume"]
    return f"""
`python -m tests.benchmarks.prepare ../shared/data` prepares augmented archives of real pictures of both
modalities from zip to parquet, families included, with {result["jobs"]} processes on
{result["environment"]["cores"]} cores ({result["environment"]["cpu"]}). Memory is the sum over all processes.
Others' CPU seconds are what the rest of the machine used meanwhile.

{table(head, rows)}

A run over {found["size"]:,} pictures that was killed when {found["chunks_done_when_killed"]} of its
{found["chunks"]} chunks were read redid {found["of_those_redone"]} of them: the resumed run took
{found["resumed_run"]["cpu_seconds"]:.0f} CPU seconds.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with metadata.csv")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 8000, 17600])
    parser.add_argument("--killed", type=int, default=2000, help="size of the run that is killed and resumed")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder for archives and results; else a temporary one")
    parser.add_argument("--only", help="measure this alone (a size, or 'killed'), into --work; write nothing")
    args = parser.parse_args()
    folder = args.work or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        str(size): lambda size=size: one_size(args.data, folder, size, args.jobs) for size in args.sizes
    }
    wanted["killed"] = lambda: killed_and_resumed(args.data, folder, args.killed, args.jobs)
    if args.only:
        remembered(folder / f"{args.only}.json", wanted[args.only])
        return
    found = {name: remembered(folder / f"{name}.json", measure) for name, measure in wanted.items()}
    result = {
        "jobs": args.jobs,
        "copies_per_original": COPIES,
        "runs": [found[str(size)] for size in args.sizes],
        "resume": found["killed"],
        "environment": environment("numpy", "opencv-python-headless", "pyarrow", "joblib"),
    }
    write("prepare", result, text(result))
    if args.work is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
