"""What a collection says of its pictures: by the names of its folders, or by a table beside them."""

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from hub_model import dicom
from hub_model.hub_folder import LABELS, MODALITIES

from .files import DICOM_IDS, DataRefused, File, Ref, dicom_tags, is_picture, read_bytes

TABLE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MODALITY_NAMES = {
    **dict.fromkeys(("xray", "xrays", "cxr", "chestxray"), "xray"),
    **dict.fromkeys(("ct", "cts", "ctscan", "ctscans"), "ct"),
}
LABEL_NAMES = {
    **dict.fromkeys(("covid", "covid19", "covidpositive", "positive"), "COVID"),
    **dict.fromkeys(("noncovid", "noncovid19", "covidnegative", "negative"), "Non-COVID"),
}
DICOM_MODALITIES = {code: name for name, codes in dicom.MODALITIES.items() for code in codes}
KNOWN_COLUMNS = ("group", "family", "patient_id", "patient")
"""Columns whose equal values make pictures one family."""

ID_COLUMNS = ("sopinstanceuid", "seriesinstanceuid", "studyinstanceuid", "patient_id")
LAYOUT = (
    "Accepted is 'X-ray' or 'CT' with 'COVID' and 'Non-COVID' below it (any case, any depth; a folder or a"
    " zip), two such class folders with the modality said beside them, or a metadata.csv with file_name and"
    " label"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One file of a collection, before anybody has looked at its pixels.

    Attributes:
        ref: where its bytes are; None for a table entry without a file.
        path: name within its source, '/' between the parts.
        source: name of the collection.
        label: 1 for COVID, 0 for Non-COVID; None only where `skipped`.
        modality: "xray" or "ct"; None only where `skipped`.
        known: ids of patient or group; rows that share one are one family.
        official_split: "train", "validation" or "test" where the collection says so.
        stamp: changes when the file changes (size and time, or checksum).
        skipped: why the file is no training picture by the collection's own word; None for a picture.
    """

    ref: Ref
    path: str
    source: str = ""
    label: int | None = None
    modality: str | None = None
    known: tuple[str, ...] = ()
    official_split: str | None = None
    stamp: str = ""
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """How the names of one collection are to be understood.

    Attributes:
        place: the collection, for messages.
        words: normalised class name -> class index.
        modality: of pictures that say none.
        above: name of the folder itself, where the collection is one: 'CT' may be said there.
    """

    place: str
    words: Mapping[str, int]
    modality: str | None = None
    above: tuple[str, ...] = ()

    def label(self, said: object) -> int:
        """Class index of a label in a table."""
        word = plain(said)
        if word not in self.words:
            raise DataRefused(
                f"{self.place}: a label is {said!r}; accepted are {' and '.join(LABELS)}. Numbers are not"
                " guessed, since 0 means COVID in some collections. Rename them, or say what they mean"
                " (--labels 1=COVID --labels 0=Non-COVID)."
            )
        return self.words[word]

    def kind(self, said: object, path: str) -> str:
        """Modality as a table says it."""
        if not said:
            raise DataRefused(
                f"{self.place}: nothing says whether {path} is X-ray or CT. Say it in a column or folder name"
                " 'modality', or for all of them (--modality)."
            )
        if plain(said) not in MODALITY_NAMES:
            raise DataRefused(f"{self.place}: modality {said!r}; accepted are {' and '.join(MODALITIES)}.")
        return MODALITY_NAMES[plain(said)]

    def part(self, said: str) -> str | None:
        """Official part as a table says it; empty means none."""
        if said and said.lower() not in SPLIT_NAMES:
            raise DataRefused(
                f"{self.place}: official split {said!r}; accepted are train, validation and test."
            )
        return SPLIT_NAMES[said.lower()] if said else None


def plain(name: object) -> str:
    """'Non_COVID ' -> 'noncovid', 'X-Ray' -> 'xray'."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def label_words(labels: Sequence[str] | None) -> dict[str, int]:
    """Normalised class name -> class index, with further names as "Normal=Non-COVID"."""
    words = dict(LABEL_NAMES)
    for pair in labels or ():
        name, _, meaning = pair.partition("=")
        if not plain(name) or meaning not in LABELS:
            raise DataRefused(
                f"Label {pair!r}: accepted is NAME=CLASS with the class {' or '.join(LABELS)}, as"
                " Normal=Non-COVID."
            )
        words[plain(name)] = meaning
    return {word: LABELS.index(meaning) for word, meaning in words.items()}


# --- names of folders -----------------------------------------------------------------------------


def layout_rows(files: Sequence[File], reader: Reader) -> list[Row]:
    """Rows of the documented layout or of a plain two-folder tree.

    Raises:
        DataRefused: pictures lie where no folder name says class and modality; nothing is guessed.
    """
    rows, unknown = [], Counter()
    for file in files:
        row = _placed(file, reader) if is_picture(file) else _skipped(file, "not a picture")
        if row is None:
            unknown["/".join(file.folders) or "(top)"] += 1
        else:
            rows.append(row)
    if unknown:
        listed = ", ".join(f"{name!r} ({count})" for name, count in unknown.most_common(8))
        raise DataRefused(
            f"{reader.place}: {unknown.total()} pictures lie in folders whose names do not say class and"
            f" modality: {listed}{' and more' if len(unknown) > 8 else ''}. {LAYOUT}. Rename or move these"
            " folders, say the modality (--modality), or say what a name means (--labels Normal=Non-COVID)."
        )
    return rows


def _placed(file: File, reader: Reader) -> Row | None:
    """Class and modality by the folder names; None where they do not say both, or say two things."""
    modality = _folder_modality(file, reader)
    names = [plain(name) for name in (*reader.above, *file.folders)]
    if modality:
        names = names[next(i for i, name in enumerate(names) if name in MODALITY_NAMES) :]
    elif any(name in MODALITY_NAMES for name in names):
        return None  # both modalities in one path
    else:
        names = names[len(reader.above) :]
    modality = modality or reader.modality or DICOM_MODALITIES.get(dicom_tags(file).get("Modality", ""))
    labels = {reader.words[name] for name in names if name in reader.words}
    if len(labels) != 1 or not modality:
        return None
    return Row(
        file.ref,
        file.path,
        label=labels.pop(),
        modality=modality,
        official_split=_folder_split(file),
        stamp=file.stamp,
    )


def _folder_modality(file: File, reader: Reader) -> str | None:
    names = (plain(name) for name in (*reader.above, *file.folders))
    found = {MODALITY_NAMES[name] for name in names if name in MODALITY_NAMES}
    return found.pop() if len(found) == 1 else None


def _folder_split(file: File) -> str | None:
    """The part that a folder name speaks of, as in train/CT/COVID."""
    found = {SPLIT_NAMES[name.lower()] for name in file.folders if name.lower() in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def _skipped(file: File, reason: str) -> Row:
    return Row(file.ref, file.path, stamp=file.stamp, skipped=reason)


# --- tables ---------------------------------------------------------------------------------------


def table_rows(tables: Sequence[File], files: Sequence[File], reader: Reader) -> list[Row]:
    """Rows of `metadata.*` tables; each table speaks of the files beside and below it.

    A table names files by `file_name`, or DICOM files by SOPInstanceUID, SeriesInstanceUID, StudyInstanceUID
    or PatientID. What it does not say (label, modality, official part) may be said by folder names or DICOM
    headers.

    Raises:
        DataRefused: unreadable table, unknown label, a file listed twice or outside the table's folder.
    """
    by_path = {file.path: file for file in files}
    by_id: dict[str, list[File]] | None = None
    rows: dict[str, Row] = {}
    for table in tables:
        for number, entry in enumerate(_lines(table), start=1):
            id_column = next((name for name in ID_COLUMNS if name in entry), None)
            if "file_name" in entry:
                path = _below(table, entry["file_name"])
                matched = [by_path.get(path, File(None, path, "missing"))]
            elif id_column:
                by_id = _by_id(files) if by_id is None else by_id
                missing = File(None, f"{table.path} line {number}", "missing")
                matched = by_id.get((id_column, entry[id_column]), [missing])
            else:
                raise DataRefused(
                    f"{table.path}: the table has the columns {', '.join(entry)}; one must name the files:"
                    f" file_name (path below the table), or for DICOM {', '.join(DICOM_IDS)}. Rename that"
                    " column."
                )
            for file in matched:
                if file.path in rows:
                    raise DataRefused(f"{table.path}: {file.path} is listed twice. Keep one line per file.")
                rows[file.path] = _table_row(file, entry, reader)
    for file in files:
        if file.path not in rows and file not in tables:
            rows[file.path] = _skipped(
                file, "not in the label table" if is_picture(file) else "not a picture"
            )
    return list(rows.values())


def _lines(table: File) -> Iterator[dict[str, str]]:
    """Lines of a table as text under normalised column names."""
    try:
        content = read_bytes(table.ref)
        if table.suffix == ".parquet":
            import pyarrow.parquet as pq

            lines: Iterable[dict] = pq.read_table(io.BytesIO(content)).to_pylist()
        elif table.suffix == ".jsonl":
            lines = (json.loads(line) for line in content.decode("utf-8-sig").splitlines() if line.strip())
        else:
            lines = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        for line in lines:
            yield {_column(name): "" if value is None else str(value).strip() for name, value in line.items()}
    except DataRefused:
        raise
    except (ValueError, OSError, csv.Error, AttributeError) as error:
        raise DataRefused(
            f"{table.path}: not a readable table ({error}). Accepted are CSV with a header line (UTF-8), one"
            " JSON object per line, or parquet."
        ) from error


def _column(name: object) -> str:
    """Lower case; 'Study Instance UID' and 'study_instance_uid' are the DICOM attribute, 'filename' is
    file_name."""
    found = plain(name)
    if found in ID_COLUMNS and found != "patientid":
        return found
    return {"filename": "file_name", "patientid": "patient_id"}.get(found, str(name).strip().lower())


def _below(table: File, name: str) -> str:
    """Path of a table entry within the collection."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not name or path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        raise DataRefused(
            f"{table.path}: file_name {name!r} does not lie below the table. Accepted are relative paths"
            " without '..'."
        )
    return (PurePosixPath(table.path).parent / path).as_posix()


def _by_id(files: Sequence[File]) -> dict[tuple[str, str], list[File]]:
    found = defaultdict(list)
    for file in files:
        for name, value in dicom_tags(file).items():
            if value:
                found[_column(name), value].append(file)
    return found


def _table_row(file: File, entry: dict[str, str], reader: Reader) -> Row:
    placed = _placed(file, reader) if file.ref is not None else None
    said = entry.get("label")
    if said == "" or (said is None and placed is None):
        return _skipped(file, "no label in the table")
    modality = entry.get("modality") or _folder_modality(file, reader) or reader.modality
    modality = modality or DICOM_MODALITIES.get(dicom_tags(file).get("Modality", ""))
    return Row(
        file.ref,
        file.path,
        source=entry.get("source", ""),
        label=placed.label if said is None else reader.label(said),
        modality=reader.kind(modality, file.path),
        known=tuple(f"{column}:{entry[column]}" for column in KNOWN_COLUMNS if entry.get(column)),
        official_split=reader.part(entry.get("official_split") or entry.get("split", ""))
        or _folder_split(file),
        stamp=file.stamp,
    )
