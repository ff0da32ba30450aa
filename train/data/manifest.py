"""The list of every file met while preparing data: what it is, where it went, or why it was refused."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hub_model.check.labels import Row
from hub_model.hub_folder import LABELS

from .split import SPLITS

TEXT = ("source", "path", "sha256", "pixels", "mode", "modality", "label", "family", "split", "refused")
NUMBERS = ("bytes", "width", "height")


@dataclass(slots=True)
class Entry:
    """One file of the manifest.

    Attributes:
        source, path, label, modality, known, official_split: as in `Row`; `path` until `hide_names` replaces it.
        chunk, place: where the working files hold its picture; -1 for none.
        sha256: of the file.
        pixels: SHA-256 of the decoded 8-bit grey picture, its size included.
        bytes: size of the file.
        width, height: of the picture in the file, in pixels, before it is turned or scaled.
        mode: format and colour mode of the file, as "JPEG L".
        family: equal for copies of one original and pictures of one patient.
        split: "train", "validation" or "test".
        refused: why the picture is in none of them.
        flat: whether it has a few grey levels only; known while preparing, not written.
    """

    source: str
    path: str
    label: int | None = None
    modality: str | None = None
    known: tuple[str, ...] = ()
    official_split: str | None = None
    chunk: int = -1
    place: int = -1
    sha256: str | None = None
    pixels: str | None = None
    bytes: int | None = None
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    family: str | None = None
    split: str | None = None
    refused: str | None = None
    flat: bool | None = None

    @classmethod
    def of(cls, row: Row, **more: object) -> "Entry":
        """Begin the entry of a row, before it is read."""
        given = (row.source, row.path, row.label, row.modality, row.known, row.official_split)
        return cls(*given, refused=row.skipped, **more)


def hide_names(entries: Sequence[Entry]) -> None:
    """Call files by their contents: names and folders may name patients, and a hash of a name can be guessed.

    A path becomes the first 16 digits of the SHA-256 of the file, numbered where a source holds the same file twice;
    a file that was not read gets a number alone. Everything that is learnt from names must have been learnt before.
    """
    met: Counter[tuple[str, str]] = Counter()
    for entry in entries:
        name = entry.sha256[:16] if entry.sha256 else "not read"
        met[entry.source, name] += 1
        count = met[entry.source, name]
        entry.path = name if entry.sha256 and count == 1 else f"{name} {count}"


def write_manifest(path: Path, entries: Sequence[Entry]) -> None:
    """Write `manifest.parquet`; labels stand there by name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [getattr(entry, name) for entry in entries] for name in (*TEXT, *NUMBERS)}
    columns["label"] = [None if label is None else LABELS[label] for label in columns["label"]]
    types = [(name, pa.string()) for name in TEXT] + [(name, pa.int64()) for name in NUMBERS]
    pq.write_table(pa.table(columns, schema=pa.schema(types)), path)


def read_manifest(path: Path) -> list[Entry]:
    """Read what `write_manifest` wrote."""
    import pyarrow.parquet as pq

    entries = []
    for line in pq.read_table(path, columns=[*TEXT, *NUMBERS]).to_pylist():
        label = line.pop("label")
        entries.append(Entry(label=None if label is None else LABELS.index(label), **line))
    return entries


def counts(placed: Sequence[Entry]) -> dict[str, dict[str, dict[str, int]]]:
    """Count pictures per modality, split and class."""
    found: dict = {}
    for entry in placed:
        splits = found.setdefault(entry.modality, {split: dict.fromkeys(LABELS, 0) for split in SPLITS})
        splits[entry.split][LABELS[entry.label]] += 1
    return dict(sorted(found.items()))
