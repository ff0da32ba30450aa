"""Findings as rows of a file: written as they come, and continued where a killed run stopped.

One row is one line of UTF-8, so that an incomplete last line is recognised and removed. A file of rows has a file of
settings beside it (``NAME.settings.json``), which says by which models they were made; rows of other models or
another operating point are never mixed. Parquet cannot be added to: its rows are collected in ``NAME.rows.jsonl`` and
become one Parquet file at the end.
"""

import contextlib
import csv
import io
import json
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .refused import Refused
from .whole import whole_file

if TYPE_CHECKING:
    import pyarrow

COLUMNS = {"file": str, "decision": str, "probability": float, "operating_point": str, "threshold": float,
           "modality": str, "out_of_distribution": float, "reasons": str, "codes": str, "heat_map": str,
           "slices": int, "judged": int, "positive": int, "most_suspicious": int, "highest": float,
           "site": str, "at_prevalence": float}  # fmt: skip
"""Of every row, with the type of what is in it; any but the first may be empty. The five before the last two are of a
series: its slices, those with a probability, those that are positive, and the number (from 1) and probability of the
highest."""
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
AT_ONCE = 10_000  # rows that are held in memory when Parquet is written


def one_line(text: str) -> str:
    """Escape the control characters of a text, so that a row stays one line."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c
        for c in text
    )


def harmless(cell: Any) -> Any:
    """Make a cell that a spreadsheet shows and does not run: texts that begin like a formula get an apostrophe."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell


def csv_line(row: dict[str, Any]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow([harmless(row.get(name)) for name in COLUMNS])
    return stream.getvalue()


def json_line(row: dict[str, Any]) -> str:
    return json.dumps({name: row.get(name) for name in COLUMNS}, ensure_ascii=False) + "\n"


HEADER = ",".join(COLUMNS) + "\n"
FORMATS = {".csv": (HEADER, csv_line), ".jsonl": ("", json_line), ".parquet": ("", json_line)}
"""By the suffix of the file: its first line, and what writes a row."""


class Terminal:
    """Rows on the terminal; letters that it lacks are escaped."""

    def __init__(self, json_lines: bool = False) -> None:
        header, self._line = FORMATS[".jsonl" if json_lines else ".csv"]
        with contextlib.suppress(AttributeError):  # a stream that is no terminal's
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout.write(header)
        self.done: Counter[str] = Counter()
        self.beside: tuple[Path, ...] = ()

    def named(self, file: str) -> str:
        return file

    def write(self, row: dict[str, Any]) -> None:
        sys.stdout.write(self._line(row))
        sys.stdout.flush()

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class RowFile:
    """A file that rows are added to.

    Args:
        path: ending in .csv, .jsonl or .parquet.
        settings: what the rows depend on, in types that JSON has.

    Attributes:
        done: how often each file is in the rows that an earlier run has left.

    Raises:
        Refused: another ending, a folder that is not there, rows of other settings, or another process writes to
            the file.
        OSError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self._suffix = self.path.suffix.lower()
        if self._suffix not in FORMATS:
            raise Refused(
                f"--out {path}: give a name that ends in {', '.join(FORMATS)}; it says what is written."
            )
        if not self.path.parent.is_dir():
            raise Refused(f"--out {path}: there is no folder {self.path.parent}. Make it first.")
        if self.path.is_dir():
            raise Refused(f"--out {path} is a folder. Give the name of a file.")
        if self._suffix == ".parquet":
            _parquet()  # it is missing now or at the end
        self._header, self._line = FORMATS[self._suffix]
        parquet = self._suffix == ".parquet"
        self._rows = self.path.with_name(f"{self.path.name}.rows.jsonl") if parquet else self.path
        self.beside = (self.path, self._rows, self.path.with_name(f"{self.path.name}.settings.json"))
        self._lock = locked(self.beside[-1], path)
        try:
            self._agree(settings)
            self.done, keep = self._earlier()
            self._stream: IO[bytes] = open(self._rows, "ab")  # noqa: SIM115 - closed by close()
            self._stream.truncate(keep)
            if not keep:
                self._add(self._header)
        except BaseException:
            self._lock.close()
            raise

    def write(self, row: dict[str, Any]) -> None:
        self._add(self._line(row))

    def _add(self, line: str) -> None:
        self._stream.write(line.encode("utf-8", "backslashreplace"))
        self._stream.flush()

    def _agree(self, settings: dict[str, Any]) -> None:
        """Note the settings, or compare them with those of an earlier run."""
        file = self.beside[-1]
        try:
            earlier = json.loads(file.read_text(encoding="utf-8") or "null")
        except (OSError, ValueError, RecursionError):
            earlier = None
        if not isinstance(earlier, dict):
            if any(place.exists() and place.stat().st_size for place in (self.path, self._rows)):
                raise Refused(
                    f"{self.path} is there already, and nothing says which models made it ({file.name} is missing or "
                    "empty). Give another --out, or move it away."
                )
            with open(file, "w", encoding="utf-8") as stream:  # in place: the lock is on this very file
                json.dump(settings, stream, indent=2)
        else:
            check_same(self.path, earlier, settings)

    def _earlier(self) -> tuple[Counter[str], int]:
        """Count how often each file is in the rows of an earlier run, and how many bytes of them are whole lines."""
        done, keep = Counter(), 0
        if self._rows != self.path and self.path.exists() and not self._rows.exists():
            try:
                with whole_file(self._rows) as new, open(new, "w", encoding="utf-8") as stream:
                    stream.writelines(map(json_line, _read_parquet(self.path)))
            except (ValueError, KeyError) as error:
                raise Refused(
                    f"{self.path} is no table of `score`, or damaged. Give another --out, or move it away."
                ) from error
        if not self._rows.exists():
            return done, keep
        with open(self._rows, "rb") as stream:
            for number, line in enumerate(stream):
                if not line.endswith(b"\n"):
                    break
                keep += len(line)
                if self._line is not csv_line or number:
                    done[self._file_in(line, number)] += 1
        return done, keep

    def _file_in(self, line: bytes, number: int) -> str:
        """Read which file a line of an earlier run is about."""
        try:
            text = line.decode("utf-8")
            file = next(csv.reader([text]))[0] if self._line is csv_line else json.loads(text)["file"]
            if isinstance(file, str):
                return file
        except (ValueError, LookupError, TypeError, csv.Error, RecursionError):
            pass
        raise Refused(
            f"{self._rows}: line {number + 1} is no row of `score`, so that it cannot be told which pictures are done. "
            "Put the file back as it was, or give another --out."
        )

    def named(self, file: str) -> str:
        """Return what the column ``file`` holds for a file of this name."""
        return harmless(file) if self._line is csv_line else file

    def close(self, whole: bool = True) -> None:
        """End the writing; `whole` says that all pictures are there, so that Parquet can be made."""
        self._stream.close()
        try:
            if whole and self._rows != self.path:
                self._write_parquet()
                self._rows.unlink()
        finally:
            self._lock.close()

    def _write_parquet(self) -> None:
        _, parquet = _parquet()
        with whole_file(self.path) as new, parquet.ParquetWriter(new, table([]).schema) as writer:
            for rows in _pieces(self._rows):
                writer.write_table(table(rows))

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.close(whole=kind is None)


def check_same(place: object, earlier: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse to add rows to those of other models or settings.

    Raises:
        Refused: as said.
    """
    other = sorted(key for key in {*earlier, *settings} if earlier.get(key) != settings.get(key))
    if other:
        raise Refused(
            f"{place} holds rows made with other {' and '.join(other)}. Give the same as before to go on, or another "
            "--out."
        )


def locked(file: Path, path: object) -> IO[bytes]:
    """Open a file and lock it for this process alone; the lock is released when the process ends."""
    stream = open(file, "ab")  # noqa: SIM115 - held open as the lock
    try:
        import fcntl
    except ImportError:  # Windows: nothing warns of two processes
        return stream
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise Refused(f"Another process is writing to {path}. Wait for it, or give another --out.") from None
    return stream


def _pieces(file: Path) -> Iterator[list[dict[str, Any]]]:
    rows = []
    with open(file, encoding="utf-8") as stream:
        for line in stream:
            rows.append(json.loads(line))
            if len(rows) == AT_ONCE:
                yield rows
                rows = []
    if rows:
        yield rows


def _read_parquet(file: Path) -> Iterator[dict[str, Any]]:
    _, parquet = _parquet()
    with parquet.ParquetFile(file) as stored:
        for batch in stored.iter_batches(AT_ONCE):
            yield from batch.to_pylist()


def table(rows: Sequence[dict[str, Any]]) -> "pyarrow.Table":
    """Make a table of Arrow from rows, with the columns and types of every file of rows."""
    arrow, _ = _parquet()
    kinds = {str: arrow.string(), float: arrow.float64(), int: arrow.int64()}
    return arrow.Table.from_pylist(
        list(rows), arrow.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])
    )


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Refused(
            "Parquet needs pyarrow, which is not installed: pip install 'covid-xct[parquet]', or give a name ending in "
            ".csv or .jsonl."
        ) from None
    return pyarrow, pyarrow.parquet
