"""Label tables beside the pictures: metadata.*, the table of ieee8023's collection, and the lists of COVIDx."""

import csv
import io
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from .files import DICOM_IDS, PICTURE_SUFFIXES, DataRefused, File, dicom_tags, is_picture, pointer, read_bytes
from .labels import DICOM_MODALITIES, KNOWN_COLUMNS, Reader, Row, exact, names_nobody
from .layout import SIDE_VIEWS, folder_modality, folder_split, left_out, placed, skipped

TABLE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
COVIDX_LIST = re.compile(r"(train|training|val|valid|validation|test)(?:_.*)?\.txt")
"""Names of COVIDx's text lists: train.txt, test_COVIDx9B.txt, val_COVIDx_CT-3A.txt."""

ID_COLUMNS = ("sopinstanceuid", "seriesinstanceuid", "studyinstanceuid", "patient_id")
VIEW_COLUMNS = ("view", "viewposition", "view_position", "projection", "frontal/lateral")
STRUCTURE = frozenset(
    {
        "file_name",
        "path",
        "label",
        "modality",
        "official_split",
        "split",
        "family",
        *ID_COLUMNS,
        *KNOWN_COLUMNS,
    }
)
"""Columns that say which picture a line is about, and what it counts as."""
FINDING_TABLE = frozenset({"finding", "folder", "file_name", "view", "modality"})
"""Columns by which the table of github.com/ieee8023/covid-chestxray-dataset is known: the class is its `finding`, and
the pictures lie in the `folder` it names."""


def is_table(file: File) -> bool:
    """Say whether a file is a label table by its name."""
    return file.name.lower() in TABLE_NAMES or bool(COVIDX_LIST.fullmatch(file.name.lower()))


def tables_among(files: Sequence[File]) -> list[File]:
    """Find the label tables of a collection: any metadata.*, else text lists that read like COVIDx's."""
    named = [file for file in files if file.name.lower() in TABLE_NAMES]
    texts = [] if named else [file for file in files if is_table(file)]
    return named or [file for file in texts if _place_of_picture((_list_lines(file) or [[]])[0]) is not None]


def table_rows(tables: Sequence[File], files: Sequence[File], reader: Reader) -> list[Row]:
    """Make rows of label tables; each table speaks of the files beside and below it.

    A table names files by `file_name`, or DICOM files by SOPInstanceUID, SeriesInstanceUID, StudyInstanceUID
    or PatientID. What it does not say (label, modality, official split) may be said by folder names or DICOM
    headers.

    Raises:
        DataRefused: unreadable table, unknown label, no label, a file listed twice or outside the table's folder.
    """
    finder, rows = _Finder(files), {}
    for table in tables:
        entries = list(_lines(table, finder))
        own = {}
        for number, entry in enumerate(entries, start=1):
            for file in finder.files_of(table, number, entry):
                if file.path in rows or file.path in own:
                    raise DataRefused(f"{table.path}: {file.path} is listed twice. Keep one line per file.")
                own[file.path] = _table_row(file, entry, reader)
        if (
            entries
            and not any("label" in entry for entry in entries)
            and all(row.label is None for row in own.values())
        ):
            raise DataRefused(
                f"{table.path} has the columns {', '.join(entries[0])}; one must hold the class: label. Rename that"
                " column, or sort the pictures into folders named by their class."
            )
        rows |= own
    reader.refuse_unknown()
    reasons = left_out(files)
    for file in files:
        if file.path not in rows and file not in tables:
            reason = reasons.get(file.path, "not in the label table")
            rows[file.path] = skipped(file, reason if is_picture(file) else "not a picture")
    return list(rows.values())


class _Finder:
    """Finds the files that a table speaks of, whichever way its system composes letters."""

    def __init__(self, files: Sequence[File]) -> None:
        self.files = files
        self.by_path = {_composed(file.path): file for file in files} | {file.path: file for file in files}
        self._by_id: dict[tuple[str, str], list[File]] | None = None

    def files_of(self, table: File, number: int, entry: dict[str, str]) -> list[File]:
        """Find the files of one line; a single missing file stands for those that do not exist."""
        id_column = next((name for name in ID_COLUMNS if name in entry), None)
        if "file_name" in entry:
            path = _below(table, entry["file_name"])
            return [self.find(path) or File(None, path, "missing")]
        if id_column:
            found = self.by_id.get((id_column, entry[id_column]))
            return found or [File(None, f"{table.path} line {number}", "missing")]
        raise DataRefused(
            f"{table.path}: the table has the columns {', '.join(entry)}; one must name the files:"
            f" file_name (path below the table), or for DICOM {', '.join(DICOM_IDS)}. Rename that column."
        )

    def find(self, path: str) -> File | None:
        return self.by_path.get(path) or self.by_path.get(_composed(path))

    @property
    def by_id(self) -> dict[tuple[str, str], list[File]]:
        if self._by_id is None:
            self._by_id = defaultdict(list)
            for file in self.files:
                for name, value in dicom_tags(file).items():
                    if value and name in DICOM_IDS:
                        self._by_id[_column(name), value].append(file)
        return self._by_id


def _composed(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _below(table: File, name: str) -> str:
    """Return the path of a table entry within the collection."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not name or path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        raise DataRefused(
            f"{table.path}: file_name {name!r} does not lie below the table. Accepted are relative paths"
            " without '..'."
        )
    return (PurePosixPath(table.path).parent / path).as_posix()


def _table_row(file: File, entry: dict[str, str], reader: Reader) -> Row:
    if file.ref is not None and not is_picture(file):
        return skipped(file, "not a picture")
    by_folder = placed(file, reader) if file.ref is not None else None
    said = entry.get("label")
    if said == "" or (said is None and by_folder is None):
        return skipped(file, "no label in the table")
    view = next((SIDE_VIEWS.get(exact(entry[name])) for name in VIEW_COLUMNS if entry.get(name)), None)
    if view:
        return skipped(file, view)
    labelled = (
        {"label": by_folder.label, "skipped": by_folder.skipped} if said is None else reader.labelled(said)
    )
    if labelled.get("skipped"):
        return Row(file.ref, file.path, stamp=file.stamp, **labelled)
    modality = entry.get("modality") or folder_modality(file, reader) or reader.modality
    modality = modality or DICOM_MODALITIES.get(dicom_tags(file).get("Modality", ""))
    return Row(
        file.ref,
        file.path,
        source=entry.get("source", ""),
        modality=reader.kind(modality, file.path),
        known=known_ids(entry),
        official_split=reader.split(entry.get("official_split") or entry.get("split", ""))
        or folder_split(file),
        stamp=file.stamp,
        about=told_beside(entry),
        **labelled,
    )


def told_beside(entry: Mapping[str, object]) -> dict[str, str]:
    """Return what a line says besides its file, label, kind, split and patient."""
    return {
        column: str(value)
        for column, value in entry.items()
        if isinstance(value, str | int | float) and value != "" and column not in STRUCTURE
    }


def known_ids(entry: dict[str, object]) -> tuple[str, ...]:
    """Return the ids of patient and group in one line, where they name somebody."""
    return tuple(
        f"{column}:{entry[column]}"
        for column in KNOWN_COLUMNS
        if entry.get(column) not in (None, "") and not names_nobody(entry[column])
    )


# --- reading tables -------------------------------------------------------------------------------


def _lines(table: File, finder: _Finder) -> Iterator[dict[str, str]]:
    """Yield the lines of a table as text under normalised column names."""
    if table.suffix == ".txt":
        yield from _covidx_lines(table, finder)
        return
    try:
        content = read_bytes(table.ref)
        if what := pointer(content):
            raise ValueError(f"it is {what}")
        for line in _raw_lines(table, content):
            entry = {
                _column(name): "" if value is None else str(value).strip() for name, value in line.items()
            }
            if "label" not in entry and entry.keys() >= FINDING_TABLE:
                entry |= {
                    "label": entry["finding"],
                    "file_name": f"{entry['folder']}/{entry['file_name']}".lstrip("/"),
                }
            yield entry
    except DataRefused:
        raise
    except (ValueError, OSError, csv.Error, AttributeError, RecursionError, NotImplementedError) as error:
        raise DataRefused(
            f"{table.path}: not a readable table ({error}). Accepted are CSV with a header line (UTF-8), one"
            " JSON object per line, or parquet."
        ) from error


def _raw_lines(table: File, content: bytes) -> Iterable[dict]:
    if table.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(io.BytesIO(content)).to_pylist()
    text = content.decode("utf-8-sig")
    if table.suffix == ".jsonl":
        return (json.loads(line) for line in text.splitlines() if line.strip())
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)  # spreadsheets write ; where the comma is the decimal point
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)


def _column(name: object) -> str:
    """Normalise the name of a column: lower case, and one spelling for ids and file names.

    'Study Instance UID' and 'study_instance_uid' are the DICOM attribute, 'filename' is file_name.
    """
    found = exact(name)
    if found in ID_COLUMNS and found != "patientid":
        return found
    return {"filename": "file_name", "patientid": "patient_id"}.get(found, str(name).strip().lower())


def _list_lines(table: File) -> list[list[str]]:
    """Return the words of each line of a text list; none where it is no text."""
    try:
        return [
            line.split() for line in read_bytes(table.ref).decode("utf-8-sig").splitlines() if line.strip()
        ]
    except (OSError, UnicodeDecodeError):
        return []


def _place_of_picture(words: Sequence[str]) -> int | None:
    """Find which word of a COVIDx line names the picture: the first or second, with the class after it."""
    for place, word in enumerate(words[:2]):
        if PurePosixPath(word).suffix.lower() in PICTURE_SUFFIXES and len(words) > place + 1:
            return place
    return None


def _covidx_lines(table: File, finder: _Finder) -> Iterator[dict[str, str]]:
    """Yield the lines of a COVIDx list: [patient] file class [source], and for CT the lung's box after the class.

    Pictures lie beside the list, in a folder called like the split, or wherever there is one of that name.
    Source: github.com/lindawangg/COVID-Net and github.com/haydengunraj/COVIDNet-CT.
    """
    called = COVIDX_LIST.fullmatch(table.name.lower())[1]
    below = PurePosixPath(table.path).parent
    names = defaultdict(list)
    for file in finder.files:
        names[_composed(file.name)].append(file.path)
    for words in _list_lines(table):
        place = _place_of_picture(words)
        if place is None:
            raise DataRefused(
                f"{table.path}: the line {' '.join(words)!r} names no picture with its class. Accepted are lines of"
                " COVIDx's lists: [patient] file class [source]. Mend the line, or write a metadata.csv."
            )
        name, rest = words[place], words[place + 2 :]
        beside = [(below / path).as_posix() for path in (name, f"{called}/{name}")]
        found = next((path for path in beside if finder.find(path)), None)
        elsewhere = names[_composed(PurePosixPath(name).name)]
        if found is None and len(elsewhere) == 1 and PurePosixPath(elsewhere[0]).is_relative_to(below):
            found = elsewhere[0]
        entry = {
            "file_name": str(PurePosixPath(found or beside[0]).relative_to(below)),
            "label": words[place + 1],
        }
        entry["official_split"] = called
        if place:
            entry["patient_id"] = words[0]
        if len(rest) == 1:
            entry["source"] = rest[0]
        yield entry
