"""What screening costs: this version beside an older one, on one machine in one run.

    python -m tests.benchmarks.light [--old cf14cc7] [--data ../shared/data] [--count 500] [--install]

Seconds to the first answer of the command line and the memory of its process; pictures a second of `covid-xct score`
on real pictures of both kinds, and what it is held against: transformers' `pipeline` with one of the networks in
batches, and the time that ONNX Runtime needs for the two networks alone with all cores. With --install also what
`pip install` of each version takes. Writes docs/measured/light.json and light.md, and says there how busy the machine
was with other work.
"""

import argparse
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.measured import environment, table, write

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "demo" / "examples" / "phantom_ct_1.png"
STARTS, BATCH = 3, 8
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
count, spent = int(sys.argv[1]), 0.0
for name in ("xray", "ct"):
    screener = Screener.from_pretrained(name)
    pixels = np.zeros((8, *screener.config["pretrained_cfg"]["input_size"]), np.float32)
    screener._network.run(pixels, heat_maps=True)
    began = time.perf_counter()
    for _ in range(0, count, 8):
        screener._network.run(pixels, heat_maps=True)
    spent += time.perf_counter() - began
print(spent)
"""


def run(
    checkout: Path, arguments: list[object], python: str | Path = sys.executable
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
    variables = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, report.name, str(python), *map(str, arguments)],
        env=variables,
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    with report:
        per_unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
        return seconds, int(report.read()) * per_unit / 2**20, done.stdout


def pictures(data: Path, count: int, target: Path) -> None:
    """Copies of real pictures of both kinds in turn, each under a name of its own."""
    target.mkdir()
    kinds = [[f for f in sorted((data / kind).rglob("*")) if f.is_file()] for kind in ("xray", "ct")]
    for files in kinds:
        random.Random(0).shuffle(files)
    turns = itertools.cycle(itertools.chain.from_iterable(zip(*map(itertools.cycle, kinds), strict=False)))
    for number, file in zip(range(count), turns, strict=False):
        shutil.copy(file, target / f"{number:06d}{file.suffix}")


def version_figures(checkout: Path, files: Path, count: int) -> dict:
    """First answer, memory and speed of `covid-xct score` of one checkout."""
    score = ["-m", "hub_model", "score"]
    starts = [run(checkout, [*score, EXAMPLE, "--model", "ct"]) for _ in range(STARTS)]
    with tempfile.TemporaryDirectory() as scratch:
        seconds, memory, _ = run(checkout, [*score, files, "--out", Path(scratch) / "o.csv"])
    return {
        "first_answer_s": min(found[0] for found in starts),
        "first_answer_mb": min(found[1] for found in starts),
        "score_s": seconds,
        "score_mb": memory,
        "pictures_per_s": count / seconds,
    }


def install(checkout: Path) -> dict:
    """Seconds and megabytes of `pip install` into a new environment."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-m", "venv", scratch], check=True)
        began = time.perf_counter()
        pip = [Path(scratch) / "bin" / "python", "-m", "pip", "install", "--quiet", checkout]
        subprocess.run([*map(str, pip)], check=True)
        size = sum(f.stat().st_size for f in Path(scratch).rglob("*") if f.is_file() and not f.is_symlink())
        return {"install_s": time.perf_counter() - began, "install_mb": size / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", default="cf14cc7", help="commit to compare with")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument(
        "--install", action="store_true", help="also measure pip install (the old one takes 7 GB)"
    )
    chosen = parser.parse_args()
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        files, old = Path(scratch) / "pictures", Path(scratch) / "old"
        pictures(chosen.data, chosen.count, files)
        subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", old, chosen.old], cwd=ROOT, check=True
        )
        try:
            found = {
                name: version_figures(checkout, files, chosen.count)
                | (install(checkout) if chosen.install else {})
                for name, checkout in (("old", old), ("new", ROOT))
            }
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", old], cwd=ROOT, check=True)
        limit = float(run(ROOT, ["-c", LIMIT, chosen.count])[2])
        seconds = run(ROOT, ["-c", PIPELINE, ROOT / "hub_model" / "checkpoints" / "ct", files])[0]
        with tempfile.TemporaryDirectory() as place:
            alone = run(
                ROOT, ["-m", "hub_model", "score", files, "--model", "ct", "--out", f"{place}/o.csv"]
            )[0]
    result = {
        "environment": environment("numpy", "onnxruntime", "pillow", "torch", "transformers"),
        "load_before": busy,
        "load_after": os.getloadavg()[0],
        "pictures": chosen.count,
        "commit_old": chosen.old,
        "versions": found,
        "networks_alone_s": limit,
        "share_of_limit": limit / found["new"]["score_s"],
        "pipeline_ct_s": seconds,
        "score_ct_s": alone,
    }
    write("light", result, told(result))


def told(result: dict) -> str:
    """The figures in words and a table."""
    old, new = result["versions"]["old"], result["versions"]["new"]
    units = {
        "first_answer_s": "first answer of the command line, s",
        "first_answer_mb": "memory of that process, MB",
        "pictures_per_s": "`covid-xct score`, pictures a second",
        "score_mb": "memory of that process, MB",
        "install_s": "`pip install`, s",
        "install_mb": "its environment, MB",
    }
    rows = [
        [label, f"{old[key]:,.1f}", f"{new[key]:,.1f}", f"{new[key] / old[key]:.2f}"]
        for key, label in units.items()
        if key in old
    ]
    env = result["environment"]
    return f"""
{table(["", f"commit {result['commit_old']}", "this version", "ratio"], rows)}

{result["pictures"]} real pictures, X-ray and CT in turn, through both models. The two networks alone, in batches of
{BATCH} in ONNX Runtime with all cores, need {result["networks_alone_s"]:.0f} s: {result["share_of_limit"]:.0%} of the
time of `score`. With the CT network alone transformers' `pipeline` (batches of {BATCH}) takes
{result["pipeline_ct_s"]:.0f} s, `covid-xct score --model ct` {result["score_ct_s"]:.0f} s. {env["cpu"]}, {env["cores"]}
cores, of which other work took {result["load_before"]:.1f} before and {result["load_after"]:.1f} after.
"""


if __name__ == "__main__":
    main()
