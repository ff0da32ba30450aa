"""`read_image` against a second reading of the standard (tests/rendering.py), to one grey level."""

import warnings
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pydicom.data
import pytest
from PIL import Image
from pydicom.encaps import get_frame

from hub_model.grey import ImageRefused
from hub_model.images import frame_count, read_image
from tests.bad_files import write_dicom
from tests.rendering import rendered

NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
BY_IMAGECODECS = {"1.2.840.10008.1.2.4.51": "jpeg8_decode", "1.2.840.10008.1.2.4.80": "jpegls_decode"}
WHEEL = Path(pydicom.data.__file__).parent
FRAMES = 3  # looked at in each file


def second_reading(file: pydicom.Dataset, index: int) -> np.ndarray:
    raw = file.file_meta.TransferSyntaxUID in NATIVE or "RLE" in file.file_meta.TransferSyntaxUID.name
    frames = int(file.get("NumberOfFrames") or 1)
    syntax = str(file.file_meta.TransferSyntaxUID)
    if syntax in BY_IMAGECODECS:
        frame = get_frame(file.PixelData, index, number_of_frames=frames)
        return rendered(file, getattr(imagecodecs, BY_IMAGECODECS[syntax])(frame).astype(np.int32))
    cells = pydicom.pixels.pixel_array(file, index=index if frames > 1 else 0, correct_unused_bits=not raw)
    return rendered(file, cells)


def difference(shown: Image.Image, expected: np.ndarray) -> float:
    """In grey levels; what is shown with square pixels is compared with the second reading made square."""
    expected = np.rint(expected).clip(0, 255).astype(np.uint8)
    if shown.size != expected.shape[::-1]:
        expected = np.asarray(Image.fromarray(expected).resize(shown.size, Image.Resampling.BILINEAR))
    return float(np.abs(np.asarray(shown).astype(int) - expected.astype(int)).max())


def wheel() -> dict[str, Any]:
    """Compare every grey DICOM file in pydicom's wheel.

    Colour, pictures below 32 pixels and files that hold no picture are refused, and not counted here.
    """
    read, agree, undecodable, off = 0, 0, set(), []
    for path in sorted(WHEEL.rglob("*")):
        if not path.is_file() or path.suffix in (
            ".py",
            ".json",
            ".pyc",
            ".txt",
            ".md",
            ".gz",
            ".zip",
            ".icc",
        ):
            continue
        try:
            file = pydicom.dcmread(path, force=True)
            grey = file.SamplesPerPixel == 1 and "MONOCHROME" in file.PhotometricInterpretation
            file.file_meta.TransferSyntaxUID  # noqa: B018 - asked for below
        except (AttributeError, pydicom.errors.InvalidDicomError, OSError):
            continue
        if not grey or file.BitsAllocated == 1:
            continue
        try:
            for index in range(min(FRAMES, frame_count(path))):
                shown = read_image(path, frame=index)
                read += 1
                expected = second_reading(file, index)
                far = difference(shown, expected)
                agree += far <= 1
                off += [] if far <= 1 else [(path.name, index, far)]
        except ImageRefused as refusal:
            if refusal.reason.code in ("undecodable", "damaged"):
                undecodable.add(path.name)
    return {"read": read, "agree": agree, "off": off, "undecodable": sorted(undecodable)}


@pytest.mark.filterwarnings("ignore")
def test_every_grey_picture_in_pydicoms_wheel():
    found = wheel()
    assert found["read"] >= 25 and found["agree"] == found["read"], found["off"]


def ramp(kind: type, low: int, high: int) -> np.ndarray:
    return np.linspace(low, high, 4096).reshape(64, 64).astype(kind)


MADE = {
    f"{modality} {name} {way} {photometric}": (pixels, {**tags, **window, "Modality": modality})
    for modality in ("DX", "MR")
    for name, pixels, tags in (
        ("8 bit", ramp(np.uint8, 0, 255), {}),
        ("12 bit", ramp(np.uint16, 0, 4095), {"BitsStored": 12, "HighBit": 11}),
        ("12 bit on top", ramp(np.uint16, 0, 4095) << 4, {"BitsStored": 12, "HighBit": 15}),
        ("signed 12 bit", ramp(np.int16, -2048, 2047) & 0xFFF, {"BitsStored": 12, "HighBit": 11}),
        ("16 bit", ramp(np.uint16, 0, 65535), {}),
        ("signed 16 bit", ramp(np.int16, -32768, 32767), {}),
        ("32 bit", ramp(np.uint32, 0, 10**6), {}),
        ("rescaled", ramp(np.uint16, 0, 4095), {"RescaleSlope": -0.5, "RescaleIntercept": 900}),
        ("padded", ramp(np.uint16, 0, 4095), {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 3000}),
        ("long pixels", ramp(np.uint8, 0, 255), {"PixelSpacing": [0.2, 0.1]}),
    )
    for way, window in (
        ("plain", {}),
        ("LINEAR", {"WindowCenter": 120, "WindowWidth": 900}),
        ("LINEAR_EXACT", {"WindowCenter": 120.5, "WindowWidth": 900.25, "VOILUTFunction": "LINEAR_EXACT"}),
        ("SIGMOID", {"WindowCenter": 120, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"}),
        ("width 1", {"WindowCenter": 120, "WindowWidth": 1}),
    )
    for photometric in ("MONOCHROME1", "MONOCHROME2")
    for tags in [{**tags, "PhotometricInterpretation": photometric}]
}


@pytest.mark.parametrize("name", MADE)
def test_every_made_kind(tmp_path, name):
    pixels, tags = MADE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_dicom(tmp_path / "a.dcm", pixels, **tags)
        file = pydicom.dcmread(path)
        assert difference(read_image(path), second_reading(file, 0)) <= 1
