"""CT volumes: DICOM series, multi-frame files, NIfTI, NRRD and MetaImage as one stack of axial slices.

>>> volume = read_volume("folder of a series")
>>> volume.slices[len(volume) // 2]  # read now, as the grey picture that a model takes

Whatever order and direction the file has, slices come from the head down and each is shown as a radiologist sees it:
the patient's right at the left, the front at the top. What a folder holds besides is told, not mixed in.
docs/volumes.md lists every rule.
"""

import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from . import dicom
from .folders import natural
from .foreign_formats import HEAD
from .grey import ImageRefused
from .grids import MAX_TILT, MAX_VOLUME, Axial, no_orientation, oblique, read_grid, volume_format
from .images import frame_count, is_dicom, opened, read_image
from .listing import Item, Listed, items
from .refused import Reason

MAX_SLICES = 2_000  # of one volume; a whole body in slices of 1 mm
SAME_PLACE = 0.01  # mm; slices that lie nearer to each other are one place twice
GAP = 1.5  # times the usual distance between slices; from there on slices are missing
PARALLEL = 0.02  # slices whose directions differ by less (direction cosines) are of one stack
PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8", b"BM", b"RIFF")
"""How ordinary pictures begin: they hold no numbers of a volume."""
STANDARD = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # a row to the left, a column to the back


class Slices(Sequence):
    """Pictures that are read when asked for.

    Args:
        readers: one function a slice, without arguments.
    """

    def __init__(self, readers: Sequence[Callable[[], Image.Image]]) -> None:
        self._readers = tuple(readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __repr__(self) -> str:
        return f"<{len(self)} slices>"

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Slices(self._readers[place])
        return self._readers[place]()

    @property
    def readers(self) -> tuple[Callable[[], Image.Image], ...]:
        """The functions, for `Screener.screen_many`, which reads as it goes."""
        return self._readers


@dataclass(frozen=True)
class Volume:
    """An axial stack of slices, from the head down.

    Attributes:
        name: the file's path, or that of the folder of a series.
        kind: "DICOM series", "multi-frame DICOM", "NIfTI", "NRRD", "MetaImage" or "pictures".
        slices: 8-bit grey pictures (mode "L", pixels square), each read when asked for; a slice that cannot be read
            raises `ImageRefused`.
        spacing: mm between rows, between columns and between slices as the file has them; None where it says none.
        positions: of each slice, mm along the body, larger towards the head; None where the file says none.
        orientation: where rows, columns and slices of the file lead: "LPS" is to the left, to the back, to the head.
            Empty where the file says none.
        notes: what is missing or was left out, with codes: gaps, duplicates, mixed, left_out, no_positions, tilted.
        files: names of the files that it was made of.
    """

    name: str
    kind: str
    slices: Slices
    spacing: tuple[float, float, float | None] | None = None
    positions: tuple[float, ...] | None = None
    orientation: str = ""
    notes: tuple[Reason, ...] = ()
    files: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.slices)


class Unusable(NamedTuple):
    """A file or a series that gives no volume, and why."""

    name: str
    reason: Reason
    files: tuple[str, ...] = ()


def read_volume(source: Any, *, series: int | None = None) -> Volume:
    """Open the CT volume in a file, a folder or an archive; its slices are read when asked for.

    Args:
        source: path of a NIfTI, NRRD, MetaImage or multi-frame DICOM file, of a folder or an archive of slices; a
            list of such paths; or the bytes of a file.
        series: which of several, from 0, as `read_volumes` lists those that can be read.

    Raises:
        ImageRefused: there is none, several and none is named, or it cannot be used; ``reason.code`` says why.
    """
    wanted, count, refused = None, 0, []
    for one in read_volumes(source):  # one at a time is open, however many there are
        if isinstance(one, Unusable):
            refused.append(one)
            continue
        wanted = one if count == (series or 0) else wanted
        count += 1
    if not count and not refused:
        text = "there is no picture in it. Give the slices of a CT, or a volume file."
        raise ImageRefused(text, "no_series")
    if not count:
        code = Counter(one.reason.code for one in refused).most_common(1)[0][0]
        one = next(one for one in refused if one.reason.code == code)
        raise ImageRefused(f"{one.name}: {one.reason}", code, **one.reason.values)
    if count > 1 and series is None:
        raise ImageRefused(
            f"it holds {count} series. Say which (series=0 to {count - 1}), or judge each (read_volumes).",
            "several_series",
            series=count,
        )
    if wanted is None:
        raise ImageRefused(
            f"it has no series {series}: there are {count}, counted from 0.", "no_such_series", series=count
        )
    return wanted


def read_volumes(source: Any) -> Iterator[Volume | Unusable]:
    """Open every volume in what `read_volume` takes: one that cannot be used is reported, and the others go on.

    A volume file comes when it is met, DICOM series in the end, as their slices may lie anywhere. Ordinary pictures of
    one folder, and frames of one file, are a volume without positions, in the order of their names.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        listed: Iterable[Item] = [Item("volume", bytes(source))]
    else:
        paths = [source] if isinstance(source, (str, os.PathLike)) else list(source)
        listed = paths if paths and isinstance(paths[0], Item) else items(paths, Listed())
    pictures: dict[str, list[Item]] = defaultdict(list)
    for one in sorted_out(listed):
        if isinstance(one, Item):
            pictures[str(PurePosixPath(one.name).parent)].append(one)
        else:
            yield one
    for folder, found in pictures.items():
        yield from _of_pictures(folder, found)


def sorted_out(listed: Iterable[Item], least: int = 1) -> Iterator[Volume | Unusable | Item]:
    """Separate volumes from everything else, which is given back as it came.

    Args:
        listed: files and members of archives.
        least: slices that a DICOM series has at least; the files of a smaller one are given back.
    """
    series: dict[tuple[str, str], list[_Placed]] = defaultdict(list)
    held: dict[str, tuple[Item, str | None]] = {}  # volume files, and what may hold the numbers of one
    for item in listed:
        try:
            head = _head(item)
        except (ImageRefused, OSError):
            yield item  # reading it again will say why
            continue
        kind = volume_format(head)
        if is_dicom(io.BytesIO(head)):
            yield from _met(item, series, least)
        elif kind is None and (head.startswith(PICTURES) or item.name in held):
            yield item
        else:
            held[item.name] = item, kind
    used: set[str] = set()
    for item, kind in held.values():
        if kind:
            yield _of_file(item, kind, held, used)
    yield from (item for item, kind in held.values() if kind is None and item.name not in used)
    for name, placed in _apart(series):
        if len(placed) < least:
            yield from (one.item for one in placed)
        else:
            yield _stacked(name, "DICOM series", placed)


# ---- files


def _fetch(item: Item) -> Any:
    return item.source() if callable(item.source) else item.source


def _head(item: Item) -> bytes:
    source = _fetch(item)
    if isinstance(source, Path):
        if not source.is_file():
            return b""
        with open(source, "rb") as stream:
            return stream.read(HEAD)
    return bytes(source[:HEAD])


def _of_file(
    item: Item, kind: str, beside: dict[str, tuple[Item, str | None]], used: set[str]
) -> Volume | Unusable:
    """Open a volume file; add the names of files that hold its numbers to `used`."""

    def companion(name: str) -> Any:
        other = str(PurePosixPath(item.name).with_name(name))
        if other in beside:
            used.add(other)
            return _fetch(beside[other][0])
        lone = Path(item.source).with_name(name) if isinstance(item.source, Path) else None
        return lone if lone is not None and lone.is_file() else None

    try:
        axial = Axial(read_grid(_fetch(item), companion))
        _check_count(len(axial))
    except ImageRefused as refusal:
        return Unusable(item.name, refusal.reason, (item.name,))
    except OSError as error:
        return Unusable(
            item.name, Reason(f"it cannot be read ({error.strerror}).", "unreadable"), (item.name,)
        )
    notes = [_tilted(axial.tilt)] if axial.tilt > 5 else []
    readers = [partial(axial.image, number) for number in range(len(axial))]
    return Volume(
        item.name,
        kind,
        Slices(readers),
        axial.spacing,
        axial.positions,
        axial.orientation,
        tuple(notes),
        (item.name,),
    )


def _of_pictures(folder: str, found: list[Item]) -> Iterator[Volume | Unusable]:
    """Yield as a volume the ordinary pictures of a folder, in the order of their names, and the frames of each file."""
    readers, files = [], []
    for item in sorted(found, key=lambda item: natural(item.name)):
        try:
            frames = frame_count(_fetch(item))
        except ImageRefused as refusal:
            yield Unusable(item.name, refusal.reason, (item.name,))
            continue
        except OSError as error:
            yield Unusable(
                item.name, Reason(f"it cannot be read ({error.strerror}).", "unreadable"), (item.name,)
            )
            continue
        files.append(item.name)
        readers += [partial(_picture, item, frame if frames > 1 else None) for frame in range(frames)]
    if not readers:
        return
    name = files[0] if len(files) == 1 else folder
    try:
        _check_count(len(readers))
    except ImageRefused as refusal:
        yield Unusable(name, refusal.reason, tuple(files))
        return
    yield Volume(name, "pictures", Slices(readers), notes=(NO_POSITIONS,), files=tuple(files))


def _picture(item: Item, frame: int | None) -> Image.Image:
    return read_image(_fetch(item), frame=frame, modality="ct")


def _check_count(count: int) -> None:
    if count > MAX_SLICES:
        raise ImageRefused(
            f"it has {count:,} slices; at most {MAX_SLICES:,} are read. Give the part with the lungs.",
            "too_many_slices",
            slices=count,
            limit=MAX_SLICES,
        )


# ---- DICOM


class _Placed(NamedTuple):
    """A frame of a DICOM file, where it lies, and how it is read."""

    item: Item
    plane: dicom.Plane
    read: Callable[[], Image.Image]


class _MultiFrame:
    """A file with many frames, its header read once; from an archive it is unpacked with the first slice."""

    def __init__(self, item: Item, header: dicom.Header) -> None:
        self._item, self._header, self._content = item, header, None

    def read(self, index: int) -> Image.Image:
        if self._content is None:
            self._content = _fetch(self._item)
        with opened(self._content, MAX_VOLUME) as stream:
            return Image.fromarray(dicom.grey_of(stream, self._header, index, "ct"))


def _met(
    item: Item, series: dict[tuple[str, str], list[_Placed]], least: int
) -> Iterator[Volume | Unusable | Item]:
    """Read where the frames of a DICOM file lie: one with many is a volume, a slice waits for those of its series."""
    try:
        with opened(_fetch(item), MAX_VOLUME) as stream:
            header, planes = dicom.read_planes(stream)
    except (ImageRefused, OSError):
        yield item
        return
    if len(planes) > 1:
        frames = _MultiFrame(item, header)
        placed = [_Placed(item, plane, partial(frames.read, index)) for index, plane in enumerate(planes)]
        yield _stacked(item.name, "multi-frame DICOM", placed)
        return
    if least > 1 and planes[0].refused is not None:
        yield item  # judged by itself: it may be an X-ray
        return
    folder = str(PurePosixPath(item.name).parent)
    key = (planes[0].series, "") if planes[0].series else ("", folder)
    series[key].append(_Placed(item, planes[0], partial(_picture, item, None)))


def _apart(series: dict[tuple[str, str], list[_Placed]]) -> Iterator[tuple[str, list[_Placed]]]:
    """Yield each series with a name: the folder of its files, numbered where a folder holds several."""
    homes = [_home(placed) for placed in series.values()]
    many, numbers = Counter(homes), Counter()
    for home, placed in zip(homes, series.values(), strict=True):
        numbers[home] += 1
        yield f"{home} (series {numbers[home]})" if many[home] > 1 else home, placed


def _home(placed: list[_Placed]) -> str:
    folders = [str(PurePosixPath(one.item.name).parent) for one in placed]
    try:
        return os.path.commonpath(folders) or "."
    except ValueError:  # some are given from the root, others from here
        return folders[0]


def _stacked(name: str, kind: str, placed: list[_Placed]) -> Volume | Unusable:
    """Make a volume of the frames of a series, sorted by where they lie."""
    files = tuple(dict.fromkeys(one.item.name for one in placed))
    slices = [one for one in placed if one.plane.refused is None]
    if not slices:
        return Unusable(name, placed[0].plane.refused, files)
    notes = [_left_out(placed)] if len(slices) < len(placed) else []
    stack, mixed = _largest(slices)
    notes += [_mixed(mixed)] if mixed else []
    try:
        _check_count(len(stack))
        if any(one.plane.corner is None for one in stack):
            return _by_number(name, kind, stack, [*notes, NO_POSITIONS], files)
        return _by_place(name, kind, stack, notes, files)
    except ImageRefused as refusal:
        return Unusable(name, refusal.reason, files)


def _largest(slices: list[_Placed]) -> tuple[list[_Placed], int]:
    """Select the slices of the most frequent size, spacing and direction, and count the others."""

    def form(one: _Placed) -> tuple:
        axes = np.round(np.array(one.plane.axes or STANDARD) / PARALLEL).astype(int)
        return one.plane.size, one.plane.spacing, tuple(axes), one.plane.corner is None

    forms = [form(one) for one in slices]
    most = Counter(forms).most_common(1)[0][0]
    kept = [one for one, its in zip(slices, forms, strict=True) if its == most]
    return kept, len(slices) - len(kept)


def _by_number(
    name: str, kind: str, stack: list[_Placed], notes: list[Reason], files: tuple[str, ...]
) -> Volume:
    order = sorted(range(len(stack)), key=lambda i: (stack[i].plane.order, natural(stack[i].item.name), i))
    readers = [stack[i].read for i in order]
    high_wide = stack[0].plane.spacing
    spacing = (*high_wide, None) if high_wide else None
    return Volume(name, kind, Slices(readers), spacing, None, "", tuple(notes), files)


def _by_place(
    name: str, kind: str, stack: list[_Placed], notes: list[Reason], files: tuple[str, ...]
) -> Volume:
    """Sort slices by place along the normal of their plane (PS3.3 C.7.6.2.1.1); of one place keep only the first."""
    row, column = np.array(stack[0].plane.axes or STANDARD).reshape(2, 3)
    normal = np.cross(row, column)
    if not np.isfinite(normal).all() or np.linalg.norm(normal) < 0.5:
        raise no_orientation()
    normal /= np.linalg.norm(normal)
    tilt = float(np.degrees(np.arccos(min(1.0, abs(normal[2])))))
    if tilt > MAX_TILT:
        raise oblique(tilt)
    upright, ways = _turn(row, column)
    normal = normal if normal[2] > 0 else -normal
    places = [float(normal @ np.array(one.plane.corner)) for one in stack]
    order = sorted(range(len(stack)), key=lambda i: (-places[i], stack[i].plane.order, i))
    kept = [i for n, i in enumerate(order) if n == 0 or places[order[n - 1]] - places[i] > SAME_PLACE]
    if len(kept) < len(order):
        notes.append(_duplicates(len(order) - len(kept)))
    steps = -np.diff([places[i] for i in kept])
    usual = float(np.median(steps)) if len(steps) else None
    if usual and (missing := int(sum(round(step / usual) - 1 for step in steps if step > GAP * usual))):
        notes.append(_gaps(missing))
    if tilt > 5:
        notes.append(_tilted(tilt))
    readers = [partial(_turned, stack[i].read, upright) for i in kept]
    spacing = (*(stack[0].plane.spacing or (1.0, 1.0)), usual) if stack[0].plane.spacing else None
    ways += "S" if len(stack) < 2 or places[-1] >= places[0] else "I"
    return Volume(
        name, kind, Slices(readers), spacing, tuple(places[i] for i in kept), ways, tuple(notes), files
    )


def _turn(row: np.ndarray, column: np.ndarray) -> tuple[tuple[Image.Transpose, ...], str]:
    """Find the turns that put the patient's right at the left and front at the top, and where rows and columns lead.

    Raises:
        ImageRefused: they lie too obliquely within the slice.
    """
    swapped = abs(row[0]) < abs(row[1])  # a row runs from front to back
    left, back = (column, row) if swapped else (row, column)
    tilt = float(np.degrees(np.arccos(min(1.0, abs(left[0]), abs(back[1])))))
    if tilt > MAX_TILT:
        raise oblique(tilt)
    turns = [Image.Transpose.TRANSPOSE] if swapped else []
    turns += [Image.Transpose.FLIP_LEFT_RIGHT] if left[0] < 0 else []
    turns += [Image.Transpose.FLIP_TOP_BOTTOM] if back[1] < 0 else []
    letters = ["L" if left[0] > 0 else "R", "P" if back[1] > 0 else "A"]
    return tuple(turns), "".join(reversed(letters) if swapped else letters)


def _turned(read: Callable[[], Image.Image], turns: tuple[Image.Transpose, ...]) -> Image.Image:
    image = read()
    for turn in turns:
        image = image.transpose(turn)
    return image


# ---- what is told


NO_POSITIONS = Reason(
    "The slices do not say where they lie; they are in the order of their numbers or names, shown as they are stored.",
    "no_positions",
)


def _left_out(placed: list[_Placed]) -> Reason:
    refused = [one.plane.refused for one in placed if one.plane.refused is not None]
    codes = sorted({reason.code for reason in refused})
    return Reason(
        f"{len(refused)} of {len(placed)} pictures are no slices and were left out ({', '.join(codes)}).",
        "left_out",
        n=len(refused),
    )


def _mixed(count: int) -> Reason:
    return Reason(
        f"{count} slices of the series have another size, direction or spacing; they were left out.",
        "mixed",
        n=count,
    )


def _duplicates(count: int) -> Reason:
    return Reason(
        f"{count} slices lie where another one lies (a second reconstruction, phase or copy); the first of each place "
        "was kept.",
        "duplicates",
        n=count,
    )


def _gaps(count: int) -> Reason:
    return Reason(
        f"About {count} slices are missing: there are gaps between those that came.", "gaps", n=count
    )


def _tilted(degrees: float) -> Reason:
    return Reason(
        f"The slices are tilted by {degrees:.0f} degrees against the patient's axes.",
        "tilted",
        degrees=round(degrees),
    )
