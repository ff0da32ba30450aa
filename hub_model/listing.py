"""Everything under some paths, files and what lies in archives, as items whose contents are read when asked for."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .archives import ArchiveRefused, is_archive, open_archive
from .folders import shown, walk
from .grey import ImageRefused
from .refused import Reason
from .rows import one_line

LOCKED_FOLDER = Reason("The folder cannot be listed. Check that you may read it.", "locked_folder")


@dataclass(frozen=True)
class Item:
    """A picture to judge.

    Attributes:
        name: what its row is called: the path as it was given, with '/' before the part within an archive.
        source: what `Screener.screen_many` takes.
        number: its place in the archive; two pictures there may have one name.
    """

    name: str
    source: Any
    number: int = 0


@dataclass
class Listed:
    """What a listing came across.

    Attributes:
        expected: pictures known so far, judged or not.
        rubbish: files that systems leave, passed over.
        again: links to folders that are listed already.
    """

    expected: int = 0
    rubbish: int = 0
    again: int = 0


def items(paths: Sequence[str | os.PathLike], listed: Listed, ours: Sequence[Path] = ()) -> Iterator[Item]:
    """Everything under the paths, in the order of names; archives are opened as they come.

    A path that does not exist gets its item, too: judging it will say so.

    Args:
        paths: files and folders.
        listed: where the number of items and what was passed over are counted.
        ours: files that are not pictures but this run's own.
    """
    met: set[str] | None = (
        set() if len(paths) > 1 else None
    )  # what lies under two of the paths is judged once
    for path in map(Path, paths):
        if not path.is_dir():
            yield from _of_file(path, listed, ours, met)
            continue
        walked = walk(path)
        listed.rubbish += walked.rubbish
        listed.again += len(walked.again)
        listed.expected += len(walked.files) + len(walked.locked)
        for locked in walked.locked:
            yield Item(one_line(shown(locked)), partial(_refuse, LOCKED_FOLDER))
        for file in walked.files:
            listed.expected -= 1
            yield from _of_file(file, listed, ours, met)


def _of_file(file: Path, listed: Listed, ours: Sequence[Path], met: set[str] | None) -> Iterator[Item]:
    real = os.path.realpath(file)
    if (met is not None and real in met) or (ours and Path(real) in ours):
        return
    if met is not None:
        met.add(real)
    name = one_line(shown(file))
    listed.expected += 1
    try:
        if not is_archive(file):
            yield Item(name, file)
            return
        archive = open_archive(file)
    except ArchiveRefused as refusal:
        yield Item(name, partial(_refuse, refusal.reason))
        return
    except OSError:
        yield Item(name, file)  # judging it will say why it cannot be read
        return
    listed.rubbish += archive.rubbish
    listed.expected += len(archive.members) - 1
    for member in archive.members:  # the archive closes when the last of its pictures is done
        yield Item(f"{name}/{one_line(member.name)}", partial(_unpacked, archive, member), member.number)


def _unpacked(archive: Any, member: Any) -> bytes:
    try:
        return archive.read(member)
    except ArchiveRefused as refusal:
        raise ImageRefused(str(refusal.reason), refusal.reason.code, **refusal.reason.values) from refusal


def _refuse(reason: Reason) -> None:
    raise ImageRefused(str(reason), reason.code, **reason.values)
