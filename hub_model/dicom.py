"""DICOM files: from stored values to one 8-bit grey picture, by the grey-scale pipeline of DICOM PS3.3 C.11.

- CT in Hounsfield units (HU) is always shown in the lung window (level -600, width 1500), whatever window the
  file carries: that may be one for soft tissue, in which the lungs are black; the models know lung windows.
  CT of more than 8 bits that does not say how its values become HU is refused.
- Everything else goes through rescale or modality LUT, then VOI LUT or window (the first usable one); without
  one through the percentiles of ``grey.py``. MONOCHROME1 is turned, so that high values are bright.
- Padding (PS3.3 C.7.5.1.1.2) takes no part in any of this and is shown as black.
- Pixels that are higher than wide, or wider than high, are made square.

Only the elements in `TAGS` are read, none of which names a patient. docs/reading.md lists every rule.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread, uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels import apply_color_lut, pixel_array

from . import codecs
from .grey import (
    MAX_BYTES,
    ImageRefused,
    check_frames,
    check_size,
    chosen_frame,
    decoding,
    grey_of_colour,
    to_8_bit,
)
from .refused import Reason

LUNG_WINDOW = (-1350.0, 150.0)  # HU, shown as black and white: level -600, width 1500
LUNG, TISSUE = -500, 0  # HU: values from below the first to above the second are there in every chest slice
AIR_SHARE = (
    0.01  # of the pixels; at least so many lie below LUNG in a slice whose unit must be told from its values
)
CT_INTERCEPT = -900  # HU; no other modality rescales by such a number (-1000 and -1024 are usual)
MODALITIES = {"xray": ("CR", "DX", "RG"), "ct": ("CT",)}  # PS3.3 C.7.3.1.1.1
UNSPECIFIC = ("", "OT", "SC")  # screen captures and converted files do not say what they show
CT_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
KNOWN_MODALITIES = frozenset(
    "AR ASMT AU BDUS BI BMD CD CF CFM CP CR CS CT DD DF DG DM DMS DOC DS DX EC ECG EEG EMG EOG EPS ES FA FID FS GM "
    "HC HD IO IOL IVOCT IVUS KER KO LEN LP LS M3D MA MG MR MS NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS OT PA "
    "PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT SC SD SEG SM "
    "SMR SR SRF ST STAIN TEXTUREMAP TG US VA VF XA XAPROTOCOL XC".split()
)
OVERVIEWS = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM", "SCANOSCOPE"}  # in ImageType
LATERAL_VIEWS = {
    "LL",
    "RL",
    "LLO",
    "RLO",
    "L",
    "LAT",
    "LATERAL",
    "LLAT",
    "RLAT",
    "LEFT LATERAL",
    "RIGHT LATERAL",
}
MAX_ITEMS = 100_000  # of all sequences of a file; 2,000 frames of an enhanced CT have about 30,000
MAX_STRETCH = 4  # how many times higher than wide a pixel may be, or wider than high
SQUARE = 0.01  # pixels whose sides differ by less are square
NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
TAGS = [
    *("SOPClassUID", "ImageType", "Modality", "PresentationIntentType", "SamplesPerPixel"),
    *("PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleIntercept", "RescaleSlope", "RescaleType", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"),
    *("ViewPosition", "ViewCodeSequence"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
]
PLACE_TAGS = ["SeriesInstanceUID", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient"]
GROUPED = (
    *("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence"),
    *("PlanePositionSequence", "PlaneOrientationSequence"),
)  # of an enhanced file's frames, shared or each (PS3.3 C.7.6.16)
PIXEL_TAGS = ["PixelData", "FloatPixelData", "DoubleFloatPixelData"]


class Header(NamedTuple):
    """What the file says of its picture."""

    tags: Dataset
    frames: int
    syntax: uid.UID | None  # transfer syntax
    start: int = 0  # where the pixels begin, in bytes; of a deflated file it says nothing


class Plane(NamedTuple):
    """Where one frame of a file lies in the patient, and what keeps it from being a slice.

    Attributes:
        series: SeriesInstanceUID, for grouping only; it names a patient's examination.
        corner: centre of the first pixel, mm, in the patient's axes: to the left, to the back, to the head (LPS).
        axes: directions of a row and of a column, three numbers each.
        spacing: mm between rows and between columns.
        size: rows and columns.
        order: acquisition and instance number, for slices that say no place.
        refused: why the frame is no slice of a CT.
    """

    series: str
    corner: tuple[float, ...] | None
    axes: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    size: tuple[int, int]
    order: tuple[int, int]
    refused: Reason | None


def lung_window(hu: np.ndarray) -> np.ndarray:
    """Show Hounsfield units of any shape as uint8: -1350 HU and below 0, 150 HU and above 255, linear between."""
    low, high = LUNG_WINDOW
    return np.rint((np.clip(hu, low, high) - low) / (high - low) * 255).astype(np.uint8)


def read_header(stream: BinaryIO, also: Iterable[str] = ()) -> Header:
    """Read the elements that describe the picture, without its pixels.

    Args:
        stream: the file, seekable.
        also: keywords of elements beyond `TAGS`.

    Raises:
        ImageRefused: there is no picture in the file, it is damaged, declares more frames than it holds or than
            are accepted, or is compressed in a way that is not read.
    """
    with decoding():
        syntax, size = _syntax_and_size(stream)
        _check_syntax(syntax)
        stream.seek(0)
        tags = dcmread(stream, force=True, stop_before_pixels=True, specific_tags=[*TAGS, *also])
        if not tags.get("Rows") or not tags.get("Columns"):
            raise ImageRefused(
                "it holds no picture but, say, a report, a plan or a directory. Export the film or slice itself.",
                "dicom_without_picture",
            )
        frames = int(max(1, *_numbers(tags, "NumberOfFrames")[:1], 1))
        check_frames(frames)
        cell = 1 if syntax in codecs.READ else tags.Rows * tags.Columns * tags.BitsAllocated // 8
        if frames > 1 and frames * cell > size:
            raise ImageRefused(
                f"it declares {frames} frames and is too short to hold them. Export it again.", "damaged"
            )
        return Header(tags, frames, syntax, stream.tell())


def read_planes(stream: BinaryIO) -> tuple[Header, list[Plane]]:
    """Read the header of a file, and where each of its frames lies.

    Raises:
        ImageRefused: as `read_header` does.
    """
    header = read_header(stream, [*PLACE_TAGS, "AcquisitionNumber"])
    with decoding():
        return header, [_plane(_tags_of_frame(header, index), index) for index in range(header.frames)]


def _plane(tags: Dataset, index: int) -> Plane:
    corner, axes = _numbers(tags, "ImagePositionPatient"), _numbers(tags, "ImageOrientationPatient")
    high, wide = [*_numbers(tags, "PixelSpacing"), 0, 0][:2]
    acquisition, number = (_number(tags, name) or 0 for name in ("AcquisitionNumber", "InstanceNumber"))
    try:
        _check_kind(tags, "ct")
        refused = None
    except ImageRefused as refusal:
        refused = refusal.reason
    return Plane(
        str(tags.get("SeriesInstanceUID") or ""),
        tuple(corner) if len(corner) == 3 else None,
        tuple(axes) if len(axes) == 6 else None,
        (high, wide) if high > 0 and wide > 0 else None,
        (int(tags.Rows), int(tags.Columns)),
        (int(acquisition), int(number) + index),
        refused,
    )


def read_grey(
    stream: BinaryIO, frame: int | None = None, modalities: Sequence[str | None] = (None,)
) -> dict[str | None, np.ndarray | ImageRefused]:
    """Read one frame as (rows, columns) uint8, its pixels made square; for several models it is decoded once.

    Args:
        stream: the file, seekable.
        frame: which frame, from 0; needed where there is more than one.
        modalities: ``"xray"`` or ``"ct"``: refuse a file that says it is something else; None takes any.

    Returns:
        By modality its picture, or why it gets none (see `hub_model.images.read_image`).
    """
    for modality in modalities:
        if modality:
            MODALITIES[modality]  # a wrong word is the caller's mistake
    try:
        header = read_header(stream)
        index = chosen_frame(frame, header.frames)
    except ImageRefused as refusal:
        return dict.fromkeys(modalities, refusal)
    return _greys_of(stream, header, index, modalities)


def grey_of(stream: BinaryIO, header: Header, index: int, modality: str | None = None) -> np.ndarray:
    """Read one frame of a file whose header was read before, so that many frames do not need it read again.

    Raises:
        ImageRefused: see `hub_model.images.read_image`.
    """
    found = _greys_of(stream, header, index, (modality,))[modality]
    if isinstance(found, ImageRefused):
        raise found from None
    return found


def _greys_of(
    stream: BinaryIO, header: Header, index: int, modalities: Sequence[str | None]
) -> dict[str | None, np.ndarray | ImageRefused]:
    found: dict[str | None, np.ndarray | ImageRefused | None] = {}

    def each(do: Callable[[str | None], np.ndarray | None]) -> None:
        for modality in modalities:
            if not isinstance(found.get(modality), ImageRefused):
                try:
                    with decoding():
                        found[modality] = do(modality)
                except ImageRefused as refusal:
                    found[modality] = refusal

    try:
        with decoding():
            tags = _tags_of_frame(header, index)
        each(lambda modality: _check_kind(tags, modality))
        if all(isinstance(one, ImageRefused) for one in found.values()):
            return found
        with decoding():
            check_size(int(tags.Columns), int(tags.Rows))
        with decoding(_undecodable(header.syntax)):
            cells = _cells(stream, header._replace(tags=tags), index)
    except ImageRefused as refusal:
        return {modality: found.get(modality) or refusal for modality in modalities}
    each(lambda modality: _with_square_pixels(_grey(cells, tags, header.syntax, modality), tags))
    return found


def _undecodable(syntax: str | None) -> Reason:
    """Return the reason why pixels cannot be unpacked."""
    if syntax not in codecs.READ:
        return Reason("the file is damaged, cut short or without pixels. Export it again.", "damaged")
    name = _name_of(syntax)
    return Reason(
        f"its pixels, compressed as {name}, cannot be decoded. Export it uncompressed (Explicit VR Little Endian).",
        "undecodable",
        syntax=name,
    )


def _grey(cells: np.ndarray, tags: Dataset, syntax: str | None, modality: str | None) -> np.ndarray:
    """Convert decoded cells to uint8."""
    if cells.ndim == 3 or tags.PhotometricInterpretation == "PALETTE COLOR":
        colours = cells if cells.ndim == 3 else apply_color_lut(cells, tags)
        return grey_of_colour(to_8_bit(colours[..., :3]))
    return _displayed(cells, tags, syntax, modality)


# ---- the header


def _syntax_and_size(stream: BinaryIO) -> tuple[uid.UID | None, int]:
    """Read the transfer syntax, and the size of the file in bytes, inflated.

    A deflated file can inflate a thousandfold, and pydicom inflates all of it at once.
    """
    size = stream.seek(0, 2)
    _check_items(stream)
    stream.seek(128)
    stream.seek(132 if stream.read(4) == b"DICM" else 0)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    syntax = meta.get("TransferSyntaxUID")
    if syntax != uid.DeflatedExplicitVRLittleEndian:
        return syntax or None, size
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    unpacked = inflater.decompress(stream.read(), MAX_BYTES)
    _check_items(io.BytesIO(unpacked))
    size = len(unpacked)
    if inflater.unconsumed_tail:
        limit = MAX_BYTES >> 20
        raise ImageRefused(
            f"unpacked it exceeds {limit} MiB. Export the single picture.", "file_too_large", limit=limit
        )
    return syntax, size


def _check_items(stream: BinaryIO) -> None:
    """Refuse files of countless empty items, 8 bytes each, before the parser makes a data set of every one."""
    stream.seek(0)
    items = 0
    while block := stream.read(2**24):
        items += block.count(b"\xfe\xff\x00\xe0") + block.count(b"\xff\xfe\xe0\x00")
        if items > MAX_ITEMS:
            raise ImageRefused(
                f"its header holds more than {MAX_ITEMS:,} items. Export the single picture.", "damaged"
            )


def _check_syntax(syntax: uid.UID | None) -> None:
    """Refuse a transfer syntax that no decoder here reads, such as video, and name it where it is a standard one."""
    if syntax is None or syntax in NATIVE or syntax in codecs.READ:
        return
    name = _name_of(syntax)
    if not name:  # of a private one nothing is repeated, not even its number
        raise ImageRefused(
            "it is stored in its maker's private transfer syntax. Export it in a standard one, best uncompressed "
            "(Explicit VR Little Endian).",
            "undecodable",
            syntax="private",
        )
    raise ImageRefused(
        f"it is stored as {name}, which is not read. Export it uncompressed (Explicit VR Little Endian); of a video, "
        "export the one picture.",
        "undecodable",
        syntax=name,
    )


def _name_of(syntax: str) -> str:
    """Give the standard's name of a transfer syntax; empty for one that it does not name."""
    if syntax == codecs.DEFLATED_FRAMES:
        return "Deflated Image Frame Compression"
    return uid.UID_dictionary[syntax][0] if syntax in uid.UID_dictionary else ""


def _numbers(tags: Dataset, keyword: str) -> list[float]:
    """Read the numbers of an element; none where it is missing, empty, or holds anything but finite numbers.

    Decimal commas count as points: some programs write numbers as their user's country does.
    """
    try:
        value = tags.get(keyword)
    except Exception:  # pydicom's on text that is no number; the list is open
        value = tags.get_item(keyword).value
    if isinstance(value, bytes) and tags.get_item(keyword).VR in ("US", "SS", "US or SS", "UN", "OW"):
        value = np.frombuffer(value[: len(value) // 2 * 2], "<u2").tolist()
    elif isinstance(value, bytes):
        value = value.decode("latin-1").split("\\")
    if value is None or value == "":
        return []
    several = not isinstance(value, str) and isinstance(value, Iterable)
    try:
        found = [float(str(one).replace(",", ".")) for one in (value if several else [value])]
    except ValueError:
        return []
    return found if np.isfinite(found).all() else []


def _number(tags: Dataset, keyword: str) -> float | None:
    """Read the first number of an element, None where `_numbers` finds none."""
    return next(iter(_numbers(tags, keyword)), None)


def _word(tags: Dataset, keyword: str) -> str:
    """Read the text of an element in capitals, empty where it is missing."""
    return str(tags.get(keyword) or "").strip(" \0").upper()


def _is_ct(tags: Dataset) -> bool:
    """Say whether a file is CT, by the modality or, where that says nothing, by the kind of object (SOP class)."""
    kind = _word(tags, "Modality")
    return kind == "CT" or (kind in UNSPECIFIC and _word(tags, "SOPClassUID") in CT_CLASSES)


def _check_kind(tags: Dataset, modality: str | None) -> None:
    kind = "CT" if _is_ct(tags) else _word(tags, "Modality")
    if modality and kind not in (*UNSPECIFIC, *MODALITIES[modality]):
        _refuse_modality(kind, modality)
    if OVERVIEWS & {word.strip().upper() for word in map(str, _several(tags.get("ImageType")))}:
        raise ImageRefused(
            "it is the localizer (scout) of a CT series. Choose a slice through the lungs.", "localizer"
        )
    if _word(tags, "PresentationIntentType") == "FOR PROCESSING":
        raise ImageRefused(
            "it is raw detector data (FOR PROCESSING). Choose the picture FOR PRESENTATION.", "raw"
        )
    if modality == "xray" and _is_lateral(tags):
        raise ImageRefused(
            "by its DICOM header it is a lateral or oblique view. Choose the frontal film (PA or AP).",
            "lateral",
        )


def _refuse_modality(kind: str, modality: str) -> None:
    """Refuse a file of another modality, named only where it is one of the standard's: anything can stand there."""
    known = kind in KNOWN_MODALITIES
    raise ImageRefused(
        f"by its DICOM header it is of {f'modality {kind}' if known else 'another modality'}, and this model reads "
        f"{', '.join(MODALITIES[modality])}. Choose the model for it, or another file.",
        "other_modality",
        kind=kind if known else "?",
    )


def _several(value: object) -> list:
    if value is None:
        return []
    return [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)


def _is_lateral(tags: Dataset) -> bool:
    """Say whether a view is lateral or oblique, by view position (PS3.3 C.8.1.1) or view code (PS3.16 CID 4010).

    A decubitus film is a frontal view.
    """
    meanings = [str(item.get("CodeMeaning") or "").lower() for item in tags.get("ViewCodeSequence") or []]
    coded = any(
        ("lateral" in text or "oblique" in text or "sagittal" in text) and "decubitus" not in text
        for text in meanings
    )
    return coded or " ".join(_word(tags, "ViewPosition").replace("_", " ").split()) in LATERAL_VIEWS


def _tags_of_frame(header: Header, index: int) -> Dataset:
    """Collect the elements that count for one frame, those of its groups among them; the header stays as it was."""
    each, shared = "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"
    groups = [
        *(header.tags.get(shared) or [])[:1],
        *(header.tags.get(each) or [])[index : index + 1],
    ]
    tags = Dataset()
    tags.update({tag: element for tag, element in header.tags.items() if tag not in _GROUPS})
    for group in groups:
        for name in GROUPED:
            for item in group.get(name) or []:
                tags.update(item)
        for item in group.get("CTImageFrameTypeSequence") or []:
            tags.ImageType = [*_several(tags.get("ImageType")), *_several(item.get("FrameType"))]
    return tags


_GROUPS = frozenset(
    map(tag_for_keyword, ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"))
)


# ---- from the file to stored values


def _cells(stream: BinaryIO, header: Header, index: int) -> np.ndarray:
    """Read one frame as it lies in its cells: (H, W), or (H, W, 3) as RGB."""
    stream.seek(0)
    if header.tags.get("SamplesPerPixel", 1) not in (1, 3):
        raise ValueError("neither grey nor three colours")
    if header.syntax in codecs.READ:
        stream.seek(header.start)
        tag, vr = struct.unpack("<L2s", stream.read(6))
        if tag != 0x00107FE0:
            raise ValueError("no pixel data")
        stream.seek(
            6 if vr in (b"OB", b"OW", b"UN") else 2, 1
        )  # the length, as of undefined one, tells nothing
        offsets = [header.tags.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
        frame = get_frame(
            stream,
            index,
            number_of_frames=header.frames,
            extended_offsets=tuple(offsets) if all(offsets) else None,
        )
        return codecs.decoded(frame, header.syntax, header.tags)
    if header.frames > 1 and (one := _one_frame(stream, header, index)) is not None:
        return pixel_array(one, correct_unused_bits=False)
    if header.frames > 1 and header.syntax and header.syntax != uid.DeflatedExplicitVRLittleEndian:
        stream.seek(0)
        return pixel_array(stream, index=index, correct_unused_bits=False)  # reads this one frame of the file
    file = dcmread(stream, force=True, specific_tags=TAGS + PIXEL_TAGS)
    if not header.syntax:  # no file meta group: as pydicom found it to be written
        implicit, little = file.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        file.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return pixel_array(file, index=index, correct_unused_bits=False)


def _one_frame(stream: BinaryIO, header: Header, index: int) -> Dataset | None:
    """Make a data set with the pixels of one uncompressed frame, read alone; None where they are not whole bytes.

    pydicom would parse the whole header for each frame, which for an enhanced CT takes longer than the frame.
    """
    tags = header.tags
    bits = tags.Rows * tags.Columns * tags.get("SamplesPerPixel", 1) * tags.BitsAllocated
    plain = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian)
    if header.syntax not in plain or bits % 16 or tags.get("PhotometricInterpretation") == "YBR_FULL_422":
        return None
    stream.seek(header.start)
    (tag,) = struct.unpack("<I", stream.read(4))
    if tag != 0x00107FE0:  # group and element, as they lie: PixelData, not its kin of real numbers
        return None
    stream.seek(8 if header.syntax == uid.ExplicitVRLittleEndian else 4, 1)
    stream.seek(index * bits // 8, 1)
    pixels = stream.read(bits // 8)
    if len(pixels) < bits // 8:
        raise ValueError("too short")
    one = Dataset()
    one.update(tags)
    one.NumberOfFrames, one.file_meta = 1, FileMetaDataset()
    one.file_meta.TransferSyntaxUID = header.syntax
    one.add_new(0x7FE00010, "OW", pixels)
    return one


def _stored(cells: np.ndarray, tags: Dataset, syntax: str | None) -> np.ndarray:
    """Take the stored bits out of their cells (PS3.5, 8.1.1): the others may hold an overlay, or anything.

    Decoders of JPEG, JPEG-LS and JPEG 2000 have done so.
    """
    if cells.dtype.kind == "f" or syntax in (*codecs.JPEG, *codecs.JPEG_LS, *codecs.JPEG_2000, *codecs.HTJ2K):
        return cells
    width, bits = 8 * cells.itemsize, int(tags.BitsStored)
    high = int(_number(tags, "HighBit") or bits - 1)
    if tags.BitsAllocated == 1 or (bits == width and high == width - 1):
        return cells
    if not 0 < bits <= high + 1 <= width:
        raise ImageRefused(
            f"its header contradicts itself: {bits} bits stored up to bit {high} of {width}. Export it again.",
            "damaged",
        )
    unsigned = cells.view(f"u{cells.itemsize}") << (width - 1 - high)  # the stored bits now lie at the top
    return unsigned.view(cells.dtype) >> (width - bits)  # a signed number is shifted with its sign


def _padding(cells: np.ndarray, stored: np.ndarray, tags: Dataset) -> np.ndarray | None:
    """Find where padding lies, (H, W) bool, or None where the file names none (PS3.3 C.7.5.1.1.2).

    Looked for in whole cells and in the stored bits: in old files the padding value does not fit into the latter.
    """
    first = _number(tags, "PixelPaddingValue")
    if first is None or stored.dtype.kind == "f":
        return None
    last = _number(tags, "PixelPaddingRangeLimit")
    padded = np.zeros(stored.shape, bool)
    for values in (cells, stored):
        if values.dtype.kind not in "iu":
            continue
        # the elements may be written as unsigned where the pixels are signed, and the other way round
        ends = [
            int(np.array(int(end) % 2 ** (8 * values.itemsize), f"u{values.itemsize}").view(values.dtype))
            for end in (first, first if last is None else last)
        ]
        padded |= (values >= min(ends)) & (values <= max(ends))
    return padded


# ---- from stored values to grey levels


def _displayed(cells: np.ndarray, tags: Dataset, syntax: str | None, modality: str | None) -> np.ndarray:
    """Show cells (H, W) as a viewer does, uint8."""
    stored = _stored(cells, tags, syntax)
    padded = _padding(cells, stored, tags)
    if tags.BitsAllocated == 1:
        stored = stored.astype(bool)
    values = _rescaled(stored, tags)
    inside = None if padded is None or padded.all() else ~padded
    if _in_hounsfield(values, inside, tags, modality):
        grey = lung_window(values)
    else:
        if inside is not None:
            values = np.where(inside, values, values[inside].min())
        grey = _windowed(values, inside, tags)
        if grey is None:
            grey = to_8_bit(values, inside)
        grey = 255 - grey if _word(tags, "PhotometricInterpretation") == "MONOCHROME1" else grey
    return grey if padded is None else np.where(padded, np.uint8(0), grey)


def _rescaled(stored: np.ndarray, tags: Dataset) -> np.ndarray:
    """Apply the modality LUT, or slope and intercept (PS3.3 C.11.1); what is missing or unusable does nothing."""
    for item in tags.get("ModalityLUTSequence") or []:
        if (table := _lookup_table(item, signed=stored.dtype.kind == "i")) is not None:
            return table.values[np.clip(stored.astype(np.int64) - table.first, 0, len(table.values) - 1)]
    slope, intercept = _number(tags, "RescaleSlope") or 1.0, _number(tags, "RescaleIntercept") or 0.0
    return stored if (slope, intercept) == (1, 0) else stored * slope + intercept


class _Table(NamedTuple):
    """A look-up table: `values` (float64), of which the first is for `first` and everything below."""

    first: int
    values: np.ndarray
    bits: int


def _lookup_table(item: Dataset, signed: bool) -> _Table | None:
    """Read a LUT (PS3.3 C.11.1.1 and C.11.2.1.1); None where it is empty or shorter than it declares."""
    descriptor = [int(number) for number in _numbers(item, "LUTDescriptor")]
    if len(descriptor) != 3:
        return None
    entries, first, bits = descriptor[0] % 2**16 or 2**16, descriptor[1], descriptor[2]
    data = item.get("LUTData")
    if data is None or (not isinstance(data, bytes) and not _several(data)):
        return None
    if not isinstance(data, bytes):
        data = np.array(_several(data)).astype("<u2").tobytes()
    if len(data) >= 2 * entries:
        values = np.frombuffer(data, "<u2", entries)
    elif len(data) >= entries and bits <= 8:
        values = np.frombuffer(data, np.uint8, entries)  # two entries in a word
    else:
        return None
    return _Table(first - 2**16 if signed and first >= 2**15 else first, values.astype(np.float64), bits)


def _in_hounsfield(
    values: np.ndarray, inside: np.ndarray | None, tags: Dataset, modality: str | None
) -> bool:
    """Say whether rescaled values are HU: because the file says so, or because they can be nothing else.

    Raises:
        ImageRefused: CT whose values are not HU, or whose file does not say how they become HU; HU where an
            X-ray is expected.
    """
    ct, kind = _is_ct(tags), _word(tags, "Modality")
    if not ct and kind not in UNSPECIFIC:
        return False
    unit = _word(tags, "RescaleType")
    if unit not in ("", "HU", "US"):  # US: unspecified
        if not ct and modality != "ct":
            return False
        raise ImageRefused(
            "its values are not Hounsfield units but, by its RescaleType, another quantity. Export the CT slice "
            "itself.",
            "no_hounsfield",
        )
    slope, intercept = _number(tags, "RescaleSlope") or 1.0, _number(tags, "RescaleIntercept")
    rescaled = intercept is not None and (slope, intercept) != (1, 0)
    deep = tags.BitsStored > 8
    # 8 bits as they were captured from a screen; some captures keep the unit of the slice they show
    if not deep and not rescaled:
        return False
    shown = values if inside is None else values[inside]
    airy = float((shown < LUNG).mean()) >= AIR_SHARE
    if unit == "HU" or (ct and rescaled):
        found = _reaches_lung_and_tissue(values.dtype, tags, slope, intercept or 0.0) and (rescaled or airy)
    elif ct:
        found = airy
    else:
        found = deep and airy and ((intercept or 0) <= CT_INTERCEPT or not rescaled)
    if found and modality == "xray":
        _refuse_modality("CT", modality)
    if not found and (ct or unit == "HU" or (modality == "ct" and deep)):
        raise ImageRefused(
            "the file does not say how its values become Hounsfield units (rescale slope, intercept and type). "
            "Export the original CT slice.",
            "no_hounsfield",
        )
    return found


def _reaches_lung_and_tissue(dtype: np.dtype, tags: Dataset, slope: float, intercept: float) -> bool:
    """Say whether the bits of the file can hold HU from lung to soft tissue at all."""
    if "FloatPixelData" in tags or "DoubleFloatPixelData" in tags:
        return True
    bits = int(tags.BitsStored)
    low, high = (
        (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if tags.get("PixelRepresentation") else (0, 2**bits - 1)
    )
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return ends[0] <= LUNG and ends[1] >= TISSUE


def _windowed(values: np.ndarray, inside: np.ndarray | None, tags: Dataset) -> np.ndarray | None:
    """Apply the first usable VOI LUT, else the first usable window, of the file -> uint8.

    Not usable is what is incomplete or leaves one grey level. None where there is none.
    """
    for item in tags.get("VOILUTSequence") or []:
        table = _lookup_table(item, signed=bool(values.min() < 0))
        if table is None:
            continue
        last = len(table.values) - 1
        grey = table.values[np.clip(np.rint(values) - table.first, 0, last).astype(np.intp)]
        top = 2**table.bits - 1
        if table.values.max() <= top / 4:  # some tables use fewer bits than they declare
            top = 2 ** int(table.values.max()).bit_length() - 1
        if (grey := _if_it_shows(grey * (255 / max(top, 1)), inside)) is not None:
            return grey
    capture = tags.BitsStored <= 8 and _is_ct(tags)
    for center, width in zip(_numbers(tags, "WindowCenter"), _numbers(tags, "WindowWidth"), strict=False):
        if capture and not (center - width / 2 >= 0 and center + width / 2 <= 256):
            continue  # of the slice in HU that was captured, not of these grey levels
        grey = _through_window(values, center, width, _word(tags, "VOILUTFunction"))
        if grey is not None and (grey := _if_it_shows(grey, inside)) is not None:
            return grey
    return None


def _through_window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray | None:
    """Apply a window by the formulas of PS3.3 C.11.2.1.2 and C.11.2.1.3; None where its width makes no sense."""
    values = values.astype(np.float64)
    if function == "SIGMOID" and width > 0:
        with np.errstate(over="ignore"):  # far outside
            return 255 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - center) / width + 0.5, 0, 1) * 255
    if function not in ("SIGMOID", "LINEAR_EXACT") and width == 1:
        return np.where(values > center - 0.5, 255.0, 0.0)
    if function not in ("SIGMOID", "LINEAR_EXACT") and width > 1:
        return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1) * 255
    return None


def _if_it_shows(grey: np.ndarray, inside: np.ndarray | None) -> np.ndarray | None:
    """Round grey levels to uint8, None where only one is left."""
    shown = grey if inside is None else grey[inside]
    if not shown.min() < shown.max():
        return None
    return np.rint(grey.clip(0, 255)).astype(np.uint8)


def _with_square_pixels(grey: np.ndarray, tags: Dataset) -> np.ndarray:
    """Make pixels square by the first element that says how long their sides are (PS3.3 10.7.1.3, C.7.6.3.1.7)."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        high, wide = [*_numbers(tags, keyword), 0, 0][:2]
        if high > 0 and wide > 0:
            return with_square_pixels(grey, high, wide)
    return grey


def with_square_pixels(grey: np.ndarray, high: float, wide: float) -> np.ndarray:
    """Enlarge a picture, bilinearly, along the side on which pixels are longer: (H, W) uint8 -> uint8.

    Raises:
        ImageRefused: one side is more than `MAX_STRETCH` times the other.
    """
    ratio = high / wide
    if abs(ratio - 1) <= SQUARE:
        return grey
    if not 1 / MAX_STRETCH <= ratio <= MAX_STRETCH:
        raise ImageRefused(
            f"its pixels are by far not square ({high:g} high, {wide:g} wide). Export it with square pixels.",
            "not_square",
        )
    rows, columns = grey.shape
    width, height = round(columns / min(ratio, 1)), round(rows * max(ratio, 1))
    check_size(width, height)
    return np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR))
