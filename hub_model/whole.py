"""Write a file or a folder whole or not at all: it is made under another name beside its place, then renamed.

A process that was killed leaves its unfinished work behind; the next one that writes to the same place removes it.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from .refused import Refused

try:
    import fcntl
except ImportError:  # Windows: nothing warns of two processes
    fcntl = None

PARTIAL = re.compile(r"\..*partial-(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[^.]*(?P<old>\.old)?")
PATIENCE = 10.0
"""Seconds that a change of a folder waits for another one to end."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of disks over a network
HERE, EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2(2)


class InUse(Refused):
    """A folder that another process writes to."""


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a path to write to; what lies there when the block ends replaces `path` in one step.

    If the block raises, `path` stays as it was and nothing is left behind. The new name keeps the suffix, so that
    libraries which choose a format by it choose the same. Folders above `path` are made.

    Raises:
        OSError: the place cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(path.parent, f"{path.name}.") as folder:
        new = folder / path.name
        yield new
        new.chmod(0o644)  # some writers, safetensors among them, leave files that only their owner can read
        os.replace(new, path)


@contextmanager
def whole_files(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder; when the block ends, each file in it replaces its namesake in `folder`, by order of names.

    For files that belong together in a folder that others write to as well: all are made before the first is put in
    place, and no work lies between them. If the block raises, `folder` stays as it was.

    Raises:
        OSError: the place cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with partial_folder(folder) as new:
        yield new
        for file in sorted(new.iterdir()):
            file.chmod(0o644)
            os.replace(file, folder / file.name)


@contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new empty folder; when the block ends it takes the place of `path` and of all that lay there.

    If the block raises, `path` stays as it was and nothing is left behind. On Linux the old and the new folder change
    places in one step. Elsewhere there is a moment without either: after a kill in that moment, the old one is put
    back the next time that this folder is written. Where the folder itself cannot be exchanged, because a disk is
    mounted there or the folder above is closed, what lies in it is, one file or folder after the other.

    Raises:
        OSError: the place cannot be written, or `path` is a file.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    inside = path.is_dir() and (os.path.ismount(path) or not os.access(path.parent, os.W_OK))
    with partial_folder(path if inside else path.parent, f"{path.name}.") as new:
        yield new
        if inside:
            _move_in(new, path)
        else:
            _put_in_place(new, path)


def _put_in_place(new: Path, path: Path) -> None:
    """Exchange a folder for another beside it."""
    new.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o755)
    if not path.exists():
        new.replace(path)
    elif not _exchanged(new, path):
        old = new.with_name(f"{new.name}.old")
        try:
            path.replace(old)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EXDEV):
                raise
            with partial_folder(path) as inside:  # a folder of this very disk is mounted there
                shutil.copytree(new, inside, symlinks=True, dirs_exist_ok=True)
                _move_in(inside, path)
            return
        new.replace(path)
        shutil.rmtree(old)


def _move_in(new: Path, path: Path) -> None:
    """Exchange all that lies in `path` for what lies in `new`, a folder in it."""
    names = set()
    for entry in sorted(new.iterdir()):
        place = path / entry.name
        names.add(entry.name)
        if place.is_dir() and not place.is_symlink():
            if _exchanged(entry, place):
                continue
            shutil.rmtree(place)
        elif entry.is_dir():
            place.unlink(missing_ok=True)
        os.replace(entry, place)
    for rest in list(path.iterdir()):
        if rest.name not in names and not PARTIAL.fullmatch(rest.name):
            shutil.rmtree(rest) if rest.is_dir() and not rest.is_symlink() else rest.unlink()


@contextmanager
def changed_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a copy of a folder; when the block ends it takes the place of the folder in one step, see `whole_folder`.

    So a reader finds either what was there before or every change. The files of the copy are links to the old ones
    where the disk knows such: put new ones in their place, as `whole_file` does, and never write into them. A folder
    that is not there begins empty. One process changes a folder at a time; a second one waits for `PATIENCE` seconds.

    Raises:
        InUse: another process holds the folder.
        OSError: the place cannot be written.
    """
    path = Path(os.path.realpath(path))
    with held(path, PATIENCE) if path.is_dir() else contextlib.nullcontext(), whole_folder(path) as new:
        if path.is_dir():
            copy_linked(path, new)
        yield new


def copy_linked(old: Path, new: Path, without: Sequence[str] = ()) -> None:
    """Fill the folder `new` with links to the files of `old`, or copies where the disk knows no links.

    Args:
        old: its unfinished work of other processes is left out.
        new: an empty folder.
        without: names of files and folders that are left out.
    """

    def left_out(_: str, names: list[str]) -> list[str]:
        return [name for name in names if name in without or PARTIAL.fullmatch(name)]

    shutil.copytree(old, new, symlinks=True, ignore=left_out, copy_function=_link, dirs_exist_ok=True)


def _link(old: str, new: str) -> None:
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:  # another disk, or one without links
        shutil.copy2(old, new)


@contextmanager
def partial_folder(parent: Path, name: str = "") -> Iterator[Path]:
    """Yield a folder for unfinished work, ``.NAMEpartial-...`` in `parent`; it is removed when the block ends.

    What dead processes left there is removed first.

    Raises:
        OSError: the place cannot be written.
    """
    _tidy(parent.resolve())
    new = Path(tempfile.mkdtemp(prefix=f".{name}partial-{_host()}-{os.getpid()}-", dir=parent))
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def held(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Lock a folder for this process alone; no file is written for it, and it is free when the process ends.

    Args:
        folder: it may be exchanged for another meanwhile, as `whole_folder` does: then that one is locked.
        patience: seconds to wait for another process.

    Raises:
        InUse: another process holds it.
        OSError: the folder cannot be opened.
    """
    if fcntl is None:
        yield
        return
    until = time.monotonic() + patience
    while (handle := _locked(folder)) is None:
        if time.monotonic() >= until:
            raise InUse(f"Another process works in {folder}. Wait for it, or name another folder.")
        time.sleep(0.1)
    try:
        yield
    finally:
        os.close(handle)


def _locked(folder: Path) -> int | None:
    """Open and lock a folder; None where another process holds it, or has exchanged it in between."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if os.path.samestat(os.fstat(handle), os.stat(folder)):
            return handle
    except BlockingIOError:
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


@cache  # once a process for each folder: it may hold a million files
def _tidy(parent: Path) -> None:
    """Remove the unfinished work of dead processes of this machine, and put an old folder back where it is missing."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(parent)):
            found = PARTIAL.fullmatch(entry.name)
            if not found or found["host"] != _host() or _lives(int(found["process"])):
                continue
            place = parent / entry.name[1:].partition(".partial-")[0]
            if found["old"] and not place.exists():
                os.replace(entry.path, place)
            else:
                shutil.rmtree(entry.path, ignore_errors=True)


def _exchanged(one: Path, two: Path) -> bool:
    """Exchange two folders in one step; return False where the system or the disk cannot do it."""
    library = None if sys.platform == "win32" else ctypes.CDLL(None)
    if not hasattr(library, "renameat2"):
        return False
    return library.renameat2(HERE, os.fsencode(one), HERE, os.fsencode(two), EXCHANGE) == 0


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True


@cache
def _host() -> str:
    """Return a short name that tells this machine from others that share its disks."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
