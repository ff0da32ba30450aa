"""Listing what a folder or a zip archive holds, and reading one file of it.

Archives are read in place. Nothing is ever unpacked to disk, so that no entry of an archive can be written
outside a folder.
"""

import errno
import io
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from hub_model.refused import Refused

FILE_LIMIT = 2**30
"""Bytes that one file of a collection may have."""

ZIP_LIMIT = 64 * 2**30
"""Bytes that an archive may unpack to."""

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
PICTURE_SUFFIXES = DICOM_SUFFIXES | {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".webp", ".bmp", ".gif"),
}
PICTURE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"GIF8")
JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
"""What operating systems leave behind; hidden files are passed over too."""

DICOM_IDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID")
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError)
"""What Python's zip reader raises on damaged, encrypted or oddly packed entries."""

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NO_PLACE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG}
)


class DataRefused(Refused):
    """Training data that cannot be used as it is; the message says what came, what is accepted, what to
    do."""


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """A file inside a zip archive."""

    archive: Path
    name: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture inside a `datasets.Dataset`, in a column of encoded images."""

    dataset: Any
    column: str
    index: int


Ref = Path | ZipEntry | Cell | bytes | None


@dataclass(frozen=True, slots=True)
class File:
    """One file of a collection; `path` is its name in there, `stamp` changes when the file does."""

    ref: Path | ZipEntry | None
    path: str
    stamp: str

    @property
    def folders(self) -> tuple[str, ...]:
        return PurePosixPath(self.path).parts[:-1]

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix.lower()


@contextmanager
def writing(out: Path, kept: str = "") -> Iterator[None]:
    """Say in words what a failed write means; `kept` is what is not lost by it.

    Raises:
        DataRefused: the disk is full, or `out` cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DataRefused(
                f"{out}: the disk is full; nothing was written there. Make room (about twice the size of the"
                f" pictures) and run again.{kept}"
            ) from error
        if error.errno in NO_PLACE:
            raise DataRefused(
                f"{out}: cannot be written ({error.strerror}). Name a folder that can be."
            ) from error
        raise


def list_folder(root: Path) -> tuple[list[File], list[str]]:
    """Walk a folder in the order of names, through links too.

    Returns:
        The files, with unreadable folders among them (reading those fails, so that they are counted), and the
        links that lead back to a folder above them and are not followed.
    """
    files: list[File] = []
    loops: list[str] = []

    def walk(folder: Path, above: frozenset[tuple[int, int]]) -> None:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            files.append(File(folder, f"{_shown(folder.relative_to(root))}.dcm", "unreadable"))
            return
        for entry in entries:
            if _is_junk(entry.name):
                continue
            path = Path(entry.path)
            shown = _shown(path.relative_to(root))
            info = _stat(path)
            if info is None or not stat.S_ISDIR(info.st_mode):
                files.append(File(path, shown, f"{info.st_size}:{info.st_mtime_ns}" if info else "missing"))
            elif (info.st_dev, info.st_ino) in above:
                loops.append(shown)
            else:
                walk(path, above | {(info.st_dev, info.st_ino)})

    info = root.stat()
    walk(root, frozenset({(info.st_dev, info.st_ino)}))
    return files, loops


def list_zip(path: Path, limit: int = ZIP_LIMIT) -> list[File]:
    """List a zip archive after judging it as a whole.

    Raises:
        DataRefused: damaged, encrypted, too large once unpacked, or with entries that point outside it.
    """
    try:
        entries = [entry for entry in _archive(path).infolist() if not entry.is_dir()]
    except (OSError, *BROKEN_ZIP) as error:
        raise DataRefused(
            f"{path}: the zip archive is damaged ({error}). Download or pack it again."
        ) from error
    for entry in entries:
        _check_entry(path, entry)
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > limit:
        raise DataRefused(
            f"{path}: unpacks to {unpacked / 2**30:.2f} GiB; the limit is {limit / 2**30:.2f} GiB. If the"
            " archive is to be trusted, raise the limit (--zip-limit, in bytes) or give the unpacked folder."
        )
    files = [
        File(ZipEntry(path, entry.filename), entry.filename, f"{entry.file_size}:{entry.CRC:08x}")
        for entry in sorted(entries, key=lambda entry: entry.filename)
    ]
    return [file for file in files if not any(_is_junk(part) for part in (*file.folders, file.name))]


def _check_entry(archive: Path, entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    absolute = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name)
    if absolute or ".." in re.split(r"[/\\]", name) or stat.S_ISLNK(entry.external_attr >> 16):
        raise DataRefused(
            f"{archive}: the entry {name!r} points outside the archive (an absolute path, '..' or a link). "
            "Such archives are not read. Pack the plain files again."
        )
    if entry.flag_bits & 0x1:
        raise DataRefused(
            f"{archive}: the archive is encrypted. Unpack it with its password and give the folder."
        )


def read_bytes(ref: Ref) -> bytes:
    """Read the encoded file behind a reference.

    Raises:
        OSError: missing, unreadable, not a file, longer than `FILE_LIMIT`, or damaged within its archive.
    """
    match ref:
        case bytes():
            return ref
        case Path():
            _check_size(_regular(ref).st_size)
            return ref.read_bytes()
        case ZipEntry():
            try:
                _check_size(_archive(ref.archive).getinfo(ref.name).file_size)
                return _archive(ref.archive).read(ref.name)
            except BROKEN_ZIP as error:
                raise OSError(f"damaged within its archive ({error})") from error
        case Cell():
            value = ref.dataset[ref.index][ref.column]
            if value is None or not (value["bytes"] or value["path"]):
                raise OSError("the data set holds no picture here")
            return value["bytes"] or read_bytes(Path(value["path"]))
    raise FileNotFoundError("the table lists it, but there is no such file")


def is_picture(file: File) -> bool:
    """By its name, or by its first bytes where the name says nothing."""
    if file.suffix in PICTURE_SUFFIXES:
        return True
    head = _head(file.ref)
    webp = (head[:4], head[8:12]) == (b"RIFF", b"WEBP")
    return webp or head.startswith(PICTURE_STARTS) or is_dicom(head)


def is_dicom(head: bytes) -> bool:
    """By the first 132 bytes; some archives write neither preamble nor mark but begin with group 2 or 8."""
    return head[128:132] == b"DICM" or head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08")


def dicom_tags(file: File) -> dict[str, str]:
    """Modality and ids of a DICOM file, for matching only: none of them is written anywhere.

    Empty for other files.
    """
    import pydicom

    if not is_dicom(_head(file.ref)):
        return {}
    wanted = ["Modality", *DICOM_IDS]
    try:
        content = file.ref if isinstance(file.ref, Path) else io.BytesIO(read_bytes(file.ref))
        header = pydicom.dcmread(content, stop_before_pixels=True, force=True, specific_tags=wanted)
        return {name: str(header.get(name) or "").strip() for name in wanted}
    except Exception:  # whatever a damaged header raises: the file is judged when its pixels are read
        return {}


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK


def _shown(path: Path) -> str:
    """A name that can be written down, also where the file system's bytes are no valid UTF-8."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _stat(path: Path) -> os.stat_result | None:
    """None for a link that leads nowhere."""
    try:
        return path.stat()
    except OSError:
        return None


def _regular(path: Path) -> os.stat_result:
    """A pipe or device that is named like a picture would block its reader."""
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError("a link that leads nowhere")
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise OSError("a folder that cannot be listed" if path.is_dir() else "not a regular file")
    return info


def _check_size(size: int) -> None:
    if size > FILE_LIMIT:
        raise OSError(f"the file has {size:,} bytes; at most {FILE_LIMIT:,} are read")


def _head(ref: Ref) -> bytes:
    """The first 132 bytes: enough to tell a picture, DICOM included; empty where unreadable."""
    try:
        if isinstance(ref, Path):
            _regular(ref)
            with open(ref, "rb") as stream:
                return stream.read(132)
        if isinstance(ref, ZipEntry):
            with _archive(ref.archive).open(ref.name) as stream:
                return stream.read(132)
    except (OSError, *BROKEN_ZIP):
        pass
    return b""


def _archive(path: Path) -> zipfile.ZipFile:
    """An open archive: its directory is read once per process, and again if the file was replaced."""
    info = path.stat()
    return _opened(path, info.st_size, info.st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(path: Path, size: int, changed: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)
