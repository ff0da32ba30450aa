"""From what a user uploads to the pictures in it: files, zips, frames of a DICOM, slices in order.

Nothing is unpacked to disk, and one picture is read at a time.
"""

import contextlib
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hub_model.images import ImageRefused, frame_count, slice_place
from hub_model.refused import Refused

MAX_PICTURES = 500
"""In one batch or series; a longer list keeps others waiting too long."""
MAX_UNPACKED = 1000
"""Megabytes that a zip may claim to unpack to. zipfile never reads more from a member than it claims."""


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
        member: its name in the zip, where ``path`` is one.
        frame: number of the frame, from 0, in a file with several.
    """

    name: str
    path: Path
    member: str | None = None
    frame: int | None = None

    def source(self) -> Path | bytes:
        """What `read_image` takes.

        Raises:
            ImageRefused: the upload is gone, or the zip is damaged at this place.
        """
        if not self.path.is_file():
            raise ImageRefused(
                f"{self.name}: the upload has been deleted from the server. Add the file again.", "missing"
            )
        if self.member is None:
            return self.path
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.member)
        except (OSError, RuntimeError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
            raise ImageRefused(
                f"{self.name}: cannot be unpacked (damaged, or locked with a password). Make the zip again.",
                "locked",
            ) from error


def pictures(paths: Iterable[Path]) -> list[Picture]:
    """Every picture in the uploaded files, zips opened (a zip in a zip is not), in the order of their names.

    Raises:
        UploadRefused: nothing chosen, too many, or a zip that is broken, empty or unpacks to too much.
    """
    found = [picture for path in paths for picture in _in_file(path)]
    if not found:
        raise UploadRefused("nothing_chosen")
    _limit(len(found))
    return sorted(found, key=lambda picture: _natural(picture.name))


def slices(paths: Iterable[Path]) -> list[Picture]:
    """As `pictures`, but slices that say where they lie come in that order, from the head down, and a file
    with several frames gives one picture a frame.
    """
    looked = [(picture, *_look(picture)) for picture in pictures(paths)]
    looked.sort(key=lambda one: (one[2] is None, one[2] or ()))  # the others keep the order of their names
    found = [frame for picture, count, _ in looked for frame in _frames(picture, count)]
    _limit(len(found))
    return found


def keep(used: Iterable[Picture]) -> None:
    """Put off the deletion of uploads that are still being worked on; it counts from a file's last change."""
    for path in {picture.path for picture in used}:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)


def _limit(count: int) -> None:
    if count > MAX_PICTURES:
        raise UploadRefused("too_many", n=count, limit=MAX_PICTURES)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key by which slice 9 comes before slice 10."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", name.lower())
        if part
    ]


def _in_file(path: Path) -> Iterator[Picture]:
    if path.suffix.lower() != ".zip":
        if not _hidden(path.name):
            yield Picture(path.name, path)
        return
    members = _members(path)
    _limit(len(members))
    for member in members:
        yield Picture(member, path, member=member)


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir() and not _hidden(info.filename)]
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise UploadRefused("zip_broken", name=path.name) from error
    if sum(info.file_size for info in infos) > MAX_UNPACKED * 2**20:
        raise UploadRefused("zip_too_large", name=path.name, limit=MAX_UNPACKED)
    if not infos:
        raise UploadRefused("zip_empty", name=path.name)
    return [info.filename for info in infos]


def _hidden(member: str) -> bool:
    """Whether systems add such a file to a zip or folder: ``__MACOSX/``, ``.DS_Store``, ``DICOMDIR``."""
    parts = Path(member).parts
    return any(part.startswith((".", "__MACOSX")) for part in parts) or parts[-1] in {"Thumbs.db", "DICOMDIR"}


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
        yield Picture(picture.name, picture.path, picture.member, frame)
