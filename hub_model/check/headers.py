"""Read what a picture file states before its pixels are decoded, and what shows that it is a drawn mask."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .files import is_dicom
from .labels import exact, names_nobody
from .layout import LATERAL, MASK, OTHER_PLANE, SIDE_VIEWS

if TYPE_CHECKING:
    from pydicom import Dataset

PLAIN_INFO = frozenset(
    {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "progressive", "progression"}
)
"""What a JPEG or PNG may say besides its pixels and still be kept byte for byte: nothing about a patient."""

ABOUT = {
    "Manufacturer": "manufacturer",
    "ManufacturerModelName": "manufacturermodelname",
    "ViewPosition": "viewposition",
    "PatientSex": "patientsex",
    "PatientAge": "patientage",
}
"""DICOM attributes by which figures can be told apart, and the columns they become."""

LOCALIZER = "a localizer (scout) image"
LUNGLESS = "a slice without lung"
LEFT_OUT = frozenset({MASK, LATERAL, OTHER_PLANE, LOCALIZER, LUNGLESS})
"""Reasons for which a picture that can be read is not learnt from."""

FLAT_LEVELS, FLAT_WIDTH, FLAT_SHARE = 4, 6, 0.98
"""A drawn mask has nearly all its pixels at a few grey levels, give or take what JPEG adds: share 0.9997 and more,
against at most 0.85 on 126 films and slices."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file states before its pixels are decoded."""

    mode: str | None = None
    width: int | None = None
    height: int | None = None
    plain: bool = False
    patient: tuple[str, ...] = ()
    left_out: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)


def read_header(content: bytes) -> Header:
    """Read the header of a picture file; never fails, as `read_image` reports what is wrong with a file."""
    try:
        if is_dicom(content[:132]):
            return _dicom_header(content)
        with Image.open(io.BytesIO(content)) as image:
            plain = image.mode == "L" and image.format in ("JPEG", "PNG") and image.info.keys() <= PLAIN_INFO
            return Header(f"{image.format} {image.mode}", *image.size, plain)
    except Exception:  # decoders raise what they like on damaged headers
        return Header()


def _dicom_header(content: bytes) -> Header:
    """Read a DICOM header; patient and study are kept as hashes, for grouping, and in the working files only."""
    import pydicom

    tags = ["PatientID", "StudyInstanceUID", "PhotometricInterpretation", "Rows", "Columns"]
    views = ["Modality", "ImageType", "ViewPosition", "ViewCodeSequence", "PatientOrientation"]
    header = pydicom.dcmread(
        io.BytesIO(content), stop_before_pixels=True, force=True, specific_tags=[*tags, *views, *ABOUT]
    )
    ids = {name: str(header.get(name) or "").strip() for name in tags[:2]}
    patient = [
        hashlib.sha256(f"{name}:{value}".encode()).hexdigest()
        for name, value in ids.items()
        if value.strip("0") and not names_nobody(value)
    ]
    mode = f"DICOM {header.get('PhotometricInterpretation', '')}".strip()
    about = {column: str(header.get(tag) or "").strip() for tag, column in ABOUT.items()}
    about = {column: value for column, value in about.items() if value}
    size = header.get("Columns"), header.get("Rows")
    return Header(mode, *size, False, tuple(patient), _dicom_view(header), about)


def _dicom_view(header: "Dataset") -> str | None:
    """Say why a DICOM picture is not learnt from: a localizer of a CT, or a film from the side.

    The view is said by ViewPosition, by ViewCodeSequence, or by PatientOrientation, whose first value says where the
    rows lead: to the front or back (A, P) on lateral films (PS3.3 C.7.6.1.1.1, C.8.11.7).
    """
    kinds = header.get("ImageType") or []
    if {str(kind).upper() for kind in ([kinds] if isinstance(kinds, str) else kinds)} & {
        "LOCALIZER",
        "SCOUT",
    }:
        return LOCALIZER
    if header.get("Modality") == "CT":
        return None
    meanings = [item.get("CodeMeaning", "") for item in header.get("ViewCodeSequence") or []]
    words = {exact(word) for word in (header.get("ViewPosition") or "", *meanings)}
    directions = header.get("PatientOrientation") or []
    sideways = len(directions) == 2 and str(directions[0])[:1] in ("A", "P")
    lateral = any(SIDE_VIEWS.get(word) == LATERAL or word.endswith("lateral") for word in words)
    return LATERAL if lateral or sideways else None


def is_flat(grey: Image.Image) -> bool:
    """Say whether nearly all pixels have one of a few grey levels, as in a drawn mask."""
    counts = np.array(grey.histogram(), float)
    total = 0.0
    for _ in range(FLAT_LEVELS):
        peak = int(counts.argmax())
        around = slice(max(0, peak - FLAT_WIDTH), peak + FLAT_WIDTH + 1)
        total += counts[around].sum()
        counts[around] = 0
    return total >= FLAT_SHARE * grey.width * grey.height
