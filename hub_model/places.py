"""Files anywhere: on this machine, or behind an address that pyarrow or fsspec open (s3://, gs://, hdfs://, ...).

Needs pyarrow, and fsspec for what pyarrow itself does not open.
"""

import contextlib
import io
import os
import posixpath
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from .refused import Failed, Refused

WAITS = (1.0, 4.0, 16.0)  # seconds before a place that does not answer is asked again


class Place(NamedTuple):
    """A file or folder anywhere.

    Attributes:
        name: as it was given.
        system: what opens it.
        path: its name there.
    """

    name: str
    system: fs.FileSystem
    path: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.system, fs.LocalFileSystem)

    @property
    def full_name(self) -> str:
        """What a process with another working folder finds it by: the whole path, or the address as it was given."""
        return self.name if is_remote(self.name) else self.path

    def within(self, name: str) -> str:
        return posixpath.join(self.path, name)

    def write(self, name: str, content: bytes) -> None:
        """Write a file of this folder whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        partial_name = self.within(f".{name}.{secrets.token_hex(4)}.partial")
        with self.system.open_output_stream(partial_name) as stream:
            stream.write(content)
        self.system.move(partial_name, self.within(name))

    def exists(self, name: str) -> bool:
        return self.system.get_file_info(self.within(name)).type == fs.FileType.File

    def delete(self, name: str) -> None:
        """Delete a file of this folder; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            self.system.delete_file(self.within(name))

    def files(self) -> list[fs.FileInfo]:
        """List all files at any depth, in the order of their names."""
        found = self.system.get_file_info(fs.FileSelector(self.path, recursive=True, allow_not_found=True))
        return sorted(
            (one for one in found if one.type == fs.FileType.File), key=lambda one: one.path.split("/")
        )


def is_remote(path: str | os.PathLike) -> bool:
    """Say whether a path names another file system, as in s3://bucket/folder."""
    return "://" in os.fspath(path)


def place(path: str | os.PathLike) -> Place:
    """Find the file or folder that a path or address names.

    Raises:
        Refused: nothing here opens such addresses.
    """
    name = os.fspath(path)
    if not is_remote(name):
        return Place(name, fs.LocalFileSystem(), Path(name).absolute().as_posix())
    try:
        return Place(name, *fs.FileSystem.from_uri(name))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError):
        pass  # not one of pyarrow's own
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(name)
    except (ImportError, ValueError) as error:
        raise Refused(
            f"{name} cannot be opened: {str(error).rstrip('.')}. Give a path, s3://, gs://, hdfs://, or another "
            "address for which fsspec and its package are installed."
        ) from error
    return Place(name, fs.PyFileSystem(fs.FSSpecHandler(system)), path)


class Steady(io.RawIOBase):
    """A file elsewhere, seekable, that is opened again where its place stops answering for a while.

    Args:
        where: whose file system it is of.
        path: its name there.
        lost: gets a sentence where the place stays away: whoever reads archives takes errors for damage.

    Raises:
        FileNotFoundError: there is no such file.
        Failed: the place stays away.
    """

    def __init__(self, where: Place, path: str, lost: list[str] | None = None) -> None:
        super().__init__()
        self._where, self._path, self._lost = where, path, lost
        self._file = self._tried(lambda: where.system.open_input_file(path))

    def _tried(self, do: Callable[[], Any]) -> Any:
        for wait in (*WAITS, None):
            try:
                return do()
            except FileNotFoundError:
                raise
            except OSError as error:
                if wait is None:
                    text = f"{self._where.name} does not answer ({str(error).splitlines()[0][:200]})."
                    if self._lost is not None:
                        self._lost.append(text)
                    raise Failed(text) from error
                time.sleep(wait)

    def read(self, count: int = -1) -> bytes:
        at = self._file.tell()

        def again() -> bytes:
            if self._file.closed:
                self._file = self._where.system.open_input_file(self._path)
                self._file.seek(at)
            try:
                return self._file.read(None if count is None or count < 0 else count)
            except OSError:
                self._file.close()
                raise

        return self._tried(again)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
