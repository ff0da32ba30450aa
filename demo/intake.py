"""From what a user uploads to the pictures in it: files, archives, frames of a DICOM, slices in order.

Nothing is unpacked to disk, an archive is opened once, and one picture is read at a time.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hub_model.archives import Archive, ArchiveRefused, Limits, Member, is_archive, open_archive
from hub_model.folders import is_rubbish, natural
from hub_model.grey import ImageRefused
from hub_model.images import frame_count, slice_place
from hub_model.refused import Refused

MAX_PICTURES = 500
"""In one batch or series; a longer list keeps others waiting too long."""
MAX_ENTRIES = 4000
"""In all archives of one upload, with the folders and the files that systems add."""
MAX_UNPACKED = 1000
"""Megabytes that all archives of one upload may say they unpack to; no more is ever read."""
SAID = {"archive_entries": "too_many_entries", "archive_too_large": "zip_too_large"}
"""Texts for what is wrong with an archive as a whole; ``zip_broken`` for all else."""


class UploadRefused(Refused):
    """Files that cannot be taken; ``key`` and ``values`` name the text that says why."""

    def __init__(self, key: str, **values: object) -> None:
        super().__init__(key)
        self.key, self.values = key, values


@dataclass(frozen=True)
class Picture:
    """One picture of an upload.

    Attributes:
        name: what to call it, from the file's name.
        path: the uploaded file.
        archive: open as long as a picture of it is at hand, where ``path`` is one.
        member: the entry of the archive.
        frame: number of the frame, from 0, in a file with several.
    """

    name: str
    path: Path
    archive: Archive | None = None
    member: Member | None = None
    frame: int | None = None

    def source(self) -> Path | bytes:
        """What `read_image` takes.

        Raises:
            ImageRefused: the upload is gone, or the archive is damaged, locked or packed oddly at this place.
        """
        if not self.path.is_file():
            raise ImageRefused(
                f"{self.name}: the upload has been deleted from the server. Add the file again.", "missing"
            )
        if self.archive is None:
            return self.path
        try:
            return self.archive.read(self.member)
        except ArchiveRefused as refusal:
            reason = refusal.reason
            raise ImageRefused(f"{self.name}: {reason}", reason.code, **reason.values) from None


def pictures(paths: Iterable[Path]) -> list[Picture]:
    """Every picture in the uploaded files, archives opened (one in another is not), in the order of their names.

    Raises:
        UploadRefused: nothing chosen, too many, or an archive that is broken, empty or unpacks to too much.
    """
    found, room = [], _Room()
    for path in paths:
        if is_archive(path):
            found += room.listed(path)
        elif not is_rubbish(path.name):
            found.append(Picture(path.name, path))
        _limit(len(found))
    if not found:
        raise UploadRefused("nothing_chosen")
    return sorted(found, key=lambda picture: natural(picture.name))


def slices(paths: Iterable[Path]) -> list[Picture]:
    """As `pictures`, but slices that say where they lie come in that order, from the head down, and a file
    with several frames gives one picture a frame.
    """
    looked = [(picture, *_look(picture)) for picture in pictures(paths)]
    looked.sort(key=lambda one: (one[2] is None, one[2] or ()))  # the others keep the order of their names
    _limit(
        sum(count for _, count, _ in looked)
    )  # before a list is made: a file may claim two thousand million
    return [frame for picture, count, _ in looked for frame in _frames(picture, count)]


def keep(used: Iterable[Picture]) -> None:
    """Put off the deletion of uploads that are still being worked on; it counts from a file's last change."""
    for path in {picture.path for picture in used}:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)


class _Room:
    """What the archives of one upload may still hold, all together."""

    def __init__(self) -> None:
        self.entries, self.unpacked = MAX_ENTRIES, MAX_UNPACKED * 2**20

    def listed(self, path: Path) -> list[Picture]:
        limits = Limits(entries=self.entries, unpacked_bytes=self.unpacked)
        try:
            archive = open_archive(path, limits)
        except ArchiveRefused as refusal:
            key = SAID.get(refusal.reason.code, "zip_broken")
            limit = MAX_ENTRIES if key == "too_many_entries" else MAX_UNPACKED
            raise UploadRefused(key, name=path.name, limit=limit) from None
        except OSError:
            raise UploadRefused("zip_broken", name=path.name) from None
        if not archive.members:
            raise UploadRefused("zip_empty", name=path.name)
        self.entries = max(0, self.entries - len(archive.members) - archive.rubbish)
        self.unpacked = max(0, self.unpacked - sum(member.size for member in archive.members))
        return [Picture(member.name, path, archive, member) for member in archive.members]


def _limit(count: int) -> None:
    if count > MAX_PICTURES:
        raise UploadRefused("too_many", n=count, limit=MAX_PICTURES)


def _look(picture: Picture) -> tuple[int, tuple | None]:
    """Number of frames, and the place in its series where the file says it."""
    try:
        source = picture.source()
        return frame_count(source), slice_place(source)
    except ImageRefused:
        return 1, None  # screening it will say why


def _frames(picture: Picture, count: int) -> Iterator[Picture]:
    if count == 1:
        yield picture
        return
    for frame in range(count):
        yield Picture(picture.name, picture.path, picture.archive, picture.member, frame)
