"""Makers of small files that would become large or long, and of compressed DICOM files; all pictures are synthetic."""

import gzip
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate

from tests.bad_files import grey_picture, png, write_dicom
from tests.pictures import encoded

SIDE = 128
Y, X = np.mgrid[0:SIDE, 0:SIDE]
FILM = ((np.sin(X / 9) + np.cos(Y / 7) + 2) * 1000).clip(0, 4095).astype(np.uint16)
TWELVE = {"Modality": "DX", "BitsStored": 12, "HighBit": 11}
RLE, J2K, JPEG, DEFLATED = (
    "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.8.1"
)  # fmt: skip


def compressed(path: Path, syntax: str, *frames: bytes, array: np.ndarray = FILM, **tags: Any) -> Path:
    """A DICOM file with compressed frames behind a header for `array`."""
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


def run_lengths(path: Path, count: int = 20_000_000) -> Path:
    """So many run lengths, 4 bytes each, for a picture of 128 x 128."""
    runs = b"\x81\0" * count
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


def deflated_zeros(path: Path, count: int = 200_000_000) -> Path:
    """So many zeros, deflated, for a picture of 128 x 128."""
    return compressed(path, DEFLATED, deflated(bytes(count)))


def declared_frames(path: Path) -> Path:
    """2,147,483,647 frames in a file of 33 kB."""
    file = pydicom.dcmread(write_dicom(path, FILM, **TWELVE))
    file.NumberOfFrames = "2147483647"
    file.save_as(path)
    return path


def countless_items(path: Path, count: int = 2_000_000) -> Path:
    """Empty items, 8 bytes each and next to nothing once zipped, which would become gigabytes of data sets."""
    data = write_dicom(path, FILM, **TWELVE).read_bytes()
    place, items = data.index(b"\xe0\x7f\x10\x00"), b"\xfe\xff\x00\xe0\0\0\0\0" * count
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


def pages(path: Path, count: int = 300_000) -> Path:
    """A TIFF of so many pages, all of one picture."""
    one = encoded(grey_picture(40, 40), "TIFF")
    start = struct.unpack("<L", one[4:8])[0]
    length = 2 + 12 * struct.unpack("<H", one[start : start + 2])[0]
    directory, data = one[start : start + length], bytearray(one[: start + length])
    for _ in range(count):
        data += struct.pack("<L", len(data) + 4) + directory
    path.write_bytes(data + bytes(4))
    return path


def frames(path: Path, count: int = 1_000_000) -> Path:
    """A GIF of so many frames."""
    one = encoded(Image.new("L", (4, 4)), "GIF")
    picture = one.index(b",\0\0\0\0", 13)
    path.write_bytes(one[:-1] + one[picture:-1] * count + b";")
    return path


def scans(path: Path, count: int = 20_000) -> Path:
    """A progressive JPEG of so many scans."""
    data = encoded(grey_picture(), "JPEG", progressive=True)
    path.write_bytes(data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:])
    return path


def entries(path: Path) -> Path:
    """A zip whose directory lists 400,000 entries and says that there are none."""
    directory = struct.pack("<4s42s", b"PK\x01\x02", bytes(42)) * 400_000
    path.write_bytes(directory + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 9, 9, len(directory), 0, 0))
    return path


def lying_member(path: Path, size: int = 300 * 2**20, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip with a member of so many bytes that is said to have 1,000."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("1.png", bytes(size))
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", 1000)))
    return path


def large_member(path: Path) -> Path:
    """A single member of 990 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("1.png", "w") as stream:
        for _ in range(99):
            stream.write(bytes(10_000_000))
    return path


def asking_tar(path: Path) -> Path:
    """A header of a tar that asks for 7 GB."""
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 7 * 2**30
    with gzip.open(path, "wb") as target:
        target.write(info.tobuf(tarfile.USTAR_FORMAT) + bytes(20 * 2**20))
    return path


def packed_nifti(path: Path) -> Path:
    """500 MB of zeros behind a NIfTI header that names 32,767 x 32,767 x 32,767 numbers."""
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
