"""How long preparing data takes, how much memory, how both grow, and what a killed run costs.

python -m tests.benchmarks.prepare ../shared/data --sizes 2000 6000 17600 --out prepare.json

Makes augmented archives (`tests/augmented.py`) of the wanted sizes from real pictures, prepares each from zip
to parquet in a process of its own, families included, and samples the memory of the whole process tree. The
last size is run once more, killed when half of its pictures are read, and resumed. Prints one JSON object;
times are seconds. `cpu_seconds` is what the processes used, whatever else the machine was doing.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.augmented import originals, write_archive

COPIES = 10
SAMPLE_SECONDS = 2.0
GIB = 2**30


def make_archive(data: Path, folder: Path, size: int) -> Path:
    """A zip in the documented layout with `size` pictures: originals and ten copies of each, both
    modalities."""
    chosen = originals(data)
    per_original = COPIES + 1
    wanted = -(-size // per_original)
    step = len(chosen) / wanted
    some = [chosen[int(place * step)] for place in range(wanted)]
    archive = folder / f"{size}.zip"
    write_archive(some, archive, COPIES)
    return archive


def command(archive: Path, out: Path, jobs: int) -> list[str]:
    return [sys.executable, "-m", "train", "prepare", str(archive), "--out", str(out), "--jobs", str(jobs)]


def tree_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def memory_of(processes: list[psutil.Process]) -> int:
    """Bytes held by processes, pages they share counted once (proportional set size)."""
    total = 0
    for one in processes:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def measured(argv: list[str], stop_at: int | None = None, work: Path | None = None) -> dict:
    """Run a command to its end, or kill it and its children once `stop_at` chunk files are in `work`."""
    before = os.times()
    started, peak, killed = time.monotonic(), 0, False
    process = subprocess.Popen(argv, start_new_session=True, stderr=subprocess.PIPE, text=True)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        peak = max(peak, memory_of(tree_of(watched)))
        if stop_at and work.is_dir() and len(list(work.glob("*.parquet"))) >= stop_at:
            os.killpg(process.pid, signal.SIGKILL)
            killed = True
        time.sleep(SAMPLE_SECONDS)
    seconds = time.monotonic() - started
    if process.returncode and not killed:
        raise SystemExit(process.stderr.read())
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_gib": round(peak / GIB, 2)}


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


def killed_and_resumed(archive: Path, out: Path, pictures: int, jobs: int) -> dict:
    """Kill a run when half of its chunks are done, then run it to the end."""
    from train.reading import CHUNK

    work = out.with_name(out.name + ".partial") / "work"
    first = measured(command(archive, out, jobs), pictures // CHUNK // 2, work)
    kept = len(list(work.glob("*.parquet")))
    second = measured(command(archive, out, jobs))
    return {
        "chunks": -(-pictures // CHUNK),
        "chunks_done_when_killed": kept,
        "killed_run": first,
        "resumed_run": second,
        **told(out),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with metadata.csv")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 6000, 17600])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--work", type=Path, help="folder for archives and results; by default a temporary one"
    )
    parser.add_argument("--out", type=Path, help="file for the result")
    args = parser.parse_args()
    folder = args.work or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "jobs": args.jobs}
    result: dict = {"machine": machine, "runs": []}
    for size in args.sizes:
        archive, out = make_archive(args.data, folder, size), folder / f"out-{size}"
        run = measured(command(archive, out, args.jobs))
        result["runs"].append({"size": size, **run, **told(out)})
        print(json.dumps(result["runs"][-1]), file=sys.stderr)
        shutil.rmtree(out)
    result["resume"] = killed_and_resumed(archive, out, result["runs"][-1]["pictures"], args.jobs)
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", "utf-8")
    if args.work is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
