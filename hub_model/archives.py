"""Read zip and tar archives in place: listed once, judged as a whole before anything in them is unpacked.

Nothing is written to disk, so no entry can land outside a folder, and no more of an entry is held in memory than
its directory says it has.
"""

import bz2
import gzip
import lzma
import os
import re
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import IO, Any

from .folders import is_rubbish
from .grey import MAX_BYTES
from .refused import Reason, Refused

ZIP_SUFFIX = ".zip"
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
UNPACKERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
"""First bytes of a compressed tar -> what opens it."""

METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 98: "PPMd"}
"""Names of packing methods by their number in PKWARE's APPNOTE 4.4.5, for messages."""

DIRECTORY_BYTES = 512  # of a zip's directory, per entry allowed: parsing it must not take longer than that
CHUNK = 2**20  # bytes asked of a stream at a time: zipfile unpacks no more than it is asked for


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may hold: entries of every kind, bytes of one file once unpacked, and bytes of all."""

    entries: int = 100_000
    member_bytes: int = MAX_BYTES
    unpacked_bytes: int = 64 * 2**30


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive.

    Attributes:
        name: '/' between the parts, also where another system wrote '\\', and Unicode where it can be.
        number: place in the archive; two members may have one name.
        size: bytes once unpacked.
        stamp: changes when the content does.
        outside: whether the name leads out of the archive (absolute, '..'), or the entry is a link.
        locked: whether it needs a password.
    """

    name: str
    number: int
    size: int
    stamp: str
    outside: bool = False
    locked: bool = False


class ArchiveRefused(Refused):
    """An archive, or one member, that cannot be read; the message speaks of it without its name.

    Attributes:
        reason: the message with its code.
    """

    def __init__(self, text: str, code: str, **values: Any) -> None:
        super().__init__(text)
        self.reason = Reason(text, code, **values)


def is_archive(path: str | os.PathLike) -> bool:
    """Say whether a file is a zip or tar: by its name, or by its first bytes where the name has no suffix."""
    path = Path(path)
    if path.name.lower().endswith((ZIP_SUFFIX, *TAR_SUFFIXES)):
        return path.is_file()
    if path.suffix or not path.is_file():
        return False
    with open(path, "rb") as stream:
        return stream.read(4) in ZIP_STARTS or _unpacked_start(stream)[257:262] == b"ustar"


@dataclass
class Archive:
    """An open archive; close it, or use it in a `with` block.

    Several threads may read from one; other processes open their own, as they would share the place in the file.

    Attributes:
        path: the file.
        members: its files in the order of the archive, without what systems add.
        rubbish: entries passed over by their names.
    """

    path: Path
    limits: Limits
    members: tuple[Member, ...] = ()
    rubbish: int = 0
    _file: Any = None
    _opened: Any = None
    _infos: list[Any] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, member: Member) -> bytes:
        """Unpack one member.

        Raises:
            ArchiveRefused: locked, larger than allowed, packed by a method that is not read, or damaged.
        """
        if member.size > self.limits.member_bytes:
            raise _refused_size(member.size, self.limits.member_bytes)
        content = self._content(member, member.size)
        if len(content) != member.size:
            raise ArchiveRefused(*DAMAGED_MEMBER)
        return content

    def head(self, member: Member, count: int) -> bytes:
        """Read the first bytes of a member, at most `count`; raises as `read` does."""
        return self._content(member, count)

    def _content(self, member: Member, count: int) -> bytes:
        if member.locked:
            raise ArchiveRefused(*LOCKED)
        info = self._infos[member.number]
        if isinstance(info, tarfile.TarInfo) and not info.isreg():
            raise ArchiveRefused(*LINK)
        with self._lock, _unpacking(info):
            if isinstance(info, tarfile.TarInfo):
                with self._opened.extractfile(info) as stream:
                    return _at_most(stream, count)
            if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                with self._opened.open(info) as stream:
                    return _at_most(stream, count)
            return _unpacked(self._opened, info, count)

    def close(self) -> None:
        """Close the file."""
        self._opened.close()
        self._file.close()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_archive(
    path: str | os.PathLike, limits: Limits | None = None, stream: IO[bytes] | None = None
) -> Archive:
    """Open a zip or tar archive (also gzip, bzip2, xz) and judge it by its directory.

    Args:
        path: the file.
        limits: what it may hold.
        stream: the opened file, seekable, where it lies on no disk of this machine; the archive closes it.

    Raises:
        ArchiveRefused: no archive, damaged, too many entries, too large once unpacked, or entries that overlap.
        OSError: the file cannot be read.
    """
    path, limits = Path(path), limits or Limits()
    archive = Archive(path, limits, _file=stream or open(path, "rb"))  # noqa: SIM115 - closed with it
    try:
        head = archive._file.read(4)
        if head in ZIP_STARTS or path.suffix.lower() == ZIP_SUFFIX or zipfile.is_zipfile(archive._file):
            _list_zip(archive)
        else:
            _list_tar(archive)
    except BaseException:
        archive._file.close()
        raise
    return archive


LOCKED = ("it is locked with a password. Unpack it with the password and give the files.", "archive_locked")
LINK = (
    "it is a link, not a file. Pack the files themselves (tar --dereference --hard-dereference).",
    "member_link",
)
DAMAGED = ("the archive is damaged or cut short. Download or pack it again.", "archive_damaged")
DAMAGED_MEMBER = ("it is damaged within its archive. Download or pack the archive again.", "member_damaged")


def _refused_size(size: int, limit: int) -> ArchiveRefused:
    text = f"it unpacks to {size / 2**20:,.0f} MB; at most {limit / 2**20:,.0f} are read. Give the picture, smaller."
    return ArchiveRefused(text, "member_too_large", size=size, limit=limit)


def _check(entries: int, unpacked: int, limits: Limits) -> None:
    if entries > limits.entries:
        text = f"the archive has more than {limits.entries:,} entries. Pack the pictures in several archives."
        raise ArchiveRefused(text, "archive_entries", limit=limits.entries)
    if unpacked > limits.unpacked_bytes:
        text = (
            f"the archive unpacks to {unpacked / 2**30:.2f} GiB; the limit is {limits.unpacked_bytes / 2**30:.2f}"
            " GiB. Pack the pictures in several archives, or give the unpacked folder."
        )
        raise ArchiveRefused(text, "archive_too_large", size=unpacked, limit=limits.unpacked_bytes)


@contextmanager
def _unpacking(info: zipfile.ZipInfo | tarfile.TarInfo) -> Iterator[None]:
    """Turn any exception of a decoder on damaged data into a refusal; no decoder's list of exceptions is complete."""
    try:
        yield
    except ArchiveRefused:
        raise
    except NotImplementedError as error:
        number = getattr(info, "compress_type", 0)
        text = (
            f"it is packed by a method that is not read ({METHODS.get(number, f'number {number}')}). Pack it again"
            " as an ordinary zip (Deflate)."
        )
        raise ArchiveRefused(text, "archive_method", method=METHODS.get(number, str(number))) from error
    except (
        Exception
    ) as error:  # zlib.error, LZMAError, BadZipFile, EOFError, OSError, struct.error, MemoryError ...
        raise ArchiveRefused(*DAMAGED_MEMBER) from error


# --- zip ------------------------------------------------------------------------------------------


def _list_zip(archive: Archive) -> None:
    try:
        # What zipfile itself goes by, asked for before it builds an object per entry
        end = zipfile._EndRecData(archive._file)
        if end and end[zipfile._ECD_SIZE] > DIRECTORY_BYTES * archive.limits.entries:
            _check(archive.limits.entries + 1, 0, archive.limits)
        archive._opened = zipfile.ZipFile(archive._file)
    except ArchiveRefused:
        raise
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError, zlib.error) as error:
        raise ArchiveRefused(*DAMAGED) from error
    archive._infos = archive._opened.infolist()
    try:
        _check(len(archive._infos), sum(info.file_size for info in archive._infos), archive.limits)
        _check_overlap(archive._infos, archive._opened.start_dir)
    except ArchiveRefused:
        archive.close()
        raise
    members = []
    for number, info in enumerate(archive._infos):
        name = _zip_name(info)
        outside = _leads_outside(name) or stat.S_ISLNK(info.external_attr >> 16)
        stamp, locked = f"{info.file_size}:{info.CRC:08x}", bool(info.flag_bits & 0x1)
        if not name.endswith(("/", "\\")):
            members.append(Member(_posix(name), number, info.file_size, stamp, outside, locked))
    _keep(archive, members)


def _at_most(stream: IO[bytes], count: int) -> bytes:
    parts = []
    while count and (part := stream.read(min(CHUNK, count))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _unpacked(opened: zipfile.ZipFile, info: zipfile.ZipInfo, count: int) -> bytes:
    """Unpack the first bytes of a bzip2 or LZMA entry; zipfile itself would unpack such data without a bound.

    Source: PKWARE's APPNOTE 5.8.8 for what stands before LZMA data.
    """
    if info.compress_type not in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        raise NotImplementedError
    raw = copy(info)
    raw.compress_type, raw.file_size = zipfile.ZIP_STORED, info.compress_size
    del raw.CRC  # of the unpacked bytes
    with opened.open(raw) as stream:
        packed = stream.read()
    if info.compress_type == zipfile.ZIP_BZIP2:
        content = bz2.BZ2Decompressor().decompress(packed, count)
    else:
        _, size, kinds, dictionary = struct.unpack_from("<HHBI", packed)
        lzma1 = {"id": lzma.FILTER_LZMA1, "lc": kinds % 9, "lp": kinds // 9 % 5, "pb": kinds // 45}
        lzma1["dict_size"] = min(dictionary, max(info.file_size, 4096))  # nothing points further back
        content = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[lzma1]).decompress(
            packed[4 + size :], count
        )
    if count >= info.file_size and zlib.crc32(content) != info.CRC:
        raise zipfile.BadZipFile("CRC")
    return content


def _check_overlap(infos: list[zipfile.ZipInfo], end: int) -> None:
    """Refuse entries that share bytes: a small file could unpack to terabytes.

    Source: Fifield, 'A better zip bomb', WOOT 2019.
    """
    places = sorted((info.header_offset, info.compress_size) for info in infos)
    for (start, size), (following, _) in pairwise([*places, (end, 0)]):
        if start + 30 + size > following:  # 30 bytes is the least that a local header takes
            raise ArchiveRefused(
                "entries of the archive lie over one another, as in a zip bomb. Pack the pictures again.",
                "archive_overlap",
            )


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Decode a name as its author meant it: zipfile reads names without the UTF-8 flag as code page 437."""
    name = info.orig_filename.partition("\0")[0]
    if info.flag_bits & 0x800:
        return name
    try:
        raw = name.encode("cp437")
    except UnicodeEncodeError:
        return name
    extra = info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if (
            kind == 0x7075
            and 5 < size <= len(extra) - 4
            and struct.unpack_from("<I", extra, 5)[0] == zlib.crc32(raw)
        ):
            raw = extra[9 : 4 + size]  # Info-ZIP's Unicode path
        extra = extra[4 + size :]
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return name


# --- tar ------------------------------------------------------------------------------------------


def _unpacked_start(stream: IO[bytes]) -> bytes:
    """Read the first 512 bytes, a tar's first block, unpacked if compressed; fewer if the file is short or damaged."""
    stream.seek(0)
    head = stream.read(512)
    stream.seek(0)
    for start, opener in UNPACKERS.items():
        if head.startswith(start):
            try:
                return opener(stream).read(512)
            except (OSError, EOFError, zlib.error, lzma.LZMAError):
                return b""
    return head


class _Bounded:
    """A stream that is read in pieces of bounded size up to a bounded place: tar headers may ask for anything."""

    def __init__(self, stream: IO[bytes], limits: Limits) -> None:
        self.stream, self.limits = stream, limits

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= max(self.limits.member_bytes, CHUNK):
            raise _refused_size(count, self.limits.member_bytes)
        return self.stream.read(count)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET:  # headers take room, too: at most a few blocks each
            _check(0, place - 4096 * (self.limits.entries + 1), self.limits)
        return self.stream.seek(place, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def close(self) -> None:
        self.stream.close()


def _list_tar(archive: Archive) -> None:
    archive._file.seek(0)
    head = archive._file.read(6)
    archive._file.seek(0)
    opener = next((opener for start, opener in UNPACKERS.items() if head.startswith(start)), None)
    stream = _Bounded(opener(archive._file, "rb") if opener else archive._file, archive.limits)
    members, unpacked = [], 0
    try:
        archive._opened = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115
        for number, info in enumerate(archive._opened):
            unpacked += info.size
            _check(number + 1, unpacked, archive.limits)
            archive._infos.append(info)
            link = info.issym() or info.islnk()
            if info.isreg() or link:
                stamp = f"{info.size}:{info.mtime:.0f}:{info.chksum}"
                outside = link or _leads_outside(info.name)
                members.append(Member(_posix(info.name), number, info.size, stamp, outside))
    except ArchiveRefused:
        stream.close()
        raise
    except (
        tarfile.TarError,
        EOFError,
        OSError,
        ValueError,
        zlib.error,
        lzma.LZMAError,
        RecursionError,
    ) as error:
        stream.close()
        raise ArchiveRefused(*DAMAGED) from error
    _keep(archive, members)


# --- names ----------------------------------------------------------------------------------------


def _leads_outside(name: str) -> bool:
    absolute = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name)
    return bool(absolute) or ".." in re.split(r"[/\\]", name)


def _posix(name: str) -> str:
    """Write a name with slashes: 'CT\\COVID\\./1.png' -> 'CT/COVID/1.png'; empty for a name such as '.'."""
    return "/".join(part for part in re.split(r"[/\\]", name) if part not in ("", "."))


def _keep(archive: Archive, members: list[Member]) -> None:
    """Set an archive's members without files that systems add and entries without a name; count those left out."""
    kept = []
    for member in members:
        *folders, name = PurePosixPath(member.name).parts or ("",)
        if name and not is_rubbish(name) and not any(is_rubbish(part, is_folder=True) for part in folders):
            kept.append(member)
    archive.members, archive.rubbish = tuple(kept), len(members) - len(kept)
