"""Broken files of every accepted format, each a function of its number, read by a worker that must not mind.

    python -m tests.attacks.mutants FOLDER

is the worker: it reads names of files from its input, reads each file as the package does, and answers a line.
"""

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10
"""Of processor time that a file may take."""
MEMORY = 3 * 2**30
"""Address space of the worker, libraries included; 1 GB of it is there before the first file."""
CANARY = b"CANARY"
"""In the patient's name of every DICOM file, in comments, and in the name of the file itself."""
PICTURES = {
    "png": {"format": "PNG"},
    "jpeg": {"format": "JPEG", "comment": b"CANARY^JPEG"},
    "progressive jpeg": {"format": "JPEG", "progressive": True},
    "tiff": {"format": "TIFF"},
    "lzw tiff": {"format": "TIFF", "compression": "tiff_lzw"},
    "deflated tiff": {"format": "TIFF", "compression": "tiff_deflate"},
    "webp": {"format": "WEBP"},
    "bmp": {"format": "BMP"},
    "gif": {"format": "GIF"},
}
REAL = ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
        "JPGExtended.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm")  # fmt: skip

STREAMS = {
    "JPEG 2000 stream": "1.2.840.10008.1.2.4.90",
    "layered JPEG 2000 stream": "1.2.840.10008.1.2.4.91",
    "HTJ2K stream": "1.2.840.10008.1.2.4.201",
    "tiled HTJ2K stream": "1.2.840.10008.1.2.4.203",
    "JPEG-LS stream": "1.2.840.10008.1.2.4.80",
    "lossless JPEG stream": "1.2.840.10008.1.2.4.70",
}
"""Transfer syntaxes of streams that are broken alone: the DICOM file around them is whole."""


def streams() -> dict[str, bytes]:
    """One good stream for each of `STREAMS`, all of one picture."""
    import imagecodecs

    from tests.bombs import FILM

    return {
        "JPEG 2000 stream": imagecodecs.jpeg2k_encode(FILM, codecformat="j2k", bitspersample=12, level=0),
        "layered JPEG 2000 stream": imagecodecs.jpeg2k_encode(
            FILM, codecformat="j2k", bitspersample=12, level=45, resolutions=3, reversible=False
        ),
        "HTJ2K stream": imagecodecs.htj2k_encode(FILM, reversible=True),
        "tiled HTJ2K stream": imagecodecs.htj2k_encode(FILM, tile=(64, 64), resolutions=3, tlm=True),
        "JPEG-LS stream": imagecodecs.jpegls_encode(FILM),
        "lossless JPEG stream": imagecodecs.ljpeg_encode(FILM, bitspersample=12),
    }


@cache
def seeds() -> dict[str, bytes]:
    """One good file, or stream of `STREAMS`, of every format, by name."""
    import imagecodecs
    from pydicom.data import get_testdata_file

    from tests.bad_files import grey_picture, write_dicom
    from tests.made_volumes import hounsfield, lying, meta, multi_frame, nifti, nrrd

    grey, found = grey_picture(48, 48), {}
    for name, options in PICTURES.items():
        stream = io.BytesIO()
        grey.save(stream, **options)
        found[name] = stream.getvalue()
    deep, stream = np.asarray(grey).astype(np.uint16) * 200, io.BytesIO()
    from PIL import Image

    Image.fromarray(deep).save(stream, "PNG")
    found["16-bit png"] = stream.getvalue()
    stream = io.BytesIO()
    grey.save(stream, "GIF", save_all=True, append_images=[grey_picture(48, 48, 1)])
    found["animated gif"] = stream.getvalue()
    found |= {name: Path(get_testdata_file(name)).read_bytes() for name in REAL}
    with tempfile.TemporaryDirectory() as scratch:
        place, hu = Path(scratch), hounsfield()
        tags = {"PatientName": "CANARY^Patient", "Modality": "DX"}
        found["dicom"] = write_dicom(place / "a.dcm", deep, **tags).read_bytes()
        found["multi-frame dicom"] = multi_frame(place / "b.dcm", hu).read_bytes()
        writers = {"nifti": (nifti, "c.nii"), "packed nifti": (nifti, "c.nii.gz"), "nrrd": (nrrd, "d.nrrd"),
                   "metaimage": (meta, "e.mha")}  # fmt: skip
        for name, (writer, file) in writers.items():
            found[name] = writer(place / file, *lying(hu, ((0, 1, 2), (1, 1, 1)))).read_bytes()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("COVID/a.png", found["png"])
        archive.writestr("Non-COVID/b.dcm", found["dicom"])
        archive.writestr("site.json", json.dumps({"site": "CANARY", "modality": "ct"}))
    found["zip"] = stream.getvalue()
    found["jp2"] = imagecodecs.jpeg2k_encode(deep, codecformat="jp2", level=0)
    return found | streams()


def mutant(number: int) -> tuple[str, bytes]:
    """Make a broken file: the format goes round, what is broken is drawn with the number as seed."""
    names = sorted(seeds())
    name = names[number % len(names)]
    rng = np.random.default_rng(number)
    data = bytearray(seeds()[name])
    for _ in range(rng.integers(1, 4)):
        way = rng.integers(7)
        near = int(min(len(data), 600 if rng.integers(2) else len(data)))
        place = int(rng.integers(near))
        length = int(2 ** rng.integers(0, 9))
        if way == 0:
            data[place : place + 1] = bytes([rng.integers(256)])
        elif way == 1:  # a number at its limits, in either order of bytes
            extreme = (
                b"\xff\xff\xff\xff",
                b"\x7f\xff\xff\xff",
                b"\xff\xff\xff\x7f",
                b"\0\0\0\0",
                b"\0\0\x01\0",
            )
            data[place : place + 4] = extreme[rng.integers(len(extreme))]
        elif way == 2:
            del data[place + 1 :]
        elif way == 3:
            data[place : place + length] = bytes([rng.integers(256)]) * length
        elif way == 4:
            data[place:place] = data[place : place + length] * int(rng.integers(1, 9))
        elif way == 5:
            del data[place : place + length]
        else:  # a piece of another format
            other = seeds()[names[rng.integers(len(names))]]
            start = int(rng.integers(len(other)))
            data[place : place + length] = other[start : start + length]
        if not data:
            data = bytearray(b"\0")
    return name, wrapped(name, bytes(data))


def wrapped(name: str, stream: bytes) -> bytes:
    """Put a stream of `STREAMS` into a whole DICOM file; other formats are files already."""
    from tests.bombs import compressed

    if name not in STREAMS:
        return stream
    with tempfile.TemporaryDirectory() as scratch:
        path = compressed(Path(scratch) / "a.dcm", STREAMS[name], stream, PatientName="CANARY^Patient")
        return path.read_bytes()


class Worker:
    """A process that reads files, one at a time; started again when it dies."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "said.txt"
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self._process: subprocess.Popen | None = None

    def read(self, name: str) -> str:
        """Outcome of a file in the folder: "read", "refused", the name of an exception, or how the process died."""
        if self._process is None:
            self.start()
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if line:
            return line.strip()
        code = self._process.wait()
        self._process = None
        return "more than 10 s" if code == -signal.SIGPROF else f"died with {code}"

    def said(self) -> bytes:
        """What libraries and warnings have printed so far."""
        return self.log.read_bytes()

    def left(self) -> list[str]:
        """Files that reading has left behind."""
        return [path.name for path in self.scratch.rglob("*")]

    def peak(self) -> float:
        """Most memory that the process has had, in MB."""
        if self._process is None:
            return 0.0
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def close(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait(60)

    def start(self) -> None:
        """Start the process, and wait until it has imported everything."""
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.attacks.mutants", str(self.folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT,
                env={**os.environ, "TMPDIR": str(self.scratch), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self._process.stdout.readline()


def attack(numbers: range, folder: Path) -> dict[str, Any]:
    """Let a worker read mutants.

    Returns:
        ``outcomes`` (counts), ``formats``, ``slowest_s``, ``peak_mb``, and ``wrong``: what should not have happened, by
        the number of the mutant.
    """
    import time

    worker, outcomes, wrong, slowest, peak, heard = Worker(folder), Counter(), {}, 0.0, 0.0, 0
    worker.start()
    for number in numbers:
        kind, data = mutant(number)
        name = f"CANARY_{number}_Doe_Jane.bin"
        (folder / name).write_bytes(data)
        began = time.perf_counter()
        outcome = worker.read(name)
        slowest = max(slowest, time.perf_counter() - began)
        (folder / name).unlink()
        outcomes[outcome if outcome in ("read", "refused") else "wrong"] += 1
        said = worker.said()[heard:]
        heard += len(said)
        if outcome not in ("read", "refused"):
            wrong[number] = f"{kind}: {outcome}"
        elif CANARY in said or b"Doe_Jane" in said:
            wrong[number] = f"{kind}: it printed a name"
        if number % 200 == 0:
            peak = max(peak, worker.peak())
    peak = max(peak, worker.peak())
    worker.close()
    if left := worker.left():
        wrong["left behind"] = ", ".join(left[:5])
    return {"count": len(numbers), "formats": len(seeds()), "outcomes": dict(outcomes), "slowest_s": slowest,
            "peak_mb": peak, "wrong": wrong}  # fmt: skip


def _read(path: Path) -> None:
    """As the package meets a file: as an archive, a volume or a picture, with its frames."""
    from hub_model.archives import is_archive, open_archive
    from hub_model.images import frame_count, read_image
    from hub_model.volumes import read_volumes

    if is_archive(path):
        with open_archive(path) as archive:
            for member in archive.members:
                read_image(archive.read(member))
        return
    for found in read_volumes(path):
        if hasattr(found, "slices"):
            for place in range(min(3, len(found.slices))):
                found.slices[place]
    frame_count(path), read_image(path)


def _serve(folder: Path) -> None:
    """Be the worker."""
    import hub_model.images
    import hub_model.volumes  # noqa: F401 - loaded before memory is limited
    from hub_model.refused import Refused

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    answers.write("ready\n")
    os.dup2(2, 1)  # what libraries print goes where it is searched
    warnings.simplefilter("always")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            _read(folder / line.strip())
            outcome = "read"
        except Refused:
            outcome = "refused"
        except BaseException as error:
            outcome = type(error).__name__
        signal.setitimer(signal.ITIMER_PROF, 0)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        answers.write(f"{outcome}\n")


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
