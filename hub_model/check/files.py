"""List what a folder or an archive holds, and read one file of it; archives are read in place."""

import errno
import io
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from ..archives import Archive, ArchiveRefused, Limits, Member, open_archive
from ..folders import shown, walk
from ..grey import ImageRefused
from ..refused import Refused
from ..volumes import Volume, read_volume

FILE_LIMIT = 2**30
"""Bytes that one file of a collection may have."""

ZIP_LIMIT = 64 * 2**30
"""Bytes that an archive may unpack to."""

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
PICTURE_SUFFIXES = DICOM_SUFFIXES | {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".webp", ".bmp", ".gif"),
}
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
PICTURE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"GIF8")
DICOM_IDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID")
POINTERS = {
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`",
    b"/annex/objects/": "a git-annex pointer, not the file itself: fetch it with `git annex get`",
    b"<!doctype html": "a web page, not a picture: whoever downloaded it was asked to log in, or it was not there",
    b"<html": "a web page, not a picture: whoever downloaded it was asked to log in, or it was not there",
    b"<?xml": "an XML text, not a picture: a storage server answers so where it gives no access",
}
"""First bytes, in lower case, of what lies under a picture's name when only a stand-in was fetched."""

ENTRIES = 10_000_000
"""Files that an archive may hold."""

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NO_PLACE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG}
)


class DataRefused(Refused):
    """Training data that cannot be used as it is; the message says what came, what is accepted, what to
    do."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A file inside an archive."""

    archive: Path
    member: Member


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture inside a `datasets.Dataset`, in a column of encoded images.

    Attributes:
        root: the folder of the data set; a row may name a file in there instead of holding its bytes, and none
            elsewhere.
    """

    dataset: Any
    column: str
    index: int
    root: Path | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """A slice of a volume, its number counted from the head down, from 0."""

    volume: Path | Packed
    number: int


Ref = Path | Packed | Cell | Slice | bytes | None


@dataclass(frozen=True, slots=True)
class File:
    """One file of a collection; `path` is its name in there, `stamp` changes when the file does."""

    ref: Path | Packed | None
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
def explain_write_errors(out: Path, kept: str = "") -> Iterator[None]:
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


def list_folder(root: Path) -> tuple[list[File], dict[str, str]]:
    """Walk a folder in the order of names, through links too, each folder once.

    Returns:
        The files; and path -> why what is called so is not among them, for folders that cannot be listed and links
        that are not followed.
    """
    found = walk(root)
    files = [File(path, shown(path.relative_to(root)), _stamp(path)) for path in found.files]
    left = {shown(path.relative_to(root)): "a folder that cannot be listed" for path in found.locked}
    for path in found.again:
        above = path.resolve() in (path.parent.resolve(), *path.parent.resolve().parents)
        what = "a link back to a folder above it" if above else "a link to a folder that is listed already"
        left[shown(path.relative_to(root))] = what
    return files, left


def _stamp(path: Path) -> str:
    try:
        info = path.stat()
    except OSError:  # a link that leads nowhere
        return "missing"
    return f"{info.st_size}:{info.st_mtime_ns}"


def list_archive(path: Path, limit: int = ZIP_LIMIT) -> list[File]:
    """List a zip or tar archive after judging it as a whole.

    Raises:
        DataRefused: damaged, encrypted, too large once unpacked, with entries that point outside it, or with one
            name twice.
    """
    try:
        archive = _archive(path, limit)
    except OSError as error:
        raise DataRefused(f"{path}: cannot be read ({error.strerror or error}).") from error
    except ArchiveRefused as error:
        more = " If the archive is to be trusted, raise the limit (--zip-limit, in bytes)."
        raise DataRefused(
            f"{path}: {error}{more if error.reason.code == 'archive_too_large' else ''}"
        ) from error
    for member in archive.members:
        if member.outside:
            raise DataRefused(
                f"{path}: the entry {member.name!r} points outside the archive (an absolute path, '..' or a link). "
                "Such archives are not read. Pack the plain files again."
            )
        if member.locked:
            raise DataRefused(
                f"{path}: the archive is encrypted. Unpack it with its password and give the folder."
            )
    name, count = (
        Counter(member.name for member in archive.members).most_common(1)[0] if archive.members else ("", 0)
    )
    if count > 1:
        raise DataRefused(
            f"{path}: {name} is in it {count} times. Pack the files again, each under its own name."
        )
    files = [File(Packed(path, member), member.name, member.stamp) for member in archive.members]
    return sorted(files, key=lambda file: file.path)


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
        case Packed():
            try:
                return _archive(ref.archive).read(ref.member)
            except ArchiveRefused as error:
                raise OSError(str(error)) from error
        case Cell():
            value = ref.dataset[ref.index][ref.column]
            if value is None or not (value["bytes"] or value["path"]):
                raise OSError("the data set holds no picture here")
            return value["bytes"] or read_bytes(_inside(ref.root, value["path"]))
        case Slice():
            target = io.BytesIO()
            try:
                open_volume(ref.volume).slices[ref.number].save(target, "PNG", compress_level=4)
            except ImageRefused as error:
                raise OSError(str(error.reason)) from error
            return target.getvalue()
    raise FileNotFoundError("the table lists it, but there is no such file")


def open_volume(ref: Path | Packed) -> Volume:
    """Open the volume in one file; the last one stays open, as its slices are read one after the other.

    Raises:
        ImageRefused: it is none, or cannot be used.
        OSError: as `read_bytes`.
    """
    return _volume(ref, _stamp(ref) if isinstance(ref, Path) else ref.member.stamp)


@lru_cache(maxsize=1)
def _volume(ref: Path | Packed, _changed: str) -> Volume:
    return read_volume(ref if isinstance(ref, Path) else read_bytes(ref))


def is_volume(file: File) -> bool:
    """Return whether a file is a volume by its name."""
    return file.name.lower().endswith(VOLUME_SUFFIXES)


def is_picture(file: File) -> bool:
    """Say whether a file is a picture: by its name, or by its first bytes where that says nothing. Volumes count."""
    if file.suffix in PICTURE_SUFFIXES or is_volume(file):
        return True
    head = head_of(file.ref)
    webp = (head[:4], head[8:12]) == (b"RIFF", b"WEBP")
    return webp or head.startswith(PICTURE_STARTS) or is_dicom(head)


def pointer(content: bytes) -> str | None:
    """Say what a file is that only stands in for another one, and what to do; None for any other file."""
    head = content[:64].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    return next((what for start, what in POINTERS.items() if head.startswith(start)), None)


def is_dicom(head: bytes) -> bool:
    """Recognise DICOM by the first 132 bytes.

    Some archives write neither preamble nor mark, but begin with group 2 or 8.
    """
    return head[128:132] == b"DICM" or head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08")


def dicom_tags(file: File) -> dict[str, str]:
    """Read modality and ids of a DICOM file, for matching only: none of them is written anywhere.

    Empty for other files.
    """
    import pydicom

    if not is_dicom(head_of(file.ref)):
        return {}
    wanted = ["Modality", *DICOM_IDS]
    try:
        content = file.ref if isinstance(file.ref, Path) else io.BytesIO(read_bytes(file.ref))
        header = pydicom.dcmread(content, stop_before_pixels=True, force=True, specific_tags=wanted)
        return {name: str(header.get(name) or "").strip() for name in wanted}
    except Exception:  # whatever a damaged header raises: the file is judged when its pixels are read
        return {}


def _regular(path: Path) -> os.stat_result:
    """Refuse a path that is not a regular file: a pipe or device named like a picture would block its reader."""
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError("a link that leads nowhere")
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise OSError("not a regular file")
    return info


def _inside(root: Path | None, path: str) -> Path:
    """Return the path of a file that a row of a data set names; refuse one outside the data set's folder."""
    if root is None or not Path(root, path).resolve().is_relative_to(root.resolve()):
        raise OSError(
            "the data set names a file outside itself instead of holding the picture; it is not read"
        )
    return Path(root, path)


def _check_size(size: int) -> None:
    if size > FILE_LIMIT:
        raise OSError(f"the file has {size:,} bytes; at most {FILE_LIMIT:,} are read")


def head_of(ref: Ref, size: int = 132) -> bytes:
    """Read the first bytes of a file, by default enough to tell a picture, DICOM included; empty where unreadable."""
    try:
        if isinstance(ref, Path):
            _regular(ref)
            with open(ref, "rb") as stream:
                return stream.read(size)
        if isinstance(ref, Packed):
            return _archive(ref.archive).head(ref.member, size)
    except (OSError, ArchiveRefused):
        pass
    return b""


def _archive(path: Path, limit: int | None = None) -> Archive:
    """Open an archive: its directory is read once per process, and again if the file was replaced."""
    info = path.stat()
    return _opened(path, info.st_size, info.st_mtime_ns, limit)


@lru_cache(maxsize=4)
def _opened(path: Path, size: int, changed: int, limit: int | None) -> Archive:
    return open_archive(path, Limits(ENTRIES, FILE_LIMIT, limit or 2**63))
