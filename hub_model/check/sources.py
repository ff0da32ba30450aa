"""List the pictures of any kind of collection as rows of one kind (`Row`); no pixel is decoded here.

Accepted: the documented layout (`X-ray|CT` / `COVID|Non-COVID`) or a plain two-folder tree as a folder or
zip, pictures or DICOM files with a `metadata.csv|jsonl|parquet`, a `datasets` folder, a Hub data set id, and
several of them joined.
"""

import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..archives import is_archive
from ..hub_folder import MODALITIES
from .files import ZIP_LIMIT, Cell, DataRefused, list_archive, list_folder
from .labels import LAYOUT, SPLIT_NAMES, Reader, Row, label_words
from .layout import layout_rows
from .tables import TABLE_NAMES, known_ids, table_rows, tables_among, told_beside

ANOTHER_MODALITY = "another modality"
"""How `Row.skipped` begins for a good picture that is not of the modality asked for."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def open_sources(
    sources: str | Path | Sequence[str | Path],
    modality: str | None = None,
    labels: Sequence[str] | None = None,
    zip_limit: int = ZIP_LIMIT,
) -> list[Row]:
    """List the pictures of one or several collections.

    Args:
        sources: folders, zip archives or Hub ids ("org/name" or "org/name@revision"); each may be given a
            name: "hospital=path/to/folder".
        modality: "xray" or "ct": that of pictures that say none; those that say the other are left out.
        labels: further folder names or table values with their class, as "Normal=Non-COVID".
        zip_limit: bytes that an archive may unpack to.

    Returns:
        One row per file, also for files that are no training pictures (`Row.skipped`).

    Raises:
        DataRefused: nothing usable, an unknown layout, or an archive that cannot be trusted.
    """
    if modality not in (None, *MODALITIES):
        raise DataRefused(f"Modality {modality!r}: accepted are {' and '.join(MODALITIES)}.")
    words = label_words(labels)
    named = [_parse(source) for source in ([sources] if isinstance(sources, str | Path) else sources)]
    twice = [name for name, count in Counter(name for name, _, _ in named).items() if count > 1]
    if twice:
        raise DataRefused(
            f"Several sources are called {twice[0]!r}, so their figures could not be told apart. "
            "Give each a name of its own: first=path/one second=path/two."
        )
    rows = []
    for name, place, explicit in named:
        reader = Reader(str(place), words, modality)
        rows += [_adopt(row, name, explicit, modality) for row in _open(place, reader, zip_limit)]
    if not any(row.skipped is None for row in rows):
        only = f" of modality {modality!r}" if modality else ""
        places = ", ".join(str(place) for _, place, _ in named) or "an empty list of sources"
        raise DataRefused(
            f"No pictures{only} in {places}. {LAYOUT}. Check the path, or unpack inner archives first."
        )
    return rows


def _parse(source: str | Path) -> tuple[str, str | Path, bool]:
    """Split "name=place" into the name, the place (a `Path` if it exists), and whether the name was given."""
    text, name = str(source), ""
    if "=" in text and not Path(text).exists():
        name, _, text = text.partition("=")
    path = Path(text).expanduser()
    if path.exists():
        real = path.resolve()
        return name or (real.stem if real.is_file() else real.name), path, bool(name)
    if HUB_ID.fullmatch(text):
        return name or text.partition("@")[0], text, bool(name)
    raise DataRefused(
        f"{text}: no such folder or zip archive, and no Hub data set id (org/name). Check the path."
    )


def _adopt(row: Row, name: str, explicit: bool, modality: str | None) -> Row:
    """Put a row under the name of its source; equal patient or group ids in different sources stay separate."""
    inner = row.source
    source = (f"{name}/{inner}" if explicit else inner) if inner else name
    skipped = row.skipped
    if skipped is None and modality and row.modality != modality:
        skipped = f"{ANOTHER_MODALITY} ({row.modality})"
    return replace(row, source=source, known=tuple(f"{name}:{one}" for one in row.known), skipped=skipped)


def _open(place: str | Path, reader: Reader, zip_limit: int) -> list[Row]:
    if isinstance(place, str):
        return _dataset_rows(_hub_dataset(place), reader, None)
    left: dict[str, str] = {}
    if place.is_dir():
        if _is_dataset_folder(place):
            return _dataset_rows(_local_dataset(place), reader, place)
        files, left = list_folder(place)
        reader = replace(reader, above=(place.resolve().name,))
    elif is_archive(place) or zipfile.is_zipfile(place):
        files = list_archive(place, zip_limit)
    else:
        raise DataRefused(
            f"{place}: neither a folder nor a zip archive (nor a tar). {LAYOUT}. Unpack other archives first."
        )
    tables = tables_among(files)
    rows = table_rows(tables, files, reader) if tables else layout_rows(files, reader)
    return rows + [Row(None, path, skipped=why) for path, why in left.items()]


# --- datasets -------------------------------------------------------------------------------------


def _is_dataset_folder(place: Path) -> bool:
    """Recognise what `save_to_disk` saved, or parquet files as `prepare` and the Hub have them."""
    if any((place / name).exists() for name in ("dataset_dict.json", "state.json")):
        return True
    if any((place / name).exists() for name in TABLE_NAMES):
        return False
    return any(path for pattern in ("*.parquet", "data/*.parquet") for path in place.glob(pattern))


def _local_dataset(place: Path) -> Any:
    import datasets

    saved = any((place / name).exists() for name in ("dataset_dict.json", "state.json"))
    try:
        return datasets.load_from_disk(str(place)) if saved else datasets.load_dataset(str(place))
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise DataRefused(
            f"{place}: looks like a data set, but `datasets` cannot open it ({error})."
        ) from error


def _hub_dataset(name: str) -> Any:
    import datasets

    repository, _, revision = name.partition("@")
    try:
        return datasets.load_dataset(repository, revision=revision or None)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise DataRefused(
            f"{name}: neither a folder here nor a data set that can be fetched from the Hub"
            f" ({type(error).__name__}: {error}). Check the name and the network, or download it and give the"
            " folder."
        ) from error


def _dataset_rows(dataset: Any, reader: Reader, root: Path | None) -> list[Row]:
    import datasets

    rows = []
    for name, split in dataset.items() if isinstance(dataset, dict) else [("", dataset)]:
        column = next((key for key, kind in split.features.items() if isinstance(kind, datasets.Image)), None)
        if column is None or "label" not in split.column_names:
            raise DataRefused(
                f"{reader.place}: a data set with the columns {', '.join(split.column_names)}; needed are one"
                " of images and 'label' (COVID, Non-COVID). Rename them with datasets' rename_column and"
                " save it again."
            )
        cells = split.cast_column(column, datasets.Image(decode=False))
        rows += _split_rows(cells, column, str(name), reader, root)
    reader.refuse_unknown()
    if len({(row.source, row.path) for row in rows}) < len(rows):
        rows = [replace(row, path=f"{index:06d}/{row.path}") for index, row in enumerate(rows)]
    return rows


def _split_rows(split: Any, column: str, name: str, reader: Reader, root: Path | None) -> Iterator[Row]:
    to_text = getattr(split.features["label"], "int2str", None)
    for index, entry in enumerate(split.remove_columns(column)):
        cell = Cell(split, column, index, root)
        path = str(entry.get("path") or entry.get("file_name") or f"{name or 'row'}-{index:06d}")
        stamp = f"{split._fingerprint}:{index}"
        held_back = (
            bool(to_text) and entry["label"] == -1
        )  # as the Hub writes labels that a test split keeps back
        if held_back or entry["label"] in (None, ""):
            yield Row(cell, path, stamp=stamp, skipped="no label in the data set")
            continue
        yield Row(
            cell,
            path,
            source=str(entry.get("source") or ""),
            modality=reader.kind(entry.get("modality") or reader.modality, path),
            known=known_ids(entry),
            official_split=SPLIT_NAMES.get(name.lower()),
            stamp=stamp,
            about=told_beside(entry),
            **reader.labelled(to_text(entry["label"]) if to_text else entry["label"]),
        )
