"""Files to be refused, files that look odd and must open, a disk that is full, and a writer of small DICOM files.

For the tests of every room that meets files; all pictures are synthetic.
"""

import resource
import struct
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid


def grey_picture(height: int = 64, width: int = 80, seed: int = 0) -> Image.Image:
    """Two dark lungs in a bright body, with noise: 8-bit grey, nothing in it is constant."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    body = 200.0 * (x**2 + y**2 < 0.9)
    for side in (-0.4, 0.4):
        body -= 150.0 * (((x - side) / 0.3) ** 2 + (y / 0.6) ** 2 < 1) * (body > 0)
    noisy = 20 + body + np.random.default_rng(seed).normal(0, 5, (height, width))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def colour_picture(height: int = 64, width: int = 80) -> Image.Image:
    """Red rises to the right, green falls: a photograph's worth of colour."""
    ramp = np.tile(np.linspace(0, 255, width), (height, 1))
    return Image.fromarray(np.stack([ramp, 255 - ramp, np.full_like(ramp, 90)], axis=2).astype(np.uint8))


def write_dicom(path: Path, pixels: np.ndarray | None, **tags: Any) -> Path:
    """Write an uncompressed DICOM file.

    Args:
        path: where to.
        pixels: (H, W) or (frames, H, W) of an 8- or 16-bit integer type, (H, W, 3) uint8, or None for none.
        tags: further elements by keyword, e.g. ``RescaleSlope=1``; they win over those from `pixels`.
    """
    file = Dataset()
    file.file_meta = Dataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture
    file.SOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    file.PatientName = "Synthetic^Patient"
    if pixels is not None:
        colour = pixels.ndim == 3 and pixels.shape[2] == 3
        frames = pixels.shape[0] if pixels.ndim == 3 and not colour else 1
        file.Rows, file.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
        file.SamplesPerPixel = 3 if colour else 1
        file.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            file.PlanarConfiguration = 0
        if frames > 1:
            file.NumberOfFrames = frames
        file.BitsAllocated = file.BitsStored = 8 * pixels.itemsize
        file.HighBit = file.BitsStored - 1
        file.PixelRepresentation = int(pixels.dtype.kind == "i")
        file.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
        file["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for keyword, value in tags.items():
        setattr(file, keyword, value)
    file.save_as(path, enforce_file_format=True)
    return path


def png(width: int, height: int, rows: bytes = bytes(1000), depth: int = 8, colour: int = 0) -> bytes:
    """A well-formed PNG by hand; by default it declares a size and holds next to nothing: a bomb."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@contextmanager
def files_of_at_most(size: int):
    """No file grows beyond so many bytes: the system fails the write, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def make_bad_files(folder: Path) -> dict[str, Path]:
    """Write one small file for every way a picture can be unusable; all of them must be refused.

    Returns:
        file name -> path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    grey, colour = grey_picture(), colour_picture()
    frames = [grey_picture(seed=seed) for seed in range(3)]
    more = {"save_all": True, "append_images": frames[1:]}

    for name in ("truncated.png", "truncated.jpg", "truncated.tif", "truncated.webp", "verkürzt_胸部.png"):
        path = folder / name
        grey.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    write_dicom(folder / "truncated.dcm", np.asarray(grey))
    (folder / "truncated.dcm").write_bytes((folder / "truncated.dcm").read_bytes()[:-1000])
    (folder / "zero_bytes.png").write_bytes(b"")
    (folder / "zero_bytes.dcm").write_bytes(b"")
    (folder / "text.png").write_text("This is not a picture.\n" * 20)
    (folder / "noise.jpg").write_bytes(np.random.default_rng(0).bytes(3000))
    frames[0].save(folder / "animated.gif", **more)
    frames[0].save(folder / "animated.webp", **more)
    frames[0].save(folder / "animated.png", **more)
    frames[0].save(folder / "pages.tif", **more)
    grey.convert("CMYK").save(folder / "cmyk.jpg")
    grey.convert("CMYK").save(folder / "cmyk.tif")
    colour.save(folder / "colour.png")
    Image.new("L", (1, 1)).save(folder / "one_pixel.png")
    Image.new("1", (40_000, 40)).save(folder / "wide.png")
    (folder / "bomb.png").write_bytes(png(100_000, 100_000))
    write_dicom(folder / "no_pixels.dcm", None, Modality="SR")
    write_dicom(folder / "header_only.dcm", np.asarray(grey))
    head = (folder / "header_only.dcm").read_bytes()
    (folder / "header_only.dcm").write_bytes(head[: head.index(b"\xe0\x7f\x10\x00")])  # up to the pixel data
    write_dicom(folder / "colour.dcm", np.asarray(colour))
    write_dicom(folder / "multiframe.dcm", np.stack([np.asarray(frame) for frame in frames]))
    return {path.name: path for path in sorted(folder.iterdir())}


def make_odd_files(folder: Path) -> dict[str, Path]:
    """Write files whose name or coding misleads but whose picture is good; all of them must open.

    Returns:
        file name -> path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    grey = grey_picture()
    grey.save(folder / "png_called.jpg", format="PNG")
    grey.save(folder / "jpeg_called.dcm", format="JPEG")
    grey.save(folder / "UPPER.PNG")
    grey.save(folder / "no_extension", format="TIFF")
    grey.save(folder / "Röntgen Тест 胸部.png")
    grey.convert("RGB").save(folder / "grey_in_rgb.jpg", quality=40)
    grey.convert("P").save(folder / "palette.gif")
    write_dicom(folder / "dicom_called.png", np.asarray(grey))
    file = write_dicom(folder / "IM000001", np.asarray(grey))
    file.write_bytes(file.read_bytes()[132:])  # neither preamble nor mark, as some archives write it
    return {path.name: path for path in sorted(folder.iterdir())}


def striped_slices(folder: Path, count: int) -> None:
    """Write `count` CT slices of each label below a folder; the labels differ in their stripes."""
    rng = np.random.default_rng(0)
    for label, stripes in (("COVID", 3), ("Non-COVID", 9)):
        place = folder / "CT" / label
        place.mkdir(parents=True)
        for index in range(count):
            wave = np.sin(np.arange(64) / 64 * stripes * 2 * np.pi + rng.uniform(0, 6))
            grey = 120 + 50 * wave[:, None] + rng.normal(0, 15, (64, 64))
            Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(place / f"{index}.png")
