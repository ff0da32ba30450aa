"""Read every picture of a collection once, in chunks that are files: a killed run does not redo finished ones."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hub_model.check.files import Cell, Slice, pointer, read_bytes
from hub_model.check.headers import LUNGLESS, is_flat, read_header
from hub_model.check.labels import Row
from hub_model.check.layout import MASK, mask_twins
from hub_model.grey import ImageRefused
from hub_model.images import ACCEPTED, read_image
from hub_model.whole import whole_file

from .families import describe
from .manifest import Entry
from .slices import shows_lung

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 3
CHUNK = 64
"""Pictures per unit of resumable work."""

HELD = 8
"""Encoded pictures in memory at a time: some films have 20 million pixels."""

FOUND = ("sha256", "pixels", "bytes", "width", "height", "mode", "flat", "refused")


def input_hash(rows: Sequence[Row], settings: Mapping) -> str:
    """Hash (SHA-256) the files' names, sizes and times, what their collections say of them, and the settings."""
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
    targets = [folder / f"{input_hash(unit, settings)[:32]}.parquet" for unit in units]
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
    """Collect what was found out about every picture, in the order of `rows`."""
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
    """Stream one binary column ("image" or "descriptor") of the given entries, in the order they were read."""
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
    """Make rows that another process can read: cells of a data set become bytes here."""
    return [replace(row, ref=_cell_bytes(row.ref)) if isinstance(row.ref, Cell) else row for row in rows]


def _cell_bytes(cell: Cell) -> bytes:
    """Give the bytes of a cell; none where it is empty, so that it is refused with its reason like any file."""
    try:
        return read_bytes(cell)
    except OSError:
        return b""


def _read_chunk(rows: Sequence[Row], target: Path, settings: Mapping) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _chunk_schema()
    with (
        whole_file(target) as new,
        pq.ParquetWriter(new, schema, compression="none", write_statistics=False) as writer,
    ):
        for start in range(0, len(rows), HELD):
            records = [_record(row, settings) for row in rows[start : start + HELD]]
            writer.write_table(pa.Table.from_pylist(records, schema=schema))
    return len(rows)


def _chunk_schema() -> "pa.Schema":
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
    """Read one file and record everything the rest needs of it; one that cannot be read is a record with a reason."""
    record: dict = {"patient": []}
    try:
        content = read_bytes(row.ref)
        record |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if what := pointer(content):
            return record | {"refused": what}
        header = read_header(content)
        record |= {"mode": header.mode, "width": header.width, "height": header.height}
        if header.left_out:
            return record | {"refused": header.left_out}
        grey = read_image(content, modality=row.modality)
        if isinstance(row.ref, Slice) and not shows_lung(grey):
            return record | {"refused": LUNGLESS}
    except (ImageRefused, OSError) as error:
        return record | {"refused": _reason(error)}
    return record | {
        "pixels": hashlib.sha256(repr(grey.size).encode() + grey.tobytes()).hexdigest(),
        "image": _encoded(content, grey, header.plain, settings["long_side"]),
        "descriptor": describe(grey).tobytes() if settings["describe"] else None,
        "patient": header.patient,
        "flat": is_flat(grey),
    }


def _reason(error: Exception) -> str:
    """Shorten an error for a list that names the file beside it: no name, path or general advice."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.removeprefix("The picture: ").removesuffix(ACCEPTED).strip()


def _encoded(content: bytes, grey: Image.Image, plain: bool, long_side: int | None) -> bytes:
    """Return the file itself if it is an 8-bit grey JPEG or PNG without other data; otherwise a lossless PNG.

    A picture whose longer side exceeds `long_side` is scaled down to it, and becomes such a PNG.
    """
    longest = max(grey.size)
    if long_side and longest > long_side:
        width, height = (max(1, round(side * long_side / longest)) for side in grey.size)
        grey = grey.resize((width, height), Image.Resampling.LANCZOS)
    elif plain:
        return content
    target = io.BytesIO()
    grey.save(target, "PNG", compress_level=4)
    return target.getvalue()
