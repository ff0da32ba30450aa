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
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from .refused import Refused

PARTIAL = re.compile(r"\..*partial-(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[^.]*(?P<old>\.old)?")
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
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new empty folder; when the block ends it takes the place of `path` and of all that lay there.

    If the block raises, `path` stays as it was and nothing is left behind. On Linux the old and the new folder change
    places in one step. Elsewhere there is a moment without either: after a kill in that moment, the old one is put
    back the next time that this folder is written.

    Raises:
        OSError: the place cannot be written, or `path` is a file.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(path.parent, f"{path.name}.") as new:
        yield new
        new.chmod(0o755)
        if not path.exists():
            new.replace(path)
        elif not _exchanged(new, path):
            old = new.with_name(f"{new.name}.old")
            path.replace(old)
            new.replace(path)
            shutil.rmtree(old)


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
def held(folder: Path) -> Iterator[None]:
    """Lock a folder for this process alone; no file is written for it, and it is free when the process ends.

    Raises:
        InUse: another process holds it.
        OSError: the folder cannot be opened.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nothing warns of two processes
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InUse(f"Another process works in {folder}. Wait for it, or name another folder.") from None
    finally:
        os.close(handle)


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
