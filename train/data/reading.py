"""Reads every picture of a collection once, in chunks that are files: a killed run does not redo finished
ones."""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hub_model.grey import ImageRefused
from hub_model.images import ACCEPTED, read_image

from .families import describe
from .files import Cell, is_dicom, pointer, read_bytes
from .labels import Row, exact, names_nobody
from .layout import LATERAL, MASK, OTHER_PLANE, SIDE_VIEWS, mask_twins
from .manifest import Entry

if TYPE_CHECKING:
    from pydicom import Dataset

FORMAT = 3
CHUNK = 64
"""Pictures per unit of resumable work."""

HELD = 8
"""Encoded pictures in memory at a time: some films have 20 million pixels."""

PLAIN_INFO = frozenset(
    {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "progressive", "progression"}
)
"""What a JPEG or PNG may say besides its pixels and still be kept byte for byte: nothing about a patient."""

LOCALIZER = "a localizer (scout) image"
LEFT_OUT = frozenset({MASK, LATERAL, OTHER_PLANE, LOCALIZER})
"""Reasons for which a picture that can be read is not learnt from."""

FLAT_LEVELS, FLAT_WIDTH, FLAT_SHARE = 4, 6, 0.98
"""A drawn mask has nearly all its pixels at a few grey levels, give or take what JPEG adds: share 0.9997 and more,
against at most 0.85 on 126 films and slices."""

FOUND = ("sha256", "pixels", "bytes", "width", "height", "mode", "flat", "refused")


def fingerprint(rows: Sequence[Row], settings: Mapping) -> str:
    """SHA-256 over files (names, sizes, times), what their collections say of them, and the settings."""
    told = [
        (row.source, row.path, row.stamp, row.label, row.modality, row.known, row.official_split, row.skipped)
        for row in rows
    ]
    text = json.dumps([FORMAT, dict(settings), told], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_all(rows: Sequence[Row], folder: Path, settings: Mapping, jobs: int = 1) -> list[Path]:
    """Read all pictures into chunk files in `folder`, those left there by an earlier run excepted.

    Args:
        rows: the pictures.
        folder: of the chunk files.
        settings: `long_side` (pixels or None) and `describe` (the version of the descriptors, None for none).
        jobs: processes.

    Returns:
        The chunk files, in the order of `rows`.
    """
    import joblib
    from joblib.externals.loky import get_reusable_executor

    units = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    targets = [folder / f"{fingerprint(unit, settings)[:32]}.parquet" for unit in units]
    todo = [(unit, target) for unit, target in zip(units, targets, strict=True) if not target.exists()]
    left = sum(len(unit) for unit, _ in todo)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("reading pictures", total=len(rows), completed=len(rows) - left)
        calls = (joblib.delayed(_read_chunk)(_loaded(unit), target, settings) for unit, target in todo)
        jobs = max(1, min(jobs, len(todo)))
        for count in joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)(calls):
            progress.advance(task, count)
    if jobs > 1:  # idle workers would hold a gigabyte and more while families are sought
        get_reusable_executor().shutdown(wait=True)
    return targets


def entries_of(rows: Sequence[Row], chunks: Sequence[Path]) -> list[Entry]:
    """What was found out about every picture, in the order of `rows`."""
    import pyarrow.parquet as pq

    entries: list[Entry] = []
    for number, chunk in enumerate(chunks):
        for place, record in enumerate(pq.read_table(chunk, columns=[*FOUND, "patient"]).to_pylist()):
            row = rows[len(entries)]
            entry = Entry.of(replace(row, known=(*row.known, *record["patient"])), chunk=number, place=place)
            for name in FOUND:
                setattr(entry, name, record[name])
            entries.append(entry)
    masks = mask_twins(
        (entry.source, entry.label, entry.path, bool(entry.flat)) for entry in entries if not entry.refused
    )
    for entry in entries:
        if (entry.source, entry.path) in masks:
            entry.refused = MASK
    return entries


def column_of(entries: Sequence[Entry], chunks: Sequence[Path], column: str) -> Iterator[tuple[Entry, bytes]]:
    """Stream one binary column ("image" or "descriptor") of the given entries, in the order they were
    read."""
    import pyarrow.parquet as pq

    by_place = {(entry.chunk, entry.place): entry for entry in entries}
    for number in sorted({entry.chunk for entry in entries}):
        with pq.ParquetFile(chunks[number]) as chunk:
            place = 0
            for batch in chunk.iter_batches(HELD, columns=[column]):
                for value in batch[column]:
                    if (number, place) in by_place:
                        yield by_place[number, place], value.as_py()
                    place += 1


def _loaded(rows: Sequence[Row]) -> list[Row]:
    """Rows as another process can read them: cells of a data set become bytes here."""
    return [replace(row, ref=_cell_bytes(row.ref)) if isinstance(row.ref, Cell) else row for row in rows]


def _cell_bytes(cell: Cell) -> bytes:
    """Empty where there is nothing: an empty file is refused with its reason like any other."""
    try:
        return read_bytes(cell)
    except OSError:
        return b""


def _read_chunk(rows: Sequence[Row], target: Path, settings: Mapping) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    partial, schema = target.with_suffix(f".{os.getpid()}"), _chunk_schema()
    with pq.ParquetWriter(partial, schema, compression="none", write_statistics=False) as writer:
        for start in range(0, len(rows), HELD):
            records = [_record(row, settings) for row in rows[start : start + HELD]]
            writer.write_table(pa.Table.from_pylist(records, schema=schema))
    os.replace(partial, target)
    return len(rows)


def _chunk_schema():
    import pyarrow as pa

    types = {
        "image": pa.large_binary(),
        "descriptor": pa.large_binary(),
        "patient": pa.list_(pa.string()),
        **{name: pa.string() for name in FOUND},
        "flat": pa.bool_(),
        **{name: pa.int64() for name in ("bytes", "width", "height")},
    }
    return pa.schema(types.items())


def _record(row: Row, settings: Mapping) -> dict:
    """Everything the rest needs to know of one file; a file that cannot be read is a record with a reason."""
    record: dict = {"patient": []}
    try:
        content = read_bytes(row.ref)
        record |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if what := pointer(content):
            return record | {"refused": what}
        header = _header(content)
        record |= {"mode": header.mode, "width": header.width, "height": header.height}
        if header.left_out:
            return record | {"refused": header.left_out}
        grey = read_image(content, modality=row.modality)
    except (ImageRefused, OSError) as error:
        return record | {"refused": _reason(error)}
    return record | {
        "pixels": hashlib.sha256(repr(grey.size).encode() + grey.tobytes()).hexdigest(),
        "image": _encoded(content, grey, header.plain, settings["long_side"]),
        "descriptor": describe(grey).tobytes() if settings["describe"] else None,
        "patient": header.patient,
        "flat": is_flat(grey),
    }


def is_flat(grey: Image.Image) -> bool:
    """Whether nearly all pixels have one of a few grey levels, as in a drawn mask."""
    counts = np.array(grey.histogram(), float)
    total = 0.0
    for _ in range(FLAT_LEVELS):
        peak = int(counts.argmax())
        around = slice(max(0, peak - FLAT_WIDTH), peak + FLAT_WIDTH + 1)
        total += counts[around].sum()
        counts[around] = 0
    return total >= FLAT_SHARE * grey.width * grey.height


def _reason(error: Exception) -> str:
    """A refusal for a list in which the file's name stands beside it: without name, path and general
    advice."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.removeprefix("The picture: ").removesuffix(ACCEPTED).strip()


@dataclass(frozen=True, slots=True)
class _Header:
    """What a file says of itself before its pixels are decoded."""

    mode: str | None = None
    width: int | None = None
    height: int | None = None
    plain: bool = False
    patient: tuple[str, ...] = ()
    left_out: str | None = None


def _header(content: bytes) -> _Header:
    """Never fails: what is wrong with a file is for `read_image` to say."""
    try:
        if is_dicom(content[:132]):
            return _dicom_header(content)
        with Image.open(io.BytesIO(content)) as image:
            plain = image.mode == "L" and image.format in ("JPEG", "PNG") and image.info.keys() <= PLAIN_INFO
            return _Header(f"{image.format} {image.mode}", *image.size, plain)
    except Exception:  # decoders raise what they like on damaged headers
        return _Header()


def _dicom_header(content: bytes) -> _Header:
    """Patient and study are kept as hashes, to group by, and in the working files only."""
    import pydicom

    tags = ["PatientID", "StudyInstanceUID", "PhotometricInterpretation", "Rows", "Columns"]
    views = ["Modality", "ImageType", "ViewPosition", "ViewCodeSequence", "PatientOrientation"]
    header = pydicom.dcmread(
        io.BytesIO(content), stop_before_pixels=True, force=True, specific_tags=[*tags, *views]
    )
    ids = {name: str(header.get(name) or "").strip() for name in tags[:2]}
    patient = [
        hashlib.sha256(f"{name}:{value}".encode()).hexdigest()
        for name, value in ids.items()
        if value.strip("0") and not names_nobody(value)
    ]
    mode = f"DICOM {header.get('PhotometricInterpretation', '')}".strip()
    return _Header(
        mode, header.get("Columns"), header.get("Rows"), False, tuple(patient), _dicom_view(header)
    )


def _dicom_view(header: "Dataset") -> str | None:
    """Why a DICOM picture is not learnt from: a localizer of a CT, or a film from the side.

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


def _encoded(content: bytes, grey: Image.Image, plain: bool, long_side: int | None) -> bytes:
    """The file itself where it is an 8-bit grey JPEG or PNG that says nothing else; a lossless PNG
    otherwise."""
    longest = max(grey.size)
    if long_side and longest > long_side:
        width, height = (max(1, round(side * long_side / longest)) for side in grey.size)
        grey = grey.resize((width, height), Image.Resampling.LANCZOS)
    elif plain:
        return content
    target = io.BytesIO()
    grey.save(target, "PNG", compress_level=4)
    return target.getvalue()
