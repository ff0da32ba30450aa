"""Small files that would become large or long: each is read in a process of its own, under a ceiling."""

import io
import multiprocessing
import resource
import signal
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.bad_files import grey_picture, png, write_dicom

SECONDS, MEGABYTES = 10, 1200
"""Of processor time, and of memory beyond what the process has before: ceilings of every bomb."""
SIDE = 128
Y, X = np.mgrid[0:SIDE, 0:SIDE]
FILM = ((np.sin(X / 9) + np.cos(Y / 7) + 2) * 1000).clip(0, 4095).astype(np.uint16)
TWELVE = {"Modality": "DX", "BitsStored": 12, "HighBit": 11}
RLE, J2K, JPEG, DEFLATED = (
    "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.8.1"
)  # fmt: skip


def compressed(path: Path, syntax: str, *frames: bytes, array: np.ndarray = FILM, **tags: Any) -> Path:
    """A DICOM file with compressed frames behind a header for `array`."""
    import pydicom
    from pydicom.encaps import encapsulate

    file = pydicom.dcmread(write_dicom(path, array, **{**TWELVE, **tags}))
    file.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    if len(frames) > 1:
        file.NumberOfFrames = len(frames)
    file.PixelData = encapsulate(list(frames))
    file["PixelData"].VR = "OB"
    file["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(path, file, implicit_vr=False, little_endian=True, force_encoding=True)
    return path


def deflated(data: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(data) + deflater.flush()


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def run_lengths(path: Path) -> Path:
    """80 MB of run lengths for a picture of 128 x 128."""
    runs = b"\x81\0" * 20_000_000
    return compressed(path, RLE, struct.pack("<16L", 2, 64, 64 + len(runs), *[0] * 13) + runs + runs)


def large_jpeg_2000(path: Path) -> Path:
    """13,000 x 13,000 in the stream, 128 x 128 in the header."""
    import imagecodecs

    stream = bytearray(imagecodecs.jpeg2k_encode(FILM, codecformat="j2k", bitspersample=12, level=0))
    stream[8:16] = stream[24:32] = struct.pack(">2L", 13_000, 13_000)
    return compressed(path, J2K, bytes(stream))


def large_jpeg(path: Path) -> Path:
    stream = encoded(Image.new("L", (9000, 4000)), "JPEG")
    return compressed(path, JPEG, stream, array=FILM.astype(np.uint8), BitsStored=8, HighBit=7)


def deflated_zeros(path: Path) -> Path:
    return compressed(path, DEFLATED, deflated(bytes(200_000_000)))


def declared_frames(path: Path) -> Path:
    """2,147,483,647 frames in a file of 33 kB."""
    import pydicom

    file = pydicom.dcmread(write_dicom(path, FILM, **TWELVE))
    file.NumberOfFrames = "2147483647"
    file.save_as(path)
    return path


def countless_items(path: Path) -> Path:
    """16 MB of empty items, which would become gigabytes of data sets."""
    data = write_dicom(path, FILM, **TWELVE).read_bytes()
    place, items = data.index(b"\xe0\x7f\x10\x00"), b"\xfe\xff\x00\xe0\0\0\0\0" * 2_000_000
    sequence = b"\x00\x52\x30\x92SQ\0\0" + struct.pack("<L", len(items)) + items
    path.write_bytes(data[:place] + sequence + data[place:])
    return path


def cut_jpeg_ls(path: Path) -> Path:
    """Cut where CharLS would count 2^31 bits."""
    import imagecodecs

    stream = imagecodecs.jpegls_encode(FILM)
    return compressed(path, "1.2.840.10008.1.2.4.80", stream[: len(stream) // 2])


def huge_png(path: Path) -> Path:
    path.write_bytes(png(100_000, 100_000))
    return path


def pages(path: Path) -> Path:
    """A TIFF of 300,000 pages, all of one picture."""
    one = encoded(grey_picture(40, 40), "TIFF")
    start = struct.unpack("<L", one[4:8])[0]
    length = 2 + 12 * struct.unpack("<H", one[start : start + 2])[0]
    directory, data = one[start : start + length], bytearray(one[: start + length])
    for _ in range(300_000):
        data += struct.pack("<L", len(data) + 4) + directory
    path.write_bytes(data + bytes(4))
    return path


def frames(path: Path) -> Path:
    """A GIF of a million frames."""
    one = encoded(Image.new("L", (4, 4)), "GIF")
    picture = one.index(b",\0\0\0\0", 13)
    path.write_bytes(one[:-1] + one[picture:-1] * 1_000_000 + b";")
    return path


def scans(path: Path) -> Path:
    """A progressive JPEG of 20,000 scans."""
    data = encoded(grey_picture(), "JPEG", progressive=True)
    path.write_bytes(data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 20_000 + data[-2:])
    return path


def entries(path: Path) -> Path:
    """A zip whose directory lists 400,000 entries and says that there are none."""
    directory = struct.pack("<4s42s", b"PK\x01\x02", bytes(42)) * 400_000
    path.write_bytes(directory + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 9, 9, len(directory), 0, 0))
    return path


def lying_member(path: Path) -> Path:
    """A member of 300 MB that is said to have 1,000 bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", bytes(300 * 2**20))
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 300 * 2**20), struct.pack("<I", 1000)))
    return path


def large_member(path: Path) -> Path:
    """A single member of 990 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("1.png", "w") as stream:
        for _ in range(99):
            stream.write(bytes(10_000_000))
    return path


def asking_tar(path: Path) -> Path:
    """A header of a tar that asks for 7 GB."""
    import gzip

    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 7 * 2**30
    with gzip.open(path, "wb") as target:
        target.write(info.tobuf(tarfile.USTAR_FORMAT) + bytes(20 * 2**20))
    return path


def packed_nifti(path: Path) -> Path:
    """500 MB of zeros behind a NIfTI header that names 32,767 x 32,767 x 32,767 numbers."""
    import gzip

    from tests.made_volumes import hounsfield, lying, nifti

    head = bytearray(
        nifti(path.with_suffix(".nii"), *lying(hounsfield(), ((0, 1, 2), (1, 1, 1)))).read_bytes()[:352]
    )
    head[40:48] = struct.pack("<4h", 3, 32767, 32767, 32767)
    with gzip.open(path, "wb", 1) as target:
        target.write(head)
        for _ in range(50):
            target.write(bytes(10_000_000))
    return path


class Bomb(NamedTuple):
    """How to make a file, and its name."""

    make: Callable[[Path], Path]
    name: str


BOMBS = {
    "run lengths beyond the picture": Bomb(run_lengths, "a.dcm"),
    "large JPEG 2000 behind a small header": Bomb(large_jpeg_2000, "a.dcm"),
    "large JPEG behind a small header": Bomb(large_jpeg, "a.dcm"),
    "200 MB of deflated zeros": Bomb(deflated_zeros, "a.dcm"),
    "two thousand million frames": Bomb(declared_frames, "a.dcm"),
    "two million empty items": Bomb(countless_items, "a.dcm"),
    "JPEG-LS cut short": Bomb(cut_jpeg_ls, "a.dcm"),
    "PNG of 100,000 x 100,000": Bomb(huge_png, "a.png"),
    "TIFF of 300,000 pages": Bomb(pages, "a.tif"),
    "GIF of a million frames": Bomb(frames, "a.gif"),
    "JPEG of 20,000 scans": Bomb(scans, "a.jpg"),
    "zip of 400,000 entries": Bomb(entries, "a.zip"),
    "member larger than it says": Bomb(lying_member, "a.zip"),
    "member of 990 MB": Bomb(large_member, "a.zip"),
    "tar that asks for 7 GB": Bomb(asking_tar, "a.tar.gz"),
    "NIfTI of 32,767 cubed": Bomb(packed_nifti, "a.nii.gz"),
}


def explode(name: str, folder: Path) -> dict[str, Any]:
    """Read a bomb in a process of its own.

    Returns:
        ``outcome`` ("refused", "read", an exception, or how the process died), ``seconds`` of processor time, ``mb`` of
        memory beyond what there was before, ``bytes`` of the file, ``held``: whether it stayed below the ceilings and
        was refused.
    """
    bomb = BOMBS[name]
    path = bomb.make(folder / bomb.name)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_explode, args=(path, there))
    process.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        found = {"outcome": "", "seconds": float(SECONDS), "mb": float(MEGABYTES)}
    process.join()
    if not found["outcome"]:
        found["outcome"] = f"died with {process.exitcode}"
    held = found["outcome"] == "refused" and found["seconds"] < SECONDS and found["mb"] < MEGABYTES
    return {**found, "bytes": path.stat().st_size, "held": held}


def _explode(path: Path, answer: Any) -> None:
    from hub_model.refused import Refused
    from tests.attacks.mutants import _read

    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    size = int((_memory("VmSize") + 2 * MEGABYTES) * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    began = time.process_time()
    try:
        _read(path)
        outcome = "read"
    except Refused:
        outcome = "refused"
    except BaseException as error:
        outcome = type(error).__name__
    answer.send({"outcome": outcome, "seconds": time.process_time() - began, "mb": _memory("VmHWM") - before})


def _memory(name: str) -> float:
    """A figure of this process in MB (proc(5))."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 1024
