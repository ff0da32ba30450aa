"""Everything under some paths, files and what lies in archives, as items whose contents are read when asked for."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .archives import Archive, ArchiveRefused, Member, is_archive, open_archive
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


class Packed(NamedTuple):
    """A picture within an open archive; called, it is unpacked."""

    archive: Archive
    member: Member

    def __call__(self) -> bytes:
        try:
            return self.archive.read(self.member)
        except ArchiveRefused as refusal:
            raise ImageRefused(str(refusal.reason), refusal.reason.code, **refusal.reason.values) from refusal


class Refusal(NamedTuple):
    """What never becomes a picture; called, it says why."""

    reason: Reason

    def __call__(self) -> None:
        raise ImageRefused(str(self.reason), self.reason.code, **self.reason.values)


def items(paths: Sequence[str | os.PathLike], listed: Listed, ours: Sequence[Path] = ()) -> Iterator[Item]:
    """Yield everything under the paths, in the order of names; archives are opened when they are reached.

    A path that does not exist gets its item, too: judging it will say so.

    Args:
        paths: files and folders.
        listed: where the number of items and what was passed over are counted.
        ours: files and folders that hold no pictures but what this run writes.
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
            yield Item(one_line(shown(locked)), Refusal(LOCKED_FOLDER))
        for file in walked.files:
            listed.expected -= 1
            yield from _of_file(file, listed, ours, met)


def _of_file(file: Path, listed: Listed, ours: Sequence[Path], met: set[str] | None) -> Iterator[Item]:
    real = os.path.realpath(file)
    if (met is not None and real in met) or any(Path(real).is_relative_to(place) for place in ours):
        return
    if met is not None:
        met.add(real)
    name = one_line(shown(file))
    listed.expected += 1
    try:
        archive = open_archive(file) if is_archive(file) else None
    except ArchiveRefused as refusal:
        yield Item(name, Refusal(refusal.reason))
    except OSError:
        yield Item(name, file)  # judging it will say why it cannot be read
    else:
        yield from [Item(name, file)] if archive is None else of_archive(name, archive, listed)


def of_archive(name: str, archive: Archive, listed: Listed) -> Iterator[Item]:
    """Yield the members of an open archive, which was counted as one; it closes when its last picture is done."""
    listed.rubbish += archive.rubbish
    listed.expected += len(archive.members) - 1
    for member in archive.members:
        yield Item(f"{name}/{one_line(member.name)}", Packed(archive, member), member.number)
