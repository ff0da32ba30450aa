"""List the files of a folder: through links, each folder once, without what systems leave behind."""

import os
import re
import stat
from collections import deque
from dataclasses import dataclass
from pathlib import Path

RUBBISH_FILES = frozenset({"dicomdir", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
"""Files that systems and viewers add, in lower case; a DICOMDIR is a table of contents, not a picture."""

RUBBISH_FOLDERS = frozenset({"__macosx", "$recycle.bin", "system volume information", "lost+found", "@eadir"})
"""Folders that systems add, in lower case; hidden ones (.Trash-1000, .ipynb_checkpoints, .git) are known by
their dot."""


@dataclass(frozen=True, slots=True)
class Walked:
    """What lies below a folder; paths begin with the folder as it was given.

    Attributes:
        files: in the order of their names, folder by folder; links that lead nowhere and pipes among them, so
            that whoever reads them says why they cannot be.
        locked: folders that cannot be listed.
        again: links to folders that are listed already, and links in circles; they are not followed.
        rubbish: files and folders passed over by their names.
    """

    files: tuple[Path, ...]
    locked: tuple[Path, ...]
    again: tuple[Path, ...]
    rubbish: int


def walk(folder: str | os.PathLike) -> Walked:
    """List a folder at any depth. Real folders come before links to them, so that each is listed once.

    Raises:
        OSError: `folder` itself is not there.
    """
    folder = Path(folder)
    files, locked, again, rubbish = [], [], [], 0
    met = {_identity(folder.stat())}
    inside, links = deque([folder]), deque()
    while inside or links:
        if not inside:
            link, identity = links.popleft()
            if identity in met:
                again.append(link)
                continue
            met.add(identity)
            inside.append(link)
        place = inside.popleft()
        try:
            entries = list(os.scandir(place))
        except OSError:
            locked.append(place)
            continue
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = place / entry.name
            info = _stat(path)
            is_folder = info is not None and stat.S_ISDIR(info.st_mode)
            if is_rubbish(entry.name, is_folder):
                rubbish += 1
            elif not is_folder:
                files.append(path)
            elif entry.is_symlink():
                links.append((path, _identity(info)))
            elif _identity(info) in met:  # a folder that is mounted twice
                again.append(path)
            else:
                met.add(_identity(info))
                inside.append(path)
    return Walked(
        *(tuple(sorted(found, key=lambda path: path.parts)) for found in (files, locked, again)), rubbish
    )


def is_rubbish(name: str, is_folder: bool = False) -> bool:
    """Say whether systems, viewers or editors leave files or folders of that name; hidden ones count."""
    hidden = name.startswith(".") and name != ".."
    return hidden or name.lower() in (RUBBISH_FOLDERS if is_folder else RUBBISH_FILES)


def shown(path: str | os.PathLike) -> str:
    """Write a path as text, also where its bytes are no UTF-8: b"caf\\xe9" -> r"caf\\xe9"."""
    return os.fsencode(Path(path).as_posix()).decode("utf-8", "backslashreplace")


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key by which slice 9 comes before slice 10.

    Only the digits 0 to 9 count as numbers, and they are compared as text of equal length: int() fails at circled
    digits and at more than 4,300 of them (natsort 8.4 does on the latter).
    """
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(0, len(part.lstrip("0")), part.lstrip("0")) if part[0] in "0123456789" else (1, 0, part)
            for part in parts if part]  # fmt: skip


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def _stat(path: Path) -> os.stat_result | None:
    """Read the status of a path; None for a link that leads nowhere or in a circle."""
    try:
        return path.stat()
    except OSError:
        return None
