"""How fast a whole CT series is answered, and in how much memory: from file to answer, each kind in its own process.

    python -m tests.benchmarks.volumes [--slices 300] [--side 512]

The series is a phantom: a few slices of a synthetic thorax, each repeated with noise of its own.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hub_model import Screener
from tests.benchmarks import measured
from tests.made_volumes import dicom_slices, multi_frame, nifti
from train.phantom.imaging import axial_slice, draw_scan
from train.phantom.phantom import draw_patient

DRAWN = 8
STEPS = np.diag([0.7, 0.7, 1.0])


def hounsfield(slices: int, side: int) -> np.ndarray:
    """HU (slices, side, width), from the feet up."""
    rng = np.random.default_rng(0)
    thorax, _ = draw_patient(0, 1)
    scan = draw_scan(rng)
    heights = np.linspace(*thorax.slice_range(), DRAWN)
    drawn = [axial_slice(thorax, z, scan, rng, side) for z in heights]
    noise = rng.normal(0, 8, drawn[0].shape)
    return np.stack([
        np.clip(drawn[index * DRAWN // slices] + np.roll(noise, 7 * index, 0), -1024, 3000).round().astype(np.int16)
        for index in range(slices)
    ])  # fmt: skip


def main() -> None:
    """Make the files, answer each in a process of its own, and write docs/measured/volumes.*."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument(
        "--answer", type=Path, help="answer this one, and print the figures (for the processes)"
    )
    chosen = parser.parse_args()
    if chosen.answer:
        print(json.dumps(answer(chosen.answer)))
        return
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as folder:
        hu = hounsfield(chosen.slices, chosen.side)
        made = {
            "DICOM, one file a slice": dicom_slices(Path(folder) / "slices", hu),
            "DICOM, many frames": multi_frame(Path(folder) / "many.dcm", hu),
            "NIfTI in gzip": nifti(Path(folder) / "a.nii.gz", hu.transpose(2, 1, 0), STEPS, np.zeros(3)),
        }
        for kind, place in made.items():
            command = [sys.executable, "-m", "tests.benchmarks.volumes", "--answer", str(place)]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            found[kind] = told
            rows.append(
                [kind, f"{told['open']:.1f}", f"{told['slices'] / told['cpu']:.1f}", f"{told['memory']:.0f}"]
            )
    head = ["kind", "CPU seconds to open", "slices a CPU second", "peak memory, MB"]
    text = (
        f"{chosen.slices} slices of {hu.shape[2]} x {hu.shape[1]} pixels, by `python -m tests.benchmarks.volumes`; "
        "CPU time of all threads, from file to answer, the model's loading left out:\n\n"
        + measured.table(head, rows)
    )
    measured.write("volumes", {"found": found, **measured.environment("numpy", "pydicom", "nibabel")}, text)


def answer(place: Path) -> dict[str, float]:
    """Seconds and megabytes of one series."""
    from hub_model import read_volume

    screener = Screener.from_pretrained("ct")
    begun, wall = time.process_time(), time.monotonic()
    volume = read_volume(place)
    opened = time.process_time() - begun
    found = screener.screen_series(volume)
    cpu, wall = time.process_time() - begun, time.monotonic() - wall
    # not ru_maxrss, which a process inherits from the one that started it
    status = Path("/proc/self/status").read_text("utf-8")
    memory = int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024
    return {"slices": len(found.slices), "judged": len(found.judged), "open": opened, "cpu": cpu, "wall": wall,
            "memory": memory}  # fmt: skip


if __name__ == "__main__":
    main()
