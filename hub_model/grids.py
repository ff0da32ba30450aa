"""Volume files of research archives, NIfTI, NRRD and MetaImage: their numbers, and where these lie in the patient.

Headers of NIfTI are read by nibabel, those of NRRD by pynrrd (the extra ``volumes``); a MetaImage header is lines of
``key = value``. The numbers are mapped, not read: a slice costs its own bytes. Packed numbers are unpacked once, to a
file without a name, and no further than their header says.
"""

import bz2
import gzip
import io
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from .dicom import AIR_SHARE, LUNG, TISSUE, lung_window, with_square_pixels
from .foreign_formats import HEAD, named
from .grey import MAX_SIDE, ImageRefused, check_size, decoding
from .images import opened

FORMATS = ("NIfTI", "NRRD", "MetaImage")
MAX_VOLUME = 2 * 2**30  # bytes of one volume's file, packed and unpacked
MAX_HEADER = 2**20  # bytes of a text header
MAX_TILT = 30.0  # degrees between an axis of the file and the patient's; gantries tilt by no more
CHUNK = 2**20  # bytes that are unpacked at a time
GZIP = b"\x1f\x8b"
SAMPLED = 9  # slices whose numbers tell their unit
FAR = 1e5  # mm; what lies further from the scanner's centre is no patient
NUMBERS = {
    "i1": "int8 int8_t signed_char met_char",
    "u1": "uint8 uint8_t uchar unsigned_char met_uchar",
    "i2": "int16 int16_t short short_int signed_short signed_short_int met_short",
    "u2": "uint16 uint16_t ushort unsigned_short unsigned_short_int met_ushort",
    "i4": "int32 int32_t int signed_int met_int met_long",
    "u4": "uint32 uint32_t uint unsigned_int met_uint met_ulong",
    "i8": "int64 int64_t longlong long_long long_long_int signed_long_long signed_long_long_int met_long_long",
    "u8": "uint64 uint64_t ulonglong unsigned_long_long unsigned_long_long_int met_ulong_long",
    "f4": "float met_float",
    "f8": "double met_double",
}
"""numpy's name of a kind of number -> what NRRD and MetaImage call it, '_' for ' '."""

AXES = {"right": (0, -1), "left": (0, 1), "anterior": (1, -1), "posterior": (1, 1), "inferior": (2, -1),
        "superior": (2, 1)}  # fmt: skip
"""Where NRRD's words for a space point, as axis and sign of LPS: to the left, to the back, to the head."""

Beside = Callable[[str], Any]
"""Gives the file of a name that lies beside a header: a path or bytes, None where there is none."""


class Grid(NamedTuple):
    """Numbers of a volume, and where they lie.

    Attributes:
        values: (I, J, K) of any real type, mapped.
        slope, intercept: of the line by which they become what is measured.
        steps: (3, 3), mm in the patient's axes (left, back, head: LPS) from a number to the next along each axis of
            `values`, one axis a column.
        origin: (3,) mm, where the first number lies.
    """

    values: np.ndarray
    slope: float
    intercept: float
    steps: np.ndarray
    origin: np.ndarray


def volume_format(head: bytes) -> str | None:
    """Say which of `FORMATS` a file is, by its first `foreign_formats.HEAD` bytes; None for any other."""
    found = (named(head) or ("",))[0].removesuffix(" (gzip)")
    return found if found in FORMATS else None


def read_grid(source: Any, beside: Beside = lambda name: None) -> Grid:
    """Open a volume file.

    Args:
        source: a path, or bytes.
        beside: where the numbers of a header that has them in a file of their own are looked for.

    Raises:
        ImageRefused: damaged, too large, no three-dimensional grid of real numbers, without an orientation, or a
            package that reads it is missing.
    """
    with opened(source, MAX_VOLUME) as stream:
        kind = volume_format(stream.read(HEAD))
        stream.seek(0)
        read = {"NIfTI": _nifti, "NRRD": _nrrd, "MetaImage": _meta}.get(kind)
        if read is None:
            raise ImageRefused(f"it is no volume file ({', '.join(FORMATS)}).", "no_picture")
        with decoding():
            return read(source, stream, beside)


class Axial:
    """The axial slices of a grid as a radiologist sees them: from the head down, right at the left, front at the top.

    Raises:
        ImageRefused: the grid lies too obliquely, its pixels are by far not square, or its numbers are no HU.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        directions = grid.steps / np.linalg.norm(grid.steps, axis=0)
        # the array axis that runs most along each axis of the patient, none twice
        orders = [(a, b, 3 - a - b) for a in range(3) for b in range(3) if a != b]
        self.order = max(orders, key=lambda order: sum(abs(directions[i, order[i]]) for i in range(3)))
        along = np.array([directions[i, self.order[i]] for i in range(3)])
        self.tilt = float(np.degrees(np.arccos(np.clip(np.abs(along), 0, 1))).max())
        if self.tilt > MAX_TILT:
            raise oblique(self.tilt)
        self.signs = np.sign(along)
        rows, columns = (grid.steps[:, self.order[axis]] for axis in (1, 0))
        normal = np.cross(columns * self.signs[0], rows * self.signs[1])
        normal /= np.linalg.norm(normal)  # towards the head, as left x back is
        step = float(normal @ grid.steps[:, self.order[2]])
        if not step:
            raise no_orientation()
        count = grid.values.shape[self.order[2]]
        check_size(grid.values.shape[self.order[0]], grid.values.shape[self.order[1]])
        places = float(normal @ grid.origin) + step * np.arange(count)
        self.down = step > 0  # the file runs upwards, so its last slice is the first
        self.positions = tuple(float(place) for place in (places[::-1] if self.down else places))
        self.spacing = (float(np.linalg.norm(rows)), float(np.linalg.norm(columns)), abs(step))
        self.shown_as_is = self._unit()

    def __len__(self) -> int:
        return self._grid.values.shape[self.order[2]]

    @property
    def orientation(self) -> str:
        """Where the axes of the file lead, as in 'LPS': letters for left or right, posterior or anterior, superior."""
        letters = ["RL", "AP", "IS"]
        ways = {self.order[axis]: letters[axis][int(self.signs[axis] > 0)] for axis in range(3)}
        return "".join(ways[axis] for axis in range(3))

    def values(self, number: int) -> np.ndarray:
        """Return the stored numbers of a slice, (rows, columns) in the order in which they are shown."""
        place = len(self) - 1 - number if self.down else number
        plane = np.moveaxis(self._grid.values, self.order[2], 0)[place]
        plane = (
            plane if self.order[0] > self.order[1] else plane.T
        )  # rows run to the back, columns to the left
        return plane[:: int(self.signs[1]), :: int(self.signs[0])]

    def image(self, number: int) -> Image.Image:
        """Return a slice as a grey picture, in the lung window.

        Raises:
            ImageRefused: some numbers are not finite.
        """
        measured = self._measured(self.values(number))
        if not np.isfinite(measured).all():
            raise ImageRefused(
                "some pixels are not finite numbers. Give the background a number such as -1024.",
                "not_finite",
            )
        levels = np.clip(np.rint(measured), 0, 255).astype(np.uint8)
        grey = levels if self.shown_as_is else lung_window(measured)
        return Image.fromarray(np.ascontiguousarray(with_square_pixels(grey, *self.spacing[:2])))

    def _measured(self, values: np.ndarray) -> np.ndarray:
        return values.astype(np.float64) * self._grid.slope + self._grid.intercept

    def _unit(self) -> bool:
        """Say whether the numbers are grey levels of 8 bits already; otherwise they are HU.

        Told from the numbers, for no such file names its unit: HU has air (below -500) and tissue (about 0).

        Raises:
            ImageRefused: they are neither.
        """
        numbers = np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(int))
        seen = np.concatenate([self._measured(self.values(i)[::3, ::3]).ravel() for i in numbers])
        seen = seen[np.isfinite(seen)]
        if seen.size and seen.min() >= 0 and seen.max() <= 255 and seen.max() > 1:
            return True
        if not seen.size or (seen < LUNG).mean() < AIR_SHARE or (seen > TISSUE - 200).mean() < AIR_SHARE:
            raise ImageRefused(
                "its numbers are not Hounsfield units: they hold no air or no tissue. It is no CT (an MR, a PET, a "
                "mask), or it was scaled; export the original CT.",
                "no_hounsfield",
            )
        return False


def oblique(degrees: float) -> ImageRefused:
    """Return the refusal of slices that are not axial."""
    return ImageRefused(
        f"its slices are not axial but tilted by {degrees:.0f} degrees (coronal, sagittal or oblique); up to "
        f"{MAX_TILT:.0f} are taken. Give the axial series of the same examination.",
        "oblique",
        degrees=round(degrees),
        limit=round(MAX_TILT),
    )


def no_orientation() -> ImageRefused:
    """Return the refusal of a volume that does not say which way it lies."""
    return ImageRefused(
        "it does not say how it lies in the patient, so left and right, head and feet could be confused. Convert it "
        "again with its orientation (from DICOM), or give the DICOM series.",
        "no_orientation",
    )


# ---- the formats


def _nifti(source: Any, stream: BinaryIO, beside: Beside) -> Grid:
    """Read NIfTI-1 and -2 (https://nifti.nimh.nih.gov), one file or a pair, plain or in gzip."""
    nibabel = _package("nibabel")
    packed = stream.read(2) == GZIP
    stream.seek(0)
    head = next(_unpacked(stream, "gzip")) if packed else stream.read(HEAD)
    second = head[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # 540
    header = (nibabel.Nifti2Header if second else nibabel.Nifti1Header)(
        head[: 540 if second else 348], check=False, endianness=None
    )
    shape = _three([int(side) for side in header.get_data_shape()])
    kind = header.get_data_dtype()
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        raise no_orientation()
    affine = np.asarray(header.get_best_affine(), np.float64)
    unit = {"meter": 1000.0, "micron": 0.001}.get(header.get_xyzt_units()[0], 1.0)
    affine[:3] *= unit * np.array([[-1], [-1], [1]])  # RAS -> LPS
    slope, intercept = header.get_slope_inter()
    offset = int(header.get_data_offset())
    if header["magic"].tobytes()[:2] == b"ni":  # a pair
        source = _companion(beside, source, (".img", ".img.gz"))
    else:
        offset = max(offset, 544 if second else 352)
    with _stream(source) as numbers:
        packing = "gzip" if numbers.read(2) == GZIP else ""
    values = _numbers(source, offset, packing, kind, shape)
    return _grid(values, affine[:3, :3], affine[:3, 3], 1.0 if slope is None else slope, intercept or 0.0)


def _nrrd(source: Any, stream: BinaryIO, beside: Beside) -> Grid:
    """Read NRRD (https://teem.sourceforge.net/nrrd/format.html), in one file or with its numbers in another."""
    head = stream.read(MAX_HEADER)
    end = re.search(rb"\r?\n\r?\n", head)
    text = head[: end.start()] if end else head
    told = _package("nrrd").read_header([line + b"\n" for line in text.splitlines()] + [b"\n"])
    shape = _three([int(size) for size in told["sizes"]])
    directions = np.atleast_2d(np.asarray(told.get("space directions", np.zeros((0, 3))), np.float64))
    space = _space(str(told.get("space", "")))
    if space is None or directions.shape != (len(told["sizes"]), 3):
        raise no_orientation()
    kind = _kind(str(told["type"]), str(told.get("endian", "")))
    packing = {"raw": "", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}.get(
        told["encoding"]
    )
    lines, skipped = (int(told.get(f"{what} skip", told.get(f"{what}skip", 0))) for what in ("line", "byte"))
    if packing is None or lines:
        raise _layout("written as text, or packed in another way")
    offset = end.end() if end else len(head)
    if name := told.get("data file", told.get("datafile")):
        source, offset = _companion(beside, source, named=str(name)), 0
    steps = (directions[:3] @ space).T
    origin = np.asarray(told.get("space origin", np.zeros(3)), np.float64) @ space
    values = _numbers(source, offset, packing, kind, shape, skipped)
    return _grid(values, steps, origin)


def _space(words: str) -> np.ndarray | None:
    """Return the matrix from a NRRD space to LPS; None for a space that does not refer to a patient."""
    short = {"R": "right", "L": "left", "A": "anterior", "P": "posterior", "I": "inferior", "S": "superior"}
    parts = [
        short.get(word.upper(), word.lower()) for word in (words if len(words) == 3 else words.split("-"))
    ]
    if len(parts) != 3 or sorted(AXES[part][0] for part in parts if part in AXES) != [0, 1, 2]:
        return None
    matrix = np.zeros((3, 3))
    for row, part in enumerate(parts):
        axis, sign = AXES[part]
        matrix[row, axis] = sign
    return matrix


def _meta(source: Any, stream: BinaryIO, beside: Beside) -> Grid:
    """Read MetaImage (https://itk.org/Wiki/ITK/MetaIO/Documentation), in one file or with its numbers in another.

    Its space is LPS, as ITK writes it; a row of its matrix is the direction of an axis.
    """
    told, offset = _meta_header(stream)
    if told.get("ElementNumberOfChannels", "1") != "1" or _truth(told, "BinaryData", "True") is False:
        raise _layout("of several channels, or written as text")
    shape = _three([int(word) for word in told["DimSize"].split()])
    matrix = next((told[key] for key in ("TransformMatrix", "Rotation", "Orientation") if key in told), None)
    if matrix is None:
        raise no_orientation()
    directions = np.array(matrix.split(), np.float64)
    lengths = np.array(told.get("ElementSpacing", told.get("ElementSize", "")).split(), np.float64)
    place = next((told[key] for key in ("Offset", "Position", "Origin") if key in told), "0 0 0")
    origin, axes = np.array(place.split(), np.float64), len(told["DimSize"].split())
    if len(directions) != axes**2 or len(lengths) != axes or len(origin) != axes or axes < 3:
        raise no_orientation()
    directions = directions.reshape(axes, axes)[:3, :3]
    big = _truth(told, "BinaryDataByteOrderMSB", told.get("ElementByteOrderMSB", "False"))
    kind = _kind(told["ElementType"], "big" if big else "little")
    packing = "gzip" if _truth(told, "CompressedData", "False") else ""
    file = told["ElementDataFile"]
    if file != "LOCAL":
        if file == "LIST" or "%" in file:
            raise _layout("spread over several files")
        source, offset = _companion(beside, source, named=file), int(told.get("HeaderSize", "0"))
    skipped = -1 if offset < 0 else 0
    values = _numbers(source, max(offset, 0), packing, kind, shape, skipped)
    return _grid(values, (directions * lengths[:3, None]).T, origin[:3])


def _meta_header(stream: BinaryIO) -> tuple[dict[str, str], int]:
    """Read the fields of a MetaImage header, and where it ends: after the line that names the file of the numbers."""
    told, read = {}, 0
    while read < MAX_HEADER and (line := stream.readline(MAX_HEADER)):
        read += len(line)
        key, _, value = line.decode("latin-1").partition("=")
        told[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            return told, read
    raise ValueError("no end of the header")


def _truth(told: dict[str, str], key: str, otherwise: str) -> bool:
    return told.get(key, otherwise).strip().lower() in ("true", "1", "t")


# ---- what they share


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError:
        raise ImageRefused(
            f"to read it {name} is needed, which is not installed: pip install 'covid-xct[volumes]'.",
            "missing_package",
            package=name,
        ) from None


def _three(sizes: list[int]) -> tuple[int, int, int]:
    """Return the shape of a volume, without further axes of length 1."""
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    sizes = [*sizes, 1] if len(sizes) == 2 else sizes
    if len(sizes) != 3:
        raise ImageRefused(
            f"it has {len(sizes)} dimensions (a series over time, or several channels); a volume has 3. Export the "
            "one volume to be judged.",
            "dimensions",
            dimensions=len(sizes),
        )
    if not all(0 < side <= MAX_SIDE for side in sizes):
        raise ImageRefused(
            f"it has {' x '.join(map(str, sizes))} numbers; at most {MAX_SIDE:,} along an axis are read."
            " Export it again.",
            "volume_too_large",
            limit=MAX_VOLUME >> 20,
        )
    return sizes[0], sizes[1], sizes[2]


def _kind(word: str, order: str) -> np.dtype:
    """Return the numpy type for the name of a number type in NRRD or MetaImage."""
    name = "_".join(word.lower().split())
    for kind, words in NUMBERS.items():
        if name in words.split():
            if kind[1] != "1" and order not in ("little", "big"):
                raise ValueError("no byte order")
            return np.dtype(kind).newbyteorder(">" if order == "big" else "<")
    raise _layout("of another type")  # its word is not repeated: anything can stand there


def _layout(what: str) -> ImageRefused:
    return ImageRefused(
        f"its numbers are {what}, which is not read. Save it as 16-bit integers, raw or in gzip.", "layout"
    )


def _companion(beside: Beside, source: Any, endings: tuple[str, ...] = (), named: str = "") -> Any:
    """Find the file with the numbers, which lies beside its header under a plain name.

    Raises:
        ImageRefused: there is none, or the name leads elsewhere: headers of strangers may name any file.
    """
    own = re.sub(r"\.[^.]*$", "", Path(source).name) if isinstance(source, Path) else ""
    names = [named] if named else [own + ending for ending in endings]
    for name in names:
        if re.fullmatch(r"[^/\\:]+", name) and (found := beside(name)) is not None:
            return found
    raise ImageRefused(
        "its numbers lie in a file of their own, which did not come with it. Give both together, side by side.",
        "no_companion",
    )


@contextmanager
def _stream(source: Any) -> Iterator[BinaryIO]:
    with open(source, "rb") if isinstance(source, Path) else io.BytesIO(source) as stream:
        yield stream


def _numbers(
    source: Any, offset: int, packing: str, kind: np.dtype, shape: tuple[int, int, int], skipped: int = 0
) -> np.ndarray:
    """Map the numbers of a file, its first axis the fastest.

    Args:
        source: path or bytes.
        offset: bytes before the numbers; in a file that is packed from its beginning, once unpacked.
        packing: "", "gzip" (or zlib) or "bzip2".
        kind: type of number.
        shape: of the volume.
        skipped: further bytes before the numbers, unpacked; -1 where they lie at the very end.

    Raises:
        ImageRefused: too large, or numbers that are not real.
        ValueError: the file is too short.
    """
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise _layout("colours or complex")
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if size > MAX_VOLUME:
        limit = MAX_VOLUME >> 20
        raise ImageRefused(
            f"unpacked it has {size >> 20:,} MiB; at most {limit:,} are read. Give the part with the lungs, or 16-bit "
            "integers.",
            "volume_too_large",
            limit=limit,
        )
    with _stream(source) as stream:
        if packing:
            from_start = stream.read(2) == GZIP
            stream.seek(0 if from_start else offset)
            return _mapped(stream, packing, offset * from_start + max(skipped, 0), kind, shape)
        whole = stream.seek(0, 2)
        start = whole - size if skipped == -1 else offset + skipped
        if start < 0 or start + size > whole:
            raise ValueError("too short")
    if isinstance(source, Path):
        return np.memmap(source, kind, "r", start, shape, order="F")
    return np.frombuffer(source, kind, size // kind.itemsize, start).reshape(shape, order="F")


def _mapped(
    stream: BinaryIO, packing: str, skip: int, kind: np.dtype, shape: tuple[int, int, int]
) -> np.ndarray:
    """Unpack numbers to a file without a name, and map it: memory stays small, and nothing is left behind."""
    left = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    with tempfile.TemporaryFile() as target:
        for part in _unpacked(stream, packing):
            kept = part[skip : skip + left]
            skip, left = max(0, skip - len(part)), left - len(kept)
            with _room():
                target.write(kept)
            if not left:
                break
        else:
            raise ValueError("too short")
        with _room():
            target.flush()
        return np.memmap(target, kind, "r", 0, shape, order="F")


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise ImageRefused(
            "there is no room on the disk to unpack it. Free some, or give it unpacked.", "no_room"
        ) from None


def _unpacked(stream: BinaryIO, packing: str) -> Iterator[bytes]:
    """Yield what a stream unpacks to, in parts of at most `CHUNK` bytes, as long as more is asked for."""
    begin = stream.tell()
    packed_as_gzip = stream.read(2) == GZIP
    stream.seek(begin)
    if packing == "bzip2" or packed_as_gzip:
        reader: Any = bz2.BZ2File(stream) if packing == "bzip2" else gzip.GzipFile(fileobj=stream)
        while part := reader.read(CHUNK):
            yield part
        return
    unpacker = zlib.decompressobj()
    while not unpacker.eof and (packed := unpacker.unconsumed_tail or stream.read(CHUNK)):
        yield unpacker.decompress(packed, CHUNK)


def _grid(
    values: np.ndarray, steps: np.ndarray, origin: np.ndarray, slope: float = 1.0, intercept: float = 0.0
) -> Grid:
    """Make a grid after checking its geometry.

    Raises:
        ImageRefused: it says nothing usable of where it lies.
    """
    told = np.concatenate([steps.ravel(), origin.ravel()])
    lengths = np.linalg.norm(steps, axis=0)
    if not (np.isfinite(told).all() and np.abs(told).max() < FAR and (lengths > 1e-3).all()):
        raise no_orientation()
    return Grid(values, float(slope), float(intercept), steps, origin)
