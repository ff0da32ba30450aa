"""From what a user uploads to the pictures in it: files, archives, series of slices in order.

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
from hub_model.listing import Item
from hub_model.refused import Refused
from hub_model.volumes import Unusable, Volume, read_volumes

MAX_PICTURES = 500
"""In one batch; a longer list keeps others waiting too long."""
MAX_SLICES = 1000
"""In the series of one upload."""
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
        """Return the path or the bytes that `read_image` takes.

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


def pictures(paths: Iterable[Path], limit: int = MAX_PICTURES) -> list[Picture]:
    """List every picture in the uploaded files, in the order of their names; archives are opened, nested ones not.

    Raises:
        UploadRefused: nothing chosen, too many, or an archive that is broken, empty or unpacks to too much.
    """
    found, room = [], _Room()
    for path in paths:
        if is_archive(path):
            found += room.listed(path)
        elif not is_rubbish(path.name):
            found.append(Picture(path.name, path))
        _limit(len(found), limit)
    if not found:
        raise UploadRefused("nothing_chosen")
    return sorted(found, key=lambda picture: natural(picture.name))


def volumes(todo: list[Picture]) -> Iterator[Volume | Unusable]:
    """Yield the CT series among pictures: volume files, DICOM slices in any folder, frames; each is opened in turn.

    Raises:
        UploadRefused: more slices than one answer may take.
    """
    left = MAX_SLICES
    for one in read_volumes([Item(picture.name, picture.source, n) for n, picture in enumerate(todo)]):
        if isinstance(one, Volume):
            if len(one) > left:
                raise UploadRefused("too_many", n=MAX_SLICES - left + len(one), limit=MAX_SLICES)
            left -= len(one)
        yield one


def keep(used: Iterable[Picture]) -> None:
    """Delay the deletion of uploads that are still in use; it counts from a file's last change."""
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


def _limit(count: int, limit: int) -> None:
    if count > limit:
        raise UploadRefused("too_many", n=count, limit=limit)
