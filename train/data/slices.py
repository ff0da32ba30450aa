"""Volumes as training pictures: every n-th slice of a file, those that show a lung."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from PIL import Image

from hub_model import hub_folder, lungs
from hub_model.check.files import Packed, Slice, head_of, is_dicom, open_volume, read_bytes
from hub_model.check.headers import read_header
from hub_model.check.labels import Row
from hub_model.foreign_formats import HEAD
from hub_model.grey import ImageRefused
from hub_model.grids import volume_format

EVERY = 4
"""Of so many slices one is learnt from: neighbours hardly differ."""


def unfolded(rows: Sequence[Row], every: int = EVERY) -> list[Row]:
    """Put rows of slices in the place of rows of volumes: NIfTI, NRRD, MetaImage, and DICOM files with many frames.

    The slices of a volume are one family, and that of every other picture of the patient whom the collection or the
    DICOM header names. A volume that cannot be used is one row that says why.

    Args:
        rows: of any files.
        every: take each n-th slice, from the head down.
    """
    return [one for row in rows for one in _slices(row, every)]


def _slices(row: Row, every: int) -> Iterator[Row]:
    if row.skipped is not None or row.modality != "ct" or not isinstance(row.ref, Path | Packed):
        yield row
        return
    try:
        head = head_of(row.ref, HEAD)
        if volume_format(head) is None and not is_dicom(head):
            yield row
            return
        volume = open_volume(row.ref)
    except ImageRefused as refusal:
        # a picture is read later, and refused there; a volume could only be called a file of another format then
        yield (
            row
            if is_dicom(head)
            else replace(row, skipped=f"a volume that cannot be used: {refusal.reason.code}")
        )
        return
    except OSError:
        yield row  # reading it will say why
        return
    if len(volume) == 1 and is_dicom(head):
        yield row
        return
    family = (f"volume:{row.source}:{row.path}", *_patient(row.ref, head))
    for number in range(every // 2 if len(volume) > every else 0, len(volume), every):
        path, stamp = f"{row.path}#{number + 1:04d}", f"{row.stamp}#{number}"
        yield replace(row, ref=Slice(row.ref, number), path=path, stamp=stamp, known=(*row.known, *family))


def _patient(ref: Path | Packed, head: bytes) -> tuple[str, ...]:
    return read_header(read_bytes(ref)).patient if is_dicom(head) else ()


def shows_lung(grey: Image.Image) -> bool:
    """Return whether the embedded lung network for CT finds a lung; True where there is no such network."""
    finder = _finder()
    return finder is None or finder.find(grey).found


@lru_cache(maxsize=1)
def _finder() -> lungs.LungFinder | None:
    place = hub_folder.embedded().get("ct")
    return lungs.load(place) if place else None
