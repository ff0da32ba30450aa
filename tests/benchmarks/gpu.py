"""What a GPU gives, and whether it gives the same answers.

    python -m tests.benchmarks.gpu [PICTURES] [--device cuda] [--count 1000]

PICTURES (by default ../shared/data) is a folder with xray/ and ct/ in it. Measured for both embedded networks, and
written to docs/measured/gpu.json and gpu.md:

- pictures a second of the network alone, heat maps included, in batches of several sizes, beside ONNX Runtime with all
  cores of the same machine;
- how far probabilities are from those of the CPU, and how many decisions differ at any operating point: as shipped,
  with TF32 convolutions, and in half precision (neither is offered, and this says why or why not);
- `covid-xct score` on copies of the pictures, which also decodes them and finds lungs: on the CPU by default (a
  reading thread a core) and with two reading threads, and on the GPU with batches of 64.
"""

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from hub_model import Screener, backends
from hub_model.grey import ImageRefused
from tests.benchmarks.measured import environment, table, write

ROOT = Path(__file__).resolve().parents[2]
MODELS = {"xray": "X-ray", "ct": "CT"}
BATCHES, COMPARED, SCORED = (1, 8, 32, 128), 256, 64
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
AT_LEAST_S = 2.0
"""Of computing behind each rate."""
SCORES = {
    "cpu": "CPU, defaults (a reading thread a core)",
    "cpu, two threads": "CPU, two reading threads",
    "gpu": f"GPU, batches of {SCORED}",
}
WAYS = {
    "as shipped (single precision)": lambda kind: contextlib.nullcontext(),
    "convolutions in TF32": lambda kind: patch.object(backends, "_single_precision", lambda *_: tf32()),
    "half precision (float16)": lambda kind: torch.autocast(kind, torch.float16),
    "half precision (bfloat16)": lambda kind: torch.autocast(kind, torch.bfloat16),
}
"""Name -> context in which the network computes on a device of that kind."""


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """Let convolutions round their factors, as torch does unless told otherwise."""
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    yield


def rate(run, pixels: np.ndarray, batch: int) -> float:
    """Pictures a second of a backend, heat maps included, in batches of that size."""
    some = np.ascontiguousarray(np.resize(pixels, (batch, *pixels.shape[1:])))
    for _ in range(3):
        run(some, heat_maps=True)
    done, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < AT_LEAST_S:
        run(some, heat_maps=True)
        done += batch
    return done / passed


def network(name: str, files: list[Path], device: str) -> dict:
    """Rates and agreement of one embedded network."""
    on_cpu = Screener.from_pretrained(name)
    on_gpu = Screener.from_pretrained(name, backend="torch", device=device)
    pixels = []
    for file in files:
        with contextlib.suppress(ImageRefused):
            pixels.append(np.asarray(on_cpu.folder.transform(Image.open(file).convert("L"))))
        if len(pixels) == COMPARED:
            break
    pixels = np.stack(pixels).astype(np.float32)
    thresholds = [point["threshold"] for point in on_cpu.folder.screening["operating_points"].values()]
    expected = probabilities(on_cpu._network.run, pixels)
    agreement = {}
    for way, context in WAYS.items():
        with context(torch.device(device).type):
            found = probabilities(on_gpu._network.run, pixels)
        agreement[way] = {
            "largest": float(np.abs(found - expected).max()),
            "decisions": int(sum(((found >= t) != (expected >= t)).sum() for t in thresholds)),
        }
    return {
        "compared": len(pixels),
        "points": len(thresholds),
        "agreement": agreement,
        "cpu": {str(batch): rate(on_cpu._network.run, pixels, batch) for batch in BATCHES[:2]},
        "gpu": {str(batch): rate(on_gpu._network.run, pixels, batch) for batch in BATCHES},
    }


def probabilities(run, pixels: np.ndarray) -> np.ndarray:
    """P(COVID) of pixels (N, 3, H, W) by a backend, (N,) float64."""
    logits = np.concatenate(
        [run(some, heat_maps=True).logits for some in np.split(pixels, range(32, len(pixels), 32))]
    )
    return 1 / (1 + np.exp(-(logits[:, 1] - logits[:, 0]).astype(float)))


def score(folder: Path, count: int, flags: list[str]) -> dict:
    """Seconds of the command over a folder, and how many rows it wrote."""
    out = folder.parent / "findings.csv"
    out.unlink(missing_ok=True)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "hub_model", "score", folder, "--out", out, *flags]
    began = time.perf_counter()
    subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path}
    )
    seconds = time.perf_counter() - began
    if (rows := len(out.read_text("utf-8").splitlines()) - 1) != count:
        raise RuntimeError(f"{count} pictures gave {rows} rows")
    return {"seconds": seconds, "pictures": count}


def measure(data: Path, device: str, count: int) -> dict:
    """Everything on one machine."""
    files = {
        name: sorted(file for file in (data / name).rglob("*") if file.suffix.lower() in PICTURES)
        for name in MODELS
    }
    found = {name: network(name, files[name], device) for name in MODELS}
    on_gpu = ["--backend", "torch", "--device", device, "--batch-size", str(SCORED)]
    flags = {"cpu": [], "cpu, two threads": ["--workers", "2"], "gpu": on_gpu}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "in"
        folder.mkdir()
        pairs = zip(*map(itertools.cycle, files.values()), strict=False)
        for number, file in zip(range(count), itertools.chain.from_iterable(pairs), strict=False):
            os.symlink(file.resolve(), folder / f"{number:06d}{file.suffix}")
        found["score"] = {way: score(folder, count, given) for way, given in flags.items()}
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return {
        **found,
        "convolutions": "single precision",
        "device": name,
        "environment": environment("torch", "timm", "onnxruntime"),
    }


def told(result: dict) -> str:
    """The page's words."""
    rows = []
    for name, title in MODELS.items():
        batch, value = max(((int(size), value) for size, value in result[name]["cpu"].items()))
        rows.append([f"{title} network alone, CPU, batch of {batch}", f"{value:,.0f}"])
        rows += [
            [f"the same, GPU, batch of {size}", f"{value:,.0f}"]
            for size, value in result[name]["gpu"].items()
        ]
    for way, title in SCORES.items():
        one = result["score"][way]
        rows.append([f"`covid-xct score`, both models, {title}", f"{one['pictures'] / one['seconds']:,.0f}"])
    both = {way: [result[name]["agreement"][way] for name in MODELS] for way in WAYS}
    ways = [
        [way, *(f"{one['largest']:.0e}" for one in pair), *(f"{one['decisions']}" for one in pair)]
        for way, pair in both.items()
    ]
    head = [f"{title}: {what}" for what in ("largest difference", "decisions") for title in MODELS.values()]
    compared = [f"{result[name]['compared']} ({title})" for name, title in MODELS.items()]
    points = [f"{result[name]['points']}" for name in MODELS]
    machine = result["environment"]
    return "\n\n".join(
        [
            table(["pictures a second, heat maps included", ""], rows),
            "How far the GPU's probabilities are from those of ONNX Runtime on the CPU, and how many decisions differ, "
            f"on {' and '.join(compared)} pictures at {' and '.join(points)} operating points:",
            table(["", *head], ways),
            f"{result['device']}, {machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, `python -m "
            f"tests.benchmarks.gpu`. `score` counts from its start, {result['score']['gpu']['pictures']:,} pictures. "
            f"Convolutions on the GPU were in {result['convolutions']} for these rates.",
        ]
    )


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measured")
    chosen = parser.parse_args()
    result = measure(chosen.data, chosen.device, chosen.count)
    write("gpu", result, told(result), chosen.out)


if __name__ == "__main__":
    main()
