"""DICOM files: exact grey levels, kinds that mislead, refusals in words."""

import io
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless

from hub_model import dicom
from hub_model.dicom import lung_window
from hub_model.grey import ImageRefused
from hub_model.images import read_image
from tests.bad_files import write_dicom
from tests.pictures import GREY, RAMP, encoded, stretched, values

ROOT = Path(__file__).parents[2]


def test_importing_asks_no_server():
    """A version of pydicom fetched a picture as soon as it was imported."""
    code = (
        "import socket, sys\n"
        "def asked(*where, **_): sys.exit(f'asked for {where}')\n"
        "socket.getaddrinfo = socket.socket.connect = socket.create_connection = asked\n"
        "import hub_model, hub_model.dicom"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_deflated_dicom_may_not_inflate_without_limit(monkeypatch, tmp_path):
    path = get_testdata_file("image_dfl.dcm")
    assert read_image(path).size == (512, 512)
    monkeypatch.setattr(dicom, "MAX_BYTES", 2**17)
    with pytest.raises(ImageRefused, match="unpacked it exceeds"):
        read_image(path)


def test_no_room_is_made_for_what_a_header_only_names(tmp_path):
    """An element of 4 GB in a file of some kB, wherever it stands."""
    whole = write_dicom(tmp_path / "a.dcm", GREY).read_bytes()
    long = b"\xff\xff\xff\x7f"
    first, pixels = whole.index(b"\x02\x00\x01\x00OB\0\0") + 8, whole.index(b"\xe0\x7f\x10\x00")
    for broken in (
        whole[:first] + long + whole[first + 4 :],
        whole[:pixels] + b"\x10\x00\x01\x40UN\0\0" + long + whole[pixels:],
    ):
        (tmp_path / "b.dcm").write_bytes(broken)
        tracemalloc.start()
        with pytest.raises(ImageRefused):
            read_image(tmp_path / "b.dcm")
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
        tracemalloc.stop()


def test_enhanced_multi_frame_keeps_rescale_and_window_per_frame(tmp_path):
    def groups(sequence: str, **tags) -> list[Dataset]:
        outer, inner = Dataset(), Dataset()
        for keyword, value in tags.items():
            setattr(inner, keyword, value)
        setattr(outer, sequence, [inner])
        return [outer]

    frames = np.stack([RAMP, RAMP])
    intercepts = (-1350, -1000)
    rescales = [
        groups("PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=b, RescaleType="HU")[0]
        for b in intercepts
    ]
    path = write_dicom(tmp_path / "ct.dcm", frames, Modality="CT", PerFrameFunctionalGroupsSequence=rescales)
    for index, intercept in enumerate(intercepts):
        assert np.array_equal(values(path, frame=index), lung_window(RAMP.astype(int) + intercept))
    window = groups("FrameVOILUTSequence", WindowCenter=800.5, WindowWidth=1001)
    path = write_dicom(tmp_path / "dx.dcm", frames, Modality="DX", SharedFunctionalGroupsSequence=window)
    assert values(path, frame=1).flat[[300, 800, 1300]].tolist() == [0, 128, 255]


# ---- DICOM grey levels, by hand


def test_lung_window_by_hand():
    hu = [-3000, -1350, -1347, -1000, -600, 0, 150, 3000]
    assert lung_window(np.array(hu)).tolist() == [0, 0, 1, 60, 128, 230, 255, 255]


def test_ct_is_shown_in_the_lung_window(tmp_path):
    stored = RAMP.astype(np.int16)
    expected = lung_window(stored * 2.0 - 1500)
    rescale = {"Modality": "CT", "RescaleSlope": 2, "RescaleIntercept": -1500}
    assert np.array_equal(values(write_dicom(tmp_path / "a.dcm", stored, **rescale)), expected)
    soft = {"WindowCenter": 40, "WindowWidth": 400, **rescale}
    assert np.array_equal(values(write_dicom(tmp_path / "b.dcm", stored, **soft)), expected)
    inverse = {"PhotometricInterpretation": "MONOCHROME1", **rescale}  # HU mean the same however displayed
    assert np.array_equal(values(write_dicom(tmp_path / "c.dcm", stored, **inverse)), expected)


def test_ct_that_is_not_in_hounsfield_units(tmp_path):
    capture = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0}
    assert np.array_equal(values(write_dicom(tmp_path / "a.dcm", GREY, **capture)), GREY)
    window = {"WindowCenter": 40, "WindowWidth": 400}  # of the slice that was captured
    assert np.array_equal(values(write_dicom(tmp_path / "b.dcm", GREY, **capture, **window)), GREY)
    window = {"WindowCenter": 128, "WindowWidth": 129}
    shown = values(write_dicom(tmp_path / "c.dcm", GREY, **capture, **window))
    assert np.array_equal(shown, np.rint(np.clip((GREY - 127.5) / 128 + 0.5, 0, 1) * 255))
    for unit in ("ED", "Z_EFF", "MGML"):
        with pytest.raises(ImageRefused, match="not Hounsfield units"):
            read_image(write_dicom(tmp_path / "d.dcm", RAMP, **{**capture, "RescaleType": unit}))


def test_real_ct_against_its_own_numbers():
    file = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    hu = file.pixel_array.astype(float) - 1024
    assert np.array_equal(values(file.filename), np.rint((hu.clip(-1350, 150) + 1350) / 1500 * 255))


def test_monochrome1_is_turned(tmp_path):
    for name, array, options in (
        ("a.dcm", GREY, {}),
        ("b.dcm", RAMP, {}),
        ("c.dcm", RAMP, {"WindowCenter": 500, "WindowWidth": 300}),
    ):
        plain = values(write_dicom(tmp_path / name, array, Modality="DX", **options))
        options["PhotometricInterpretation"] = "MONOCHROME1"
        turned = values(write_dicom(tmp_path / name, array, Modality="DX", **options))
        assert np.array_equal(turned, 255 - plain)
    assert np.array_equal(values(tmp_path / "a.dcm"), 255 - GREY.astype(int))


def test_8_bit_films_stay_as_they_are(tmp_path):
    for tags in ({}, {"RescaleSlope": 1, "RescaleIntercept": 0}, {"BitsAllocated": 8}):
        assert np.array_equal(values(write_dicom(tmp_path / "a.dcm", GREY, Modality="DX", **tags)), GREY)


def test_films_without_a_window_are_stretched(tmp_path):
    assert np.array_equal(values(write_dicom(tmp_path / "a.dcm", RAMP, Modality="DX")), stretched(RAMP))
    rescaled = write_dicom(tmp_path / "b.dcm", RAMP, Modality="CR", RescaleSlope=-1, RescaleIntercept=1599)
    assert np.array_equal(values(rescaled), stretched(1599.0 - RAMP))
    padded = RAMP.copy()
    padded[:, :20] = 60_000
    path = write_dicom(tmp_path / "c.dcm", padded, Modality="DX", PixelPaddingValue=60_000)
    assert np.array_equal(values(path)[:, 20:], stretched(RAMP[:, 20:]))


@pytest.mark.parametrize(
    "function,expected",
    [  # PS3.3 C.11.2.1.2 and C.11.2.1.3, center 800, width 401, at 0, 600, 700, 800, 900, 1000, 1599
        (
            None,
            [0, 0, 64, 128, 192, 255, 255],
        ),  # ((x - 799.5) / 400 + 0.5) * 255: 700 -> 64.07, 800 -> 127.8, ...
        ("LINEAR", [0, 0, 64, 128, 192, 255, 255]),
        (
            "LINEAR_EXACT",
            [0, 0, 64, 128, 191, 255, 255],
        ),  # ((x - 800) / 401 + 0.5) * 255: 600 -> 0.3, 900 -> 191.1
        ("SIGMOID", [0, 31, 69, 128, 186, 224, 255]),  # 255 / (1 + exp(-4 (x - 800) / 401))
    ],
)
def test_window_functions(tmp_path, function, expected):
    tags = {"WindowCenter": [800, 1], "WindowWidth": [401, 2], "Modality": "DX"}  # the first of two is meant
    if function:
        tags["VOILUTFunction"] = function
    result = values(write_dicom(tmp_path / "a.dcm", RAMP, **tags))
    assert result.flat[[0, 600, 700, 800, 900, 1000, 1599]].tolist() == expected


def test_window_applies_to_rescaled_values(tmp_path):
    rescale = {"RescaleSlope": 0.5, "RescaleIntercept": 100}
    path = write_dicom(
        tmp_path / "a.dcm", RAMP, Modality="DX", WindowCenter=500.5, WindowWidth=401, **rescale
    )
    result = values(path)
    assert result.flat[[400, 800, 1200]].tolist() == [0, 128, 255]  # stored 800 is 500


@pytest.mark.parametrize("window", [(800, 0), (800, -5), (90_000, 100)])
def test_an_unusable_window_is_passed_over(tmp_path, window):
    path = write_dicom(tmp_path / "a.dcm", RAMP, Modality="DX", WindowCenter=window[0], WindowWidth=window[1])
    assert np.array_equal(values(path), stretched(RAMP))


@pytest.mark.parametrize("bits,top", [(8, 255), (12, 4095), (16, 1023)])
def test_voi_lut(tmp_path, bits, top):
    """1,000 entries from stored value 300 on, falling; more entries than an 8-bit index could reach."""
    table = np.linspace(top, 0, 1000).round().astype(np.uint16)
    item = Dataset()
    item.LUTDescriptor = [1000, 300, bits]
    item.LUTData = table.tolist()
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    window = {"WindowCenter": 10, "WindowWidth": 5}  # the table is meant to win
    path = write_dicom(tmp_path / "a.dcm", RAMP, Modality="DX", VOILUTSequence=[item], **window)
    expected = np.rint(table[np.clip(RAMP.astype(int) - 300, 0, 999)] * (255 / top))
    assert np.array_equal(values(path), expected)


def sample(name: str) -> str:
    """One of pydicom's own files; some came with later versions."""
    return get_testdata_file(name) or pytest.skip(f"pydicom {pydicom.__version__} does not bring {name}")


def test_palette_colour_dicom():
    with pytest.raises(ImageRefused, match="in colour"):
        read_image(sample("examples_palette.dcm"))


@pytest.mark.parametrize(
    "name", ["CT_small", "MR_small", "693_J2KI", "examples_overlay", "image_dfl", "SC_rgb_jpeg", "JPEG2000"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_real_dicom_files_open(name):
    path = sample(f"{name}.dcm")
    result = values(path)
    file = pydicom.dcmread(path)
    assert result.shape == (file.Rows, file.Columns) and result.std() > 0.5


def test_transfer_syntaxes_agree():
    """One real picture written in six ways: little and big endian, implicit, RLE, JPEG 2000, padded."""
    plain = values(get_testdata_file("MR_small.dcm"))
    for way in ("implicit", "bigendian", "expb", "RLE", "jp2klossless", "padded"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the padding
            assert np.array_equal(values(get_testdata_file(f"MR_small_{way}.dcm")), plain), way


def as_jpeg2000(path: Path, frame: bytes) -> Path:
    file = pydicom.dcmread(write_dicom(path, GREY))
    file.file_meta.TransferSyntaxUID = JPEG2000Lossless
    file.PixelData = encapsulate([frame])
    file["PixelData"].is_undefined_length = True
    file.save_as(path)
    return path


def test_jpeg2000_wrapped_in_a_jp2_file(tmp_path, monkeypatch):
    """Against the standard, but seen; pydicom walks such a file's boxes, and never leaves an empty one."""
    wrapped = encoded(Image.fromarray(GREY), "JPEG2000")
    assert wrapped[4:8] == b"jP  "
    assert np.array_equal(values(as_jpeg2000(tmp_path / "a.dcm", wrapped)), GREY)
    endless = as_jpeg2000(tmp_path / "b.dcm", wrapped[:12] + bytes(100))
    monkeypatch.setattr(dicom, "pixel_array", lambda *_, **__: pytest.fail("handed to pydicom"))
    with pytest.raises(ImageRefused, match="cannot be decoded"):
        read_image(endless)


@pytest.mark.parametrize("little,implicit", [(True, True), (True, False), (False, False)])
def test_dicom_without_file_meta(tmp_path, little, implicit):
    file = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", RAMP, Modality="DX"))
    if not little:
        file.PixelData = RAMP.astype(">u2").tobytes()
    bare = Dataset({element.tag: element for element in file})
    buffer = io.BytesIO()
    dcmwrite(buffer, bare, implicit_vr=implicit, little_endian=little)
    assert np.array_equal(values(buffer.getvalue()), stretched(RAMP))


def test_kinds_that_are_refused(tmp_path):
    def refused(message: str, modality: str | None = None, **tags) -> None:
        with pytest.raises(ImageRefused, match=message):
            read_image(write_dicom(tmp_path / "a.dcm", RAMP, **tags), modality=modality)

    refused("localizer", Modality="CT", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    refused("FOR PROCESSING", Modality="DX", PresentationIntentType="FOR PROCESSING")
    refused("modality MR, and this model reads CR, DX, RG", modality="xray", Modality="MR")
    refused("modality DX, and this model reads CT", modality="ct", Modality="DX")
    for tags in ({"Modality": "DX"}, {"Modality": "OT"}, {}):
        assert read_image(write_dicom(tmp_path / "a.dcm", RAMP, **tags), modality="xray").mode == "L"
    assert read_image(tmp_path / "a.dcm").mode == "L"
    with pytest.raises(KeyError):
        read_image(tmp_path / "a.dcm", modality="mri")


# ---- CT is shown in the lung window, or it is said what is missing

HU = np.linspace(-1000, 400, 4096).reshape(64, 64).round().astype(int)
SOFT = {"WindowCenter": 40, "WindowWidth": 400}
RESCALE = {"RescaleSlope": 1, "RescaleIntercept": -1024}
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
STORED = (HU + 1024).astype(np.uint16)


@pytest.mark.parametrize(
    "pixels,tags",
    [
        (HU.astype(np.int16), {"Modality": "CT"}),
        (HU.astype(np.int16), {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0}),
        (HU.astype(np.int16), {"Modality": "CT", "RescaleSlope": None, "RescaleIntercept": None}),
        (HU.astype(np.int16), {"Modality": "CT", "BitsStored": 12, "HighBit": 11}),
        (HU.astype(np.int16), {"Modality": "OT", "RescaleType": "HU"}),
        (HU.astype(np.int16), {}),
        (STORED, {"Modality": "CT", "RescaleIntercept": -1024}),
        (STORED, {"Modality": "CT", "RescaleSlope": None, "RescaleIntercept": -1024}),
        (STORED, {"Modality": "CT", "RescaleType": "US", **RESCALE}),
        (STORED, {"Modality": "OT", "RescaleType": "HU", **RESCALE}),
        (STORED, {"Modality": "SC", "RescaleType": "HU", **RESCALE}),
        (STORED, {"RescaleType": "HU", **RESCALE}),
        (STORED, {"Modality": "", "RescaleType": "HU", **RESCALE}),
        (STORED, {"Modality": "OT", **RESCALE}),
        (STORED, RESCALE),
        (STORED, {"Modality": "OT", "SOPClassUID": CT_CLASS, **RESCALE}),
        (STORED, {"SOPClassUID": CT_CLASS + ".1", "RescaleIntercept": -1024}),
        (STORED, {"Modality": "CT", "PhotometricInterpretation": "MONOCHROME1", **RESCALE}),
        (STORED * 2, {"Modality": "CT", "RescaleSlope": 0.5, "RescaleIntercept": -1024}),
    ],
    ids=str,
)
def test_whatever_is_in_hounsfield_units_is_shown_in_the_lung_window(tmp_path, pixels, tags):
    for window in ({}, SOFT):
        path = write_dicom(tmp_path / "a.dcm", pixels, **tags, **window)
        assert np.array_equal(values(path), lung_window(HU))
        assert np.array_equal(values(path, modality="ct"), lung_window(HU))
        with pytest.raises(ImageRefused, match="modality CT, and this model reads CR, DX, RG"):
            read_image(path, modality="xray")


def test_8_bit_ct_in_hounsfield_units(tmp_path):
    """As a lossy archive has it: slope 8, so that 255 steps reach from air to bone."""
    coarse = np.clip(np.rint((HU + 1024) / 8), 0, 255).astype(np.uint8)
    rescale = {"Modality": "CT", "RescaleSlope": 8, "RescaleIntercept": -1024}
    for tags in (rescale, {**rescale, "RescaleType": "HU"}):
        shown = values(write_dicom(tmp_path / "a.dcm", coarse, **tags, **SOFT))
        assert np.array_equal(shown, lung_window(coarse * 8.0 - 1024))
        assert abs(shown.mean() - 174.7) < 3


@pytest.mark.parametrize(
    "pixels,tags",
    [
        (STORED, {"Modality": "CT"}),
        (STORED, {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0}),
        (STORED, {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "HU"}),
        (STORED, {"Modality": "CT", "RescaleSlope": 1}),
        (STORED, {"Modality": "CT", "RescaleSlope": None, "RescaleIntercept": None}),
        (STORED, {"Modality": "OT", "RescaleType": "HU"}),
        (
            (STORED // 8).astype(np.uint8),
            {"Modality": "CT", **RESCALE},
        ),  # -1024..-769: a capture with old tags
    ],
    ids=str,
)
def test_ct_that_does_not_say_its_unit_is_refused(tmp_path, pixels, tags):
    for window in ({}, SOFT):
        with pytest.raises(
            ImageRefused, match="does not say how its values become Hounsfield units"
        ) as refusal:
            read_image(write_dicom(tmp_path / "a.dcm", pixels, **tags, **window))
        assert refusal.value.reason.code == "no_hounsfield"


def test_a_deep_capture_is_refused_where_ct_is_expected_only(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, Modality="OT", WindowCenter=800.5, WindowWidth=1001)
    assert values(path, modality="xray").flat[[300, 800, 1300]].tolist() == [0, 128, 255]
    with pytest.raises(ImageRefused, match="does not say how its values become"):
        read_image(path, modality="ct")


def test_films_are_not_taken_for_ct(tmp_path):
    film = {"Modality": "DX", "RescaleType": "HU", **RESCALE}  # copied from somewhere
    assert np.array_equal(values(write_dicom(tmp_path / "a.dcm", STORED, **film)), stretched(STORED - 1024.0))


# ---- padding

FILM = np.linspace(200, 3800, 4096).reshape(64, 64).astype(np.uint16)
TWELVE = {"Modality": "DX", "BitsStored": 12, "HighBit": 11}


@pytest.mark.parametrize("window", [{"WindowCenter": 2000, "WindowWidth": 3600}, {}], ids=str)
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("padding", [0, 4095, 63536, -2000])
def test_padding_is_black_and_changes_nothing_else(tmp_path, kind, padding, window):
    """At either end, and outside the stored bits as old scanners wrote it, unsigned or signed."""
    tags = {**TWELVE, **window, "PhotometricInterpretation": kind}
    padded = FILM.copy()
    padded[:, :8] = padding % 2**16
    alone = values(write_dicom(tmp_path / "a.dcm", np.ascontiguousarray(FILM[:, 8:]), **tags))
    path = write_dicom(tmp_path / "b.dcm", padded)
    file = pydicom.dcmread(path)
    for keyword, value in tags.items():
        setattr(file, keyword, value)
    file.add_new(0x00280120, "SS" if padding < 0 else "US", padding)
    file.save_as(path)
    shown = values(path)
    assert shown[:, :8].max() == 0 and np.array_equal(shown[:, 8:], alone)


def test_a_range_of_padding(tmp_path):
    padded = FILM.copy()
    padded[:, :8] = np.arange(8) * 10
    alone = values(write_dicom(tmp_path / "a.dcm", np.ascontiguousarray(FILM[:, 8:]), **TWELVE))
    for ends in ((0, 100), (100, 0)):
        tags = {**TWELVE, "PixelPaddingValue": ends[0], "PixelPaddingRangeLimit": ends[1]}
        shown = values(write_dicom(tmp_path / "b.dcm", padded, **tags))
        assert shown[:, :8].max() == 0 and np.array_equal(shown[:, 8:], alone) and shown[0, 8] == 0
    del tags["PixelPaddingValue"]  # a limit alone names nothing
    assert values(write_dicom(tmp_path / "c.dcm", padded, **tags))[0, 7] < values(tmp_path / "c.dcm")[0, 8]


def test_padding_of_a_signed_ct_in_implicit_vr(tmp_path):
    """Without VRs the padding value comes as bytes; -2000 in 16 signed bits, at the bright end of nothing."""
    padded = HU.astype(np.int16)
    padded[:, :8] = 3000
    path = write_dicom(tmp_path / "a.dcm", padded, Modality="CT", RescaleSlope=1, RescaleIntercept=0)
    file = pydicom.dcmread(path)
    file.add_new(0x00280120, "SS", 3000)
    file.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    file.save_as(path)
    shown = values(path)
    assert shown[:, :8].max() == 0 and np.array_equal(shown[:, 8:], lung_window(HU)[:, 8:])


def test_nothing_but_padding_is_black(tmp_path):
    tags = {**TWELVE, "PixelPaddingValue": 7, "PhotometricInterpretation": "MONOCHROME1"}
    assert values(write_dicom(tmp_path / "a.dcm", np.full_like(FILM, 7), **tags)).max() == 0


# ---- elements that are empty, broken or written in odd ways

WINDOW = {"WindowCenter": 2000, "WindowWidth": 3600}
WINDOWED = np.rint(np.clip((FILM - 1999.5) / 3599 + 0.5, 0, 1) * 255)


def test_empty_rescale_elements_are_as_none(tmp_path):
    for slope, intercept in ((None, None), (1, None), (None, 0), (0, 0), (0, None)):
        tags = {**TWELVE, **WINDOW, "RescaleSlope": slope, "RescaleIntercept": intercept}
        assert np.array_equal(values(write_dicom(tmp_path / "a.dcm", FILM, **tags)), WINDOWED)
    only = {**TWELVE, "RescaleSlope": None, "RescaleIntercept": 50, "WindowCenter": 2050, "WindowWidth": 3600}
    assert np.array_equal(values(write_dicom(tmp_path / "b.dcm", FILM, **only)), WINDOWED)
    only = {**TWELVE, "RescaleSlope": 2, "WindowCenter": 4000, "WindowWidth": 7200}
    assert np.abs(values(write_dicom(tmp_path / "c.dcm", FILM, **only)) - WINDOWED).max() <= 1


def table(entries: int | None, first: int, bits: int, data: object, vr: str = "US") -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "US", None if entries is None else [entries, first, bits])
    item.add_new(0x00283006, vr, data)
    return item


RAMP_OF_8_BITS = (np.arange(4096) // 16).astype(np.uint8)
UNUSABLE = {
    "empty": table(None, 0, 0, None, "OW"),
    "without data": table(4096, 0, 12, None),
    "short": table(4096, 0, 12, list(range(100))),
    "short packed": table(4096, 0, 8, bytes(100), "OW"),
    "constant": table(4096, 0, 12, [7] * 4096),
    "missing elements": Dataset(),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_voi_lut_is_passed_over(tmp_path, name):
    path = write_dicom(tmp_path / "a.dcm", FILM, **TWELVE, **WINDOW, VOILUTSequence=[UNUSABLE[name]])
    assert np.array_equal(values(path), WINDOWED)
    whole = table(4096, 0, 8, RAMP_OF_8_BITS.astype(int).tolist())
    path = write_dicom(tmp_path / "b.dcm", FILM, **TWELVE, **WINDOW, VOILUTSequence=[UNUSABLE[name], whole])
    assert np.array_equal(values(path), FILM // 16)


@pytest.mark.parametrize(
    "item,shown",
    [
        (table(4096, 0, 8, RAMP_OF_8_BITS.tobytes(), "OW"), FILM // 16),
        (table(4096, 0, 8, RAMP_OF_8_BITS.view("<u2").tolist()), FILM // 16),
        (table(4096, 0, 8, RAMP_OF_8_BITS.astype("<u2").tobytes(), "OW"), FILM // 16),
        (table(4096, 0, 12, list(range(4096))), np.rint(FILM * (255 / 4095))),
        (
            table(4096, 0, 12, [*range(4096), 0, 0]),
            np.rint(FILM * (255 / 4095)),
        ),  # longer than declared
        (table(3000, 500, 12, list(range(3000))), np.rint(np.clip(FILM - 500.0, 0, 2999) * (255 / 4095))),
        (table(0, 0, 16, list(range(2**16))), np.rint(FILM * (255 / 4095))),  # 0 is 65536; 12 bits are used
    ],
    ids=["packed", "packed in words", "bytes", "ramp", "longer", "cut", "65536"],
)
def test_voi_luts_as_they_are_written(tmp_path, item, shown):
    if item.LUTDescriptor[0] == 0:
        item.LUTData = np.minimum(np.arange(2**16), 4095).tolist()
    path = write_dicom(tmp_path / "a.dcm", FILM, **TWELVE, **WINDOW, VOILUTSequence=[item])
    assert np.array_equal(values(path), shown)
    file = pydicom.dcmread(path)
    file.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    file.save_as(path)  # descriptor as bytes
    assert np.array_equal(values(path), shown)


def test_a_voi_lut_of_signed_values(tmp_path):
    signed = FILM.astype(np.int16) - 2000
    item = table(4000, -2000 % 2**16, 12, list(range(4000)))
    path = write_dicom(tmp_path / "a.dcm", signed, Modality="DX", VOILUTSequence=[item])
    assert np.array_equal(values(path), np.rint(FILM * (255 / 4095)))


def test_a_modality_lut(tmp_path):
    item = table(4096, 0, 16, (4095 - np.arange(4096)).tolist())
    item.ModalityLUTType = "US"
    turned = write_dicom(tmp_path / "a.dcm", FILM, **TWELVE, **WINDOW, ModalityLUTSequence=[item])
    assert np.array_equal(values(turned), np.rint(np.clip((4095 - FILM - 1999.5) / 3599 + 0.5, 0, 1) * 255))
    for broken in UNUSABLE.values():
        if "LUTData" not in broken or broken.LUTData != [7] * 4096:
            path = write_dicom(tmp_path / "b.dcm", FILM, **TWELVE, **WINDOW, ModalityLUTSequence=[broken])
            assert np.array_equal(values(path), WINDOWED)


def with_raw_elements(path: Path, *elements: tuple[int, bytes]) -> Path:
    """Insert decimal strings as they are before the pixels: pydicom would not write these."""
    data = path.read_bytes()
    place = data.index(b"\xe0\x7f\x10\x00")
    raw = b"".join(
        tag.to_bytes(4, "big")[1::-1]
        + tag.to_bytes(4, "big")[:1:-1]
        + b"DS"
        + len(text).to_bytes(2, "little")
        + text
        for tag, text in elements
    )
    path.write_bytes(data[:place] + raw + data[place:])
    return path


@pytest.mark.parametrize(
    "center,width,shown",
    [
        (b"2000,5", b"3601", np.rint(np.clip((FILM - 2000.0) / 3600 + 0.5, 0, 1) * 255)),
        (b"2000,5\\10", b"3601\\1 ", np.rint(np.clip((FILM - 2000.0) / 3600 + 0.5, 0, 1) * 255)),
        (b"2000", b"36e2", WINDOWED),
        (b"middle", b"3600", None),
        (b"2000", b"1.2.3 ", None),
        (b"NaN ", b"3600", None),
        (b"2000", b"inf ", None),
    ],
)
def test_numbers_written_as_text_is(tmp_path, center, width, shown):
    path = with_raw_elements(
        write_dicom(tmp_path / "a.dcm", FILM, **TWELVE), (0x00281050, center), (0x00281051, width)
    )
    assert np.array_equal(values(path), stretched(FILM) if shown is None else shown)


def test_a_rescale_with_decimal_commas(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", STORED, Modality="CT")
    with_raw_elements(path, (0x00281052, b"-1024,0 "), (0x00281053, b"1,0 "))
    assert np.array_equal(values(path), lung_window(HU))


@pytest.mark.parametrize(
    "center,width,function,shown",
    [
        ([5, 2000], [0, 3600], None, WINDOWED),  # the first that is usable
        (2000, 1, None, np.where(FILM > 1999.5, 255, 0)),
        (2000, 0.5, "LINEAR_EXACT", np.where(FILM > 2000, 255, np.where(FILM < 2000, 0, 128))),
        (2000, 0.5, None, None),
        (2000, -3600, "SIGMOID", None),
        (2000, 0, "LINEAR_EXACT", None),
        (2000, 3600, "BOGUS", WINDOWED),
    ],
)
def test_windows_at_the_edge(tmp_path, center, width, function, shown):
    tags = {
        "WindowCenter": center,
        "WindowWidth": width,
        **({"VOILUTFunction": function} if function else {}),
    }
    path = write_dicom(tmp_path / "a.dcm", FILM, **TWELVE, **tags)
    assert np.array_equal(values(path), stretched(FILM) if shown is None else shown)


# ---- bits


@pytest.mark.parametrize("bits,high", [(12, 15), (12, 13), (10, 11), (11, 10), (13, 15), (9, 8)])
@pytest.mark.parametrize("signed", [False, True])
def test_stored_bits_lie_where_the_header_says(tmp_path, bits, high, signed):
    """Anything may lie in the other bits of a cell: an overlay, say."""
    ramp = np.linspace(0, 2**bits - 1, 4096).reshape(64, 64).astype(np.uint16)
    empty = high + 1 - bits
    noise = np.random.default_rng(0).integers(0, 2**16, ramp.shape).astype(np.uint16)
    cells = (ramp << empty) | (noise & ~np.uint16((2**bits - 1) << empty))
    tags = {"Modality": "DX", "BitsStored": bits, "HighBit": high, "PixelRepresentation": int(signed)}
    meant = ramp.astype(int)
    if signed:
        meant = np.where(meant >= 2 ** (bits - 1), meant - 2**bits, meant)
    window = {"WindowCenter": int(meant.mean()), "WindowWidth": 2**bits}
    path = write_dicom(tmp_path / "a.dcm", cells, **tags, **window)
    expected = np.clip((meant - (int(meant.mean()) - 0.5)) / (2**bits - 1) + 0.5, 0, 1) * 255
    assert np.array_equal(values(path), np.rint(expected))


def test_bits_that_contradict_each_other(tmp_path):
    for bits, high in ((12, 5), (17, 16), (12, 16)):
        with pytest.raises(ImageRefused, match=r"contradicts itself|damaged"):
            read_image(write_dicom(tmp_path / "a.dcm", FILM, Modality="DX", BitsStored=bits, HighBit=high))


# ---- views, overviews, shape and order


@pytest.mark.parametrize("view", ["LL", "RL", "LATERAL", "lateral", "LLO", "RLO", "LEFT LATERAL", "L"])
def test_lateral_films_are_refused_with_a_word(tmp_path, view):
    path = write_dicom(tmp_path / "a.dcm", RAMP, Modality="DX", ViewPosition=view)
    with pytest.raises(ImageRefused, match=r"lateral or oblique view\. Choose the frontal film"):
        read_image(path, modality="xray")
    assert read_image(path).mode == "L"  # to look at it is another matter


def test_view_codes(tmp_path):
    def film(meaning: str) -> Path:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "399067008", "SCT", meaning
        return write_dicom(tmp_path / "a.dcm", RAMP, Modality="DX", ViewCodeSequence=[item])

    for meaning in ("lateral", "left lateral", "right posterior oblique", "Sagittal"):
        with pytest.raises(ImageRefused, match="lateral or oblique"):
            read_image(film(meaning), modality="xray")
    for meaning in ("postero-anterior", "antero-posterior", "frontal", "left lateral decubitus"):
        assert read_image(film(meaning), modality="xray").mode == "L"
    for view in ("PA", "AP", "LLD", "RLD", "", None):
        path = write_dicom(tmp_path / "b.dcm", RAMP, Modality="CR", ViewPosition=view)
        assert read_image(path, modality="xray").mode == "L"


def test_localizers_are_refused_as_file_and_as_frame(tmp_path):
    for word in ("LOCALIZER", "TOPOGRAM", "SCOUT"):
        with pytest.raises(ImageRefused, match="localizer"):
            read_image(
                write_dicom(tmp_path / "a.dcm", STORED, ImageType=["ORIGINAL", "PRIMARY", word], **RESCALE)
            )
    groups = []
    for word in ("LOCALIZER", "VOLUME"):
        group, kind, unit = Dataset(), Dataset(), Dataset()
        kind.FrameType = ["ORIGINAL", "PRIMARY", word, "NONE"]
        unit.RescaleSlope, unit.RescaleIntercept, unit.RescaleType = 1, -1024, "HU"
        group.CTImageFrameTypeSequence, group.PixelValueTransformationSequence = [kind], [unit]
        groups.append(group)
    path = write_dicom(
        tmp_path / "b.dcm",
        np.stack([STORED, STORED]),
        Modality="CT",
        ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        PerFrameFunctionalGroupsSequence=groups,
    )
    with pytest.raises(ImageRefused, match="localizer"):
        read_image(path, frame=0)
    assert np.array_equal(values(path, frame=1), lung_window(HU))


@pytest.mark.parametrize(
    "tags,size",
    [
        ({"PixelSpacing": [0.3, 0.15]}, (80, 128)),
        ({"PixelSpacing": [0.15, 0.3]}, (160, 64)),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, (80, 128)),
        ({"PixelAspectRatio": [3, 2]}, (80, 96)),
        ({"PixelAspectRatio": [1, 2]}, (160, 64)),
        (
            {"PixelSpacing": [0.15, 0.15], "PixelAspectRatio": [2, 1]},
            (80, 64),
        ),  # the spacing is the measured one
        ({"PixelSpacing": [0.1500, 0.1505]}, (80, 64)),
        ({"PixelSpacing": [0, 0]}, (80, 64)),
        ({"PixelSpacing": None, "PixelAspectRatio": [2, 1]}, (80, 128)),
    ],
    ids=str,
)
def test_pixels_are_made_square(tmp_path, tags, size):
    path = write_dicom(tmp_path / "a.dcm", GREY, Modality="DX", **tags)
    shown = read_image(path)
    assert shown.size == size
    again = shown.resize((80, 64), Image.Resampling.BOX)
    assert np.abs(np.asarray(again).astype(int) - GREY).mean() < 4


def test_pixels_that_are_by_far_not_square(tmp_path):
    with pytest.raises(ImageRefused, match="by far not square"):
        read_image(write_dicom(tmp_path / "a.dcm", GREY, Modality="DX", PixelSpacing=[5, 0.7]))
    with pytest.raises(ImageRefused, match="too large"):
        read_image(
            write_dicom(
                tmp_path / "a.dcm", np.zeros((4000, 40), np.uint8), Modality="DX", PixelSpacing=[3, 1]
            )
        )


# ---- nothing but the standard's words is repeated


def test_bogus_values_are_not_repeated(tmp_path, capfd):
    secret = "JANE DOE"
    for tags in ({"Modality": secret}, {"Modality": "CT", "RescaleType": secret}, {"ViewPosition": secret}):
        path = write_dicom(tmp_path / "a.dcm", RAMP, **{"RescaleSlope": 1, "RescaleIntercept": -5, **tags})
        with_raw_elements(path, (0x00281050, secret.encode()), (0x00281051, b"12"))
        for modality in ("ct", "xray", None):
            try:
                read_image(path, modality=modality)
            except ImageRefused as refusal:
                assert secret not in str(refusal) and secret not in str(refusal.reason.values)
    file = pydicom.dcmread(write_dicom(tmp_path / "b.dcm", GREY))
    file.file_meta.TransferSyntaxUID = "1.2.999.19700101.123"  # a date of birth, say
    file.save_as(tmp_path / "b.dcm", implicit_vr=False, little_endian=True)
    with pytest.raises(ImageRefused, match="private transfer syntax") as refusal:
        read_image(tmp_path / "b.dcm")
    assert "1970" not in str(refusal.value)
    assert capfd.readouterr().err == ""
