"""DICOM files: from stored values to one 8-bit grey picture, by the grey-scale pipeline of DICOM PS3.3 C.11.

- CT in Hounsfield units (HU) is always shown in the lung window (level -600, width 1500), whatever window the
  file carries: that may be one for soft tissue, in which the lungs are black; the models know lung windows.
- Everything else goes through rescale or modality LUT, then VOI LUT or window (the first of several); without
  a usable one through the percentiles of ``grey.py``, padding left out. MONOCHROME1 is turned, so that high
  values are bright.

Only the elements in `TAGS` are read, none of which names a patient.
"""

import logging
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np
from pydicom import Dataset, dcmread, uid
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing, pixel_array

from .grey import (
    MAX_BYTES,
    ImageRefused,
    check_size,
    chosen_frame,
    decoding,
    grey_of_colour,
    to_8_bit,
)
from .refused import Reason

LUNG_WINDOW = (-1350.0, 150.0)  # HU, shown as black and white: level -600, width 1500
MODALITIES = {"xray": ("CR", "DX", "RG"), "ct": ("CT",)}  # PS3.3 C.7.3.1.1.1
UNSPECIFIC = ("", "OT", "SC")  # screen captures and converted files do not say what they show
TAGS = [
    *("ImageType", "Modality", "PresentationIntentType", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue"),
    *("RescaleIntercept", "RescaleSlope", "RescaleType", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
PLACE_TAGS = ["SeriesInstanceUID", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient"]
PIXEL_TAGS = ["PixelData", "FloatPixelData", "DoubleFloatPixelData"]


class Header(NamedTuple):
    """What the file says of its picture."""

    tags: Dataset
    frames: int
    syntax: uid.UID | None  # transfer syntax


def lung_window(hu: np.ndarray) -> np.ndarray:
    """Hounsfield units, any shape -> uint8: -1350 HU and below 0, 150 HU and above 255, linear between."""
    low, high = LUNG_WINDOW
    return np.rint((np.clip(hu, low, high) - low) / (high - low) * 255).astype(np.uint8)


def read_header(stream: BinaryIO) -> Header:
    """The elements that describe the picture, without its pixels.

    Raises:
        ImageRefused: there is no picture in the file, or it is damaged.
    """
    with decoding(), _unlogged():
        _check_inflated(stream)
        stream.seek(0)
        tags = dcmread(stream, force=True, stop_before_pixels=True, specific_tags=list(TAGS))
        if not tags.get("Rows") or not tags.get("Columns"):
            what = "it holds no picture but, say, a report, a plan or a directory"
            raise ImageRefused(f"{what}. Export the film or slice itself.", "dicom_without_picture")
        frames = max(1, int(tags.get("NumberOfFrames") or 1))
        return Header(tags, frames, tags.file_meta.get("TransferSyntaxUID"))


def read_place(stream: BinaryIO) -> tuple | None:
    """Sort key of a slice: series by series, from the head down; without a position, by instance number.

    A slice's place is its corner along the normal of its plane (PS3.3 C.7.6.2.1.1), so that oblique stacks
    are in order too. None where the file says nothing of it.

    Raises:
        ImageRefused: the file is damaged.
    """
    with decoding(), _unlogged():
        _check_inflated(stream)
        stream.seek(0)
        tags = dcmread(stream, force=True, stop_before_pixels=True, specific_tags=PLACE_TAGS)
        corner, axes = tags.get("ImagePositionPatient"), tags.get("ImageOrientationPatient")
        series, number = str(tags.get("SeriesInstanceUID") or ""), tags.get("InstanceNumber")
        if corner and len(corner) == 3:
            axes = axes if axes and len(axes) == 6 else (1, 0, 0, 0, 1, 0)
            normal = np.cross(np.array(axes[:3], float), np.array(axes[3:], float))
            return series, 0, -float(normal @ np.array(corner, float)), int(number or 0)
        return None if number is None else (series, 1, 0.0, int(number))


def read_grey(stream: BinaryIO, frame: int | None = None, modality: str | None = None) -> np.ndarray:
    """One frame as (rows, columns) uint8.

    Args:
        stream: the file, seekable.
        frame: which frame, from 0; needed where there is more than one.
        modality: ``"xray"`` or ``"ct"``: refuse a file that says it is something else.

    Raises:
        ImageRefused: see `hub_model.images.read_image`.
    """
    kinds = MODALITIES[modality] if modality else None
    header = read_header(stream)
    tags = header.tags
    index = chosen_frame(frame, header.frames)
    with decoding(), _unlogged():
        _check_kind(tags, kinds)
        check_size(int(tags.Columns), int(tags.Rows))
        _take_frame_groups(tags, index)
        encapsulated = header.syntax is not None and header.syntax.is_encapsulated
    refusal = Reason("the file is damaged, cut short or without pixels. Export it again.", "damaged")
    if encapsulated:
        syntax = header.syntax.name
        refusal = Reason(
            f"its pixels, compressed as {syntax}, cannot be decoded. Export it uncompressed "
            "(Explicit VR Little Endian); if whole, a further decoder may help: pip install python-gdcm.",
            "undecodable",
            syntax=syntax,
        )
    with decoding(refusal), _unlogged():
        stored = _stored_values(stream, header, index)
    with decoding(), _unlogged():
        if tags.PhotometricInterpretation == "PALETTE COLOR":
            stored = apply_color_lut(stored, tags)
        return grey_of_colour(to_8_bit(stored)) if stored.ndim == 3 else _displayed(stored, tags)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep pydicom's tracebacks of what becomes a refusal out of the log, in this thread only."""
    thread = threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    loggers = [logging.getLogger(name) for name in ("pydicom", "pydicom.pixels.decoders.base")]
    for logger in loggers:
        logger.addFilter(of_others)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(of_others)


def _check_inflated(stream: BinaryIO) -> None:
    """A deflated file can inflate a thousandfold, and pydicom inflates all of it at once."""
    stream.seek(128)
    stream.seek(132 if stream.read(4) == b"DICM" else 0)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflater.decompress(stream.read(), MAX_BYTES)
        if inflater.unconsumed_tail:
            limit = MAX_BYTES >> 20
            what = f"unpacked it exceeds {limit} MiB. Export the single picture."
            raise ImageRefused(what, "file_too_large", limit=limit)


def _check_kind(tags: Dataset, kinds: tuple[str, ...] | None) -> None:
    kind = str(tags.get("Modality") or "")
    if kinds and kind not in (*UNSPECIFIC, *kinds):
        what = f"by its DICOM header it is of modality {kind[:16]}, and this model reads {', '.join(kinds)}"
        what = f"{what}. Choose the model for it, or another file."
        raise ImageRefused(what, "other_modality", kind=kind[:16])
    if "LOCALIZER" in (tags.get("ImageType") or ()):
        what = "it is the localizer (scout) of a CT series. Choose a slice through the lungs."
        raise ImageRefused(what, "localizer")
    if tags.get("PresentationIntentType") == "FOR PROCESSING":
        what = "it is raw detector data (FOR PROCESSING). Choose the picture FOR PRESENTATION."
        raise ImageRefused(what, "raw")


def _take_frame_groups(tags: Dataset, index: int) -> None:
    """Enhanced multi-frame files keep rescale and window in groups, shared or per frame (PS3.3 C.7.6.16)."""
    shared = tags.get("SharedFunctionalGroupsSequence") or []
    each = tags.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*shared[:1], *each[index : index + 1]):
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in group.get(name) or []:
                tags.update(item)


def _stored_values(stream: BinaryIO, header: Header, index: int) -> np.ndarray:
    stream.seek(0)
    jpeg2000 = header.syntax in uid.JPEG2000TransferSyntaxes
    if header.frames > 1 and not jpeg2000 and header.syntax not in (None, uid.DeflatedExplicitVRLittleEndian):
        return pixel_array(stream, index=index)  # reads this one frame of the file
    file = dcmread(stream, force=True, specific_tags=TAGS + PIXEL_TAGS)
    if not header.syntax:  # no file meta group: as pydicom found it to be written
        implicit, little = file.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        file.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    if jpeg2000:
        _check_boxes(get_frame(file.PixelData, index, number_of_frames=header.frames))
    return pixel_array(file, index=index)


def _check_boxes(frame: bytes) -> None:
    """Walk as pydicom does from box to box to the JPEG 2000 codestream; at an empty one it stays for ever."""
    offset = 12 if frame.startswith(b"\0\0\0\x0cjP  ") else len(frame)
    while offset < len(frame) and frame[offset + 4 : offset + 8] != b"jp2c":
        length = int.from_bytes(frame[offset : offset + 4], "big")
        if not length:
            raise ValueError("empty JP2 box")
        offset += length


def _displayed(stored: np.ndarray, tags: Dataset) -> np.ndarray:
    """(H, W) stored values -> uint8 as on a viewer."""
    values = stored
    if tags.get("ModalityLUTSequence") or (tags.get("RescaleSlope"), tags.get("RescaleIntercept")) != (1, 0):
        values = apply_modality_lut(stored, tags)
    if _in_hounsfield(tags):
        return lung_window(values)
    grey = _windowed(values, tags)
    if grey is None:
        grey = to_8_bit(values, stored != tags.PixelPaddingValue if "PixelPaddingValue" in tags else None)
    return 255 - grey if tags.PhotometricInterpretation == "MONOCHROME1" else grey


def _in_hounsfield(tags: Dataset) -> bool:
    """CT that tells how to get to HU; 8-bit captures and dual-energy maps (RescaleType ED, ...) do not."""
    rescaled = None not in (tags.get("RescaleSlope"), tags.get("RescaleIntercept"))
    unit = str(tags.get("RescaleType") or "HU").upper()
    return tags.get("Modality") == "CT" and rescaled and tags.BitsStored > 8 and unit in ("HU", "US")


def _windowed(values: np.ndarray, tags: Dataset) -> np.ndarray | None:
    """Apply the file's own VOI LUT or window -> uint8; None without one, or if one grey level is left."""
    grey = None
    if tags.get("VOILUTSequence"):
        descriptor = tags.VOILUTSequence[0].LUTDescriptor
        entries, first = descriptor[0] or 2**16, descriptor[1]
        descriptor[2] = 16  # pydicom indexes in the table's own type, too small for a long 8-bit table
        table = apply_voi(first + np.arange(entries), tags).astype(np.float64)
        position = np.clip(np.rint(values) - first, 0, entries - 1).astype(np.intp)
        grey = table[position] * (255 / max(table.max(), 1))  # some tables use fewer bits than they declare
    elif None not in (tags.get("WindowCenter"), tags.get("WindowWidth")):
        window = Dataset()  # of 8 bits, so that pydicom's output range is 0..255
        window.PhotometricInterpretation, window.BitsStored, window.PixelRepresentation = "MONOCHROME2", 8, 0
        window.WindowCenter, window.WindowWidth = tags.WindowCenter, tags.WindowWidth
        window.VOILUTFunction = tags.get("VOILUTFunction") or "LINEAR"
        try:
            with np.errstate(over="ignore"):  # far outside a sigmoid
                grey = apply_windowing(values, window)
        except ValueError:  # a width of 0
            return None
    if grey is None or grey.min() == grey.max():
        return None
    return np.rint(grey).astype(np.uint8)
