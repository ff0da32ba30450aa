"""From file to grey picture: exact values, refusals in words, nothing of the patient in any of them."""

import contextlib
import io
import logging
import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from hub_model import dicom, grey, images
from hub_model.grey import ImageRefused
from hub_model.images import frame_count, read_image
from tests.bad_files import (
    colour_picture,
    grey_picture,
    make_bad_files,
    make_odd_files,
    png,
    write_dicom,
)
from tests.pictures import GREY, RAMP, SIDE, encoded, stretched, values

REFUSALS = {  # file name -> words its message must hold
    "truncated.png": "damaged or cut short",
    "truncated.jpg": "damaged or cut short",
    "truncated.tif": "damaged or cut short",
    "truncated.webp": "damaged or cut short",
    "verkürzt_胸部.png": "damaged or cut short",
    "truncated.dcm": "cut short or without pixels",
    "header_only.dcm": "cut short or without pixels",
    "zero_bytes.png": "empty (0 bytes)",
    "zero_bytes.dcm": "empty (0 bytes)",
    "text.png": "no picture",
    "noise.jpg": "no picture",
    "animated.gif": "3 frames",
    "animated.webp": "3 frames",
    "animated.png": "3 frames",
    "pages.tif": "3 frames",
    "multiframe.dcm": "3 frames",
    "cmyk.jpg": "CMYK",
    "cmyk.tif": "CMYK",
    "colour.png": "in colour (100% of it)",
    "colour.dcm": "in colour (100% of it)",
    "one_pixel.png": "only 1 x 1 pixels",
    "wide.png": "too large, 40000 x 40 pixels",
    "bomb.png": "more than 40,000,000 pixels",
    "no_pixels.dcm": "holds no picture",
}


# ---- bad and odd files


def test_every_bad_file_is_refused_in_words(tmp_path):
    bad = make_bad_files(tmp_path)
    assert bad.keys() == REFUSALS.keys()
    for name, path in bad.items():
        with pytest.raises(ImageRefused) as refusal:
            read_image(path)
        message = str(refusal.value)
        assert message.startswith(f"{name}: ") and REFUSALS[name] in message, message
        assert "Accepted is one grey chest picture as PNG" in message and "\n" not in message
        assert str(tmp_path) not in message


def test_files_are_told_apart_by_content(tmp_path):
    for name, path in make_odd_files(tmp_path).items():
        lossy = name in ("jpeg_called.dcm", "grey_in_rgb.jpg")
        assert np.abs(values(path) - GREY).mean() <= (12 if lossy else 0), name


def test_sources_without_a_usable_file(tmp_path):
    folder = tmp_path / "a_folder"
    folder.mkdir()
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    for source in (folder, tmp_path / "missing.png", str(loop), "x" * 5000, "https://example.org/x.png"):
        with pytest.raises(ImageRefused, match=r"no such file|cannot be opened"):
            read_image(source)
    for source in (None, 7, [[1, 2]], io.StringIO("text")):
        with pytest.raises(ImageRefused, match=f"no picture came, but {type(source).__name__}"):
            read_image(source)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom rights bind")
def test_a_file_without_read_rights(tmp_path):
    path = tmp_path / "locked.png"
    path.write_bytes(encoded(grey_picture(), "PNG"))
    path.chmod(0)
    with pytest.raises(ImageRefused, match="cannot be opened"):
        read_image(path)


def test_all_kinds_of_source_give_the_same(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(data := encoded(Image.fromarray(GREY), "PNG"))

    class Pipe(io.RawIOBase):
        """What a download is: readable, not seekable."""

        def __init__(self):
            self._rest = io.BytesIO(data)

        def readable(self):
            return True

        def seekable(self):
            return False

        def read(self, size=-1):
            return self._rest.read(size)

    moved = io.BytesIO(data)
    moved.read(100)
    with path.open("rb") as file:
        sources = (path, str(path), data, bytearray(data), memoryview(data), file, moved, Pipe())
        for source in (*sources, Image.open(path)):
            assert np.array_equal(values(source), GREY), source
    assert np.array_equal(values(GREY), GREY)


# ---- size


def test_limits_of_size(monkeypatch):
    assert read_image(Image.new("L", (32, 32))).size == (32, 32)
    for size in ((31, 500), (500, 31)):
        with pytest.raises(ImageRefused, match="32 or more a side"):
            read_image(Image.new("L", size))
    with pytest.raises(ImageRefused, match="too large, 10001 x 32"):
        read_image(np.zeros((32, 10_001), np.uint8))
    with pytest.raises(ImageRefused, match="too large, 9000 x 9000"):
        read_image(png(9000, 9000))
    with pytest.raises(ImageRefused, match="too large, 10000 x 10000"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own warning at 89 million pixels
        read_image(png(10_000, 10_000))
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    with pytest.raises(ImageRefused, match="larger than 1 MiB"):
        read_image(bytes(2**20 + 1))


def test_size_is_checked_before_a_pixel_is_decoded(monkeypatch, tmp_path):
    def never(*_, **__):
        raise AssertionError("decoded")

    vast = bytearray(encoded(grey_picture(), "GIF", save_all=True, append_images=[grey_picture(seed=1)]))
    vast[6:10] = (8000).to_bytes(2, "little") * 2  # the screen on which frames are put together
    monkeypatch.setattr(Image.Image, "load", never)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    with pytest.raises(ImageRefused, match="too large"):
        read_image(png(20_000, 100))
    with pytest.raises(ImageRefused, match="too large, 8000 x 8000"):
        read_image(bytes(vast), frame=1)
    monkeypatch.setattr(dicom, "pixel_array", never)
    with pytest.raises(ImageRefused, match="too large, 20000 x 20000"):
        read_image(write_dicom(tmp_path / "a.dcm", GREY, Rows=20_000, Columns=20_000))


# ---- grey levels of ordinary pictures


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
def test_8_bit_grey_is_taken_as_it_is(kind):
    assert np.array_equal(values(encoded(Image.fromarray(GREY), kind)), GREY)


def test_webp_and_jpeg_are_read():
    assert np.array_equal(values(encoded(Image.fromarray(GREY).convert("RGB"), "WEBP", lossless=True)), GREY)
    assert np.abs(values(encoded(Image.fromarray(GREY), "JPEG", quality=95)) - GREY).mean() < 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("scale", [1, 40])
def test_16_bit_is_stretched_not_clipped(kind, scale):
    deep = RAMP * np.uint16(scale)  # 12-bit-like and nearly full range
    result = values(encoded(Image.fromarray(deep), kind))
    assert np.array_equal(result, stretched(deep.astype(float)))
    # by hand: the percentiles of 0..1599 are 7.995 and 1591.005; (800 - 7.995) / 1583.01 * 255 = 127.58
    assert result.flat[[7, 8, 800, 1591, 1592]].tolist() == [0, 0, 128, 255, 255]


def test_a_few_hot_pixels_do_not_darken_the_rest():
    deep = RAMP.copy()
    deep[0, :4] = 65535
    assert np.abs(values(deep)[1:] - values(RAMP)[1:]).max() <= 2


@pytest.mark.filterwarnings("error")
def test_numbers_of_other_types():
    assert np.array_equal(values(GREY.astype(np.int64)), GREY)  # integers within 0..255 stay
    assert np.array_equal(values(GREY > 100), (GREY > 100) * 255)
    signed = RAMP.astype(np.int32) - 1000
    assert np.array_equal(values(signed), stretched(signed))
    for kind in (np.float16, np.float32, np.float64):
        unit = (RAMP / 1599).astype(kind)
        assert np.array_equal(values(unit), stretched(unit.astype(float)))
    assert np.array_equal(values(Image.fromarray(RAMP.astype(np.float32))), stretched(RAMP))  # mode F
    assert np.array_equal(values(encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF")), stretched(RAMP))
    assert values(np.full((SIDE, SIDE), 5000, np.uint16)).max() == 0  # nothing to stretch
    almost = np.zeros((SIDE, SIDE))
    almost[0, 0] = 3.5
    assert values(almost)[0, 0] == 255 and values(almost).sum() == 255


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_pixels_that_are_not_numbers(value):
    array = np.ones((SIDE, SIDE))
    array[3, 3] = value
    with pytest.raises(ImageRefused, match="not finite numbers"):
        read_image(array)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(64),
        np.zeros((2, 64, 64)),
        np.zeros((64, 64, 2)),
        np.zeros((64, 64, 4)),
        np.zeros((64, 64), complex),
        np.zeros((64, 64), object),
        np.full((64, 64), "x"),
    ],
    ids=lambda array: f"{array.shape}-{array.dtype}",
)
def test_arrays_that_are_no_picture(array):
    with pytest.raises(ImageRefused, match=r"an array of shape .* came"):
        read_image(array)


def test_arrays_with_channels():
    assert np.array_equal(values(GREY[:, :, None]), GREY)
    assert np.array_equal(values(np.dstack([GREY] * 3)), GREY)
    deep = np.dstack([RAMP] * 3)
    assert np.array_equal(values(deep), stretched(RAMP.astype(float)))


def test_min_is_white_tiff():
    """Pillow turns 8-bit pictures round on writing and reading; 16-bit ones it hands over as stored."""
    for array, expected in ((GREY, GREY), (RAMP, 255 - stretched(RAMP.astype(float)))):
        data = encoded(Image.fromarray(array), "TIFF", tiffinfo={262: 0})
        assert Image.open(io.BytesIO(data)).tag_v2[262] == 0
        assert np.array_equal(values(data), expected)


# ---- palette, transparency, colour, orientation


def test_palettes_are_looked_up():
    indices = Image.fromarray(GREY // 16, mode="P")
    indices.putpalette([level for index in range(16) for level in [255 - 10 * index] * 3])
    for kind in ("PNG", "GIF", "TIFF"):
        assert np.array_equal(values(encoded(indices, kind)), 255 - 10 * (GREY // 16).astype(int)), kind


def test_transparent_parts_become_black():
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:, :10], alpha[:, 10:20] = 0, 128
    expected = GREY.astype(float)
    expected[:, :10] = 0
    expected[:, 10:20] *= 128 / 255
    for picture in (np.dstack([GREY] * 3 + [alpha]), np.dstack([GREY, alpha])):
        picture = Image.fromarray(picture)
        assert np.abs(values(encoded(picture, "PNG")) - expected).max() <= 1
    assert np.abs(values(np.dstack([GREY] * 3 + [alpha])) - expected).max() <= 1
    key = int(GREY[5, 5])
    keyed = values(encoded(Image.fromarray(GREY), "PNG", transparency=key))
    assert np.array_equal(keyed, GREY * (key != GREY))


def test_bilevel():
    assert np.array_equal(values(encoded(Image.fromarray(GREY > 100), "PNG")), (GREY > 100) * 255)


def test_colour_threshold():
    rgb = np.dstack([GREY // 2 + 60] * 3)
    few = rgb.copy()
    few[:1, :, 0] = 255  # a red line: 1 row of 64 is 1.6 %
    assert read_image(few).mode == "L"
    few[:2, :, 0] = 255  # 3.1 %
    with pytest.raises(ImageRefused, match="in colour \\(3% of it\\)"):
        read_image(few)
    tinted = rgb.copy()
    tinted[:, :, 2] -= 32  # a yellowish film
    assert read_image(tinted).mode == "L"
    tinted[:, :, 2] -= 1
    with pytest.raises(ImageRefused, match="in colour \\(100% of it\\)"):
        read_image(tinted)


@pytest.mark.parametrize("kind,quality", [("JPEG", 20), ("JPEG", 95), ("WEBP", 20)])
def test_colour_is_told_from_grey_after_compression(kind, quality):
    assert read_image(encoded(Image.fromarray(GREY).convert("RGB"), kind, quality=quality)).mode == "L"
    with pytest.raises(ImageRefused, match="in colour"):
        read_image(encoded(colour_picture(), kind, quality=quality))


TURNS = {  # EXIF 2.32, tag 274: how the stored picture is to be shown
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation(kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    picture = Image.fromarray(GREY)
    stored = values(encoded(picture, kind))  # as the codec leaves it
    assert np.array_equal(values(encoded(picture, kind, exif=exif)), TURNS[orientation](stored))


def test_exif_orientation_of_16_bit():
    exif = Image.Exif()
    exif[274] = 6
    assert np.array_equal(
        values(encoded(Image.fromarray(RAMP), "PNG", exif=exif)), np.rot90(stretched(RAMP.astype(float)), -1)
    )


def png_16_bit_rgb(array: np.ndarray) -> bytes:
    """Pillow reads such files but cannot write them."""
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in array)
    return png(array.shape[1], array.shape[0], rows, depth=16, colour=2)


def test_16_bit_rgb_is_shown_as_16_bit_grey():
    for deep in (RAMP, RAMP * 40, GREY.astype(np.uint16) * 257):
        assert np.array_equal(values(png_16_bit_rgb(deep)), stretched(deep.astype(float)))


# ---- frames


def test_frames_are_counted_and_chosen(tmp_path):
    bad = make_bad_files(tmp_path / "bad")
    for name in ("multiframe.dcm", "pages.tif", "animated.png"):
        assert frame_count(bad[name]) == 3
        for index in range(3):
            expected = np.asarray(grey_picture(seed=index))
            assert np.array_equal(values(bad[name], frame=index), expected), (name, index)
        for index in (3, -1):
            with pytest.raises(ImageRefused, match=f"no frame {index}: there are 3"):
                read_image(bad[name], frame=index)
    for name, path in make_odd_files(tmp_path / "odd").items():
        assert frame_count(path) == 1, name
        assert read_image(path, frame=0).mode == "L"
    assert frame_count(GREY) == 1 and frame_count(Image.fromarray(GREY)) == 1
    with pytest.raises(ImageRefused, match="no picture"):
        frame_count(bad["text.png"])


# ---- nothing of the patient, nothing but ImageRefused


@pytest.fixture
def secretive(tmp_path) -> Path:
    """A file whose patient elements break the standard's rules, so that pydicom quotes one once read."""
    secrets = {"PatientBirthDate": "SECRET", "PatientAge": "SECRET", "StudyInstanceUID": "1.SECRET.2"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_dicom(tmp_path / "a.dcm", RAMP, PatientName="SECRET^NAME", PatientID="SECRET", **secrets)
    assert path.read_bytes().count(b"SECRET") == 5
    with pytest.warns(UserWarning, match="SECRET"):
        assert pydicom.dcmread(path).StudyInstanceUID == "1.SECRET.2"
    return path


def test_no_element_is_read_but_those_listed(secretive):
    with secretive.open("rb") as stream:
        read = {element.keyword for element in dicom.read_header(stream).tags}
    assert "Rows" in read and read <= {*dicom.TAGS, "SpecificCharacterSet"}
    assert not any(
        word in tag for tag in dicom.TAGS for word in ("Patient", "Name", "Date", "InstanceUID", "Study")
    )


def test_nothing_of_the_patient_gets_out(secretive, caplog, capfd):
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    whole = secretive.read_bytes()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        picture = read_image(secretive)
        for data in (whole[:-500], whole[: len(whole) // 10]):
            with pytest.raises(ImageRefused) as refusal:
                read_image(data)
            assert "SECRET" not in str(refusal.value) and refusal.value.__suppress_context__
    assert b"SECRET" not in encoded(picture, "PNG") and not picture.info
    said = caplog.text + "".join(str(warning.message) for warning in heard) + "".join(capfd.readouterr())
    assert "SECRET" not in said


def test_pydicoms_traceback_stays_out_of_the_log_and_its_logger_is_left_alone(caplog):
    names = ("pydicom", "pydicom.pixels.decoders.base")
    before = [list(logging.getLogger(name).filters) for name in names]
    broken = bytearray(Path(get_testdata_file("MR_small_jp2klossless.dcm")).read_bytes())
    packet = broken.index(b"\xff\x93") + 2
    broken[packet : packet + 2000] = b"\xff" * 2000
    with pytest.raises(ImageRefused):
        read_image(bytes(broken))
    assert not caplog.records
    assert [logging.getLogger(name).filters for name in names] == before
    logging.getLogger("pydicom").warning("heard")
    assert "heard" in caplog.text


def test_warnings_of_one_thread_do_not_hide_those_of_another(secretive):
    """While many threads read files that pydicom and Pillow warn of, everybody else's warnings are heard."""
    stop = threading.Event()
    leaks: list[str] = []

    def read() -> None:
        while not stop.is_set():
            read_image(secretive)

    def speak() -> None:
        for number in range(50):
            warnings.warn(f"heard {number}", UserWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        readers = [threading.Thread(target=read) for _ in range(3)]
        for thread in readers:
            thread.start()
        speak()
        stop.set()
        for thread in readers:
            thread.join()
        assert warnings.filters == before
    said = [str(warning.message) for warning in heard]
    leaks += [text for text in said if "SECRET" in text or "Invalid" in text]
    assert not leaks and sum(text.startswith("heard") for text in said) == 50


def test_a_file_that_pydicom_warns_of_is_read_without_a_word(tmp_path, capfd, caplog):
    """A wrong VR, a missing preamble, odd numbers: pydicom's warnings quote the path and the value."""
    folder = tmp_path / "SECRET folder"
    folder.mkdir()
    path = write_dicom(folder / "SECRET.dcm", RAMP, Modality="DX", WindowCenter="5", WindowWidth="5")
    data = path.read_bytes().replace(b"DS\x02\x005 ", b"DS\x02\x005x")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for cut in (0, 132):
            path.write_bytes(data[cut:])
            for reading in (read_image, frame_count):
                with contextlib.suppress(ImageRefused):
                    reading(path)
        path.write_bytes(data[:132] + bytes(64))
        with pytest.raises(ImageRefused):
            read_image(path)
    streams = capfd.readouterr()
    assert not heard and not caplog.records and streams.out + streams.err == ""


def test_metadata_does_not_survive():
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Patient", "SECRET")
    exif = Image.Exif()
    exif[315] = "SECRET"
    data = encoded(Image.fromarray(GREY), "PNG", pnginfo=text, exif=exif, icc_profile=b"SECRET")
    assert Image.open(io.BytesIO(data)).info
    for source in (data, Image.open(io.BytesIO(data))):
        picture = read_image(source)
        assert not picture.info and b"SECRET" not in encoded(picture, "PNG")


def test_the_callers_picture_and_array_are_left_alone():
    exif = Image.Exif()
    exif[274] = 6
    source = Image.open(io.BytesIO(encoded(Image.fromarray(GREY), "PNG", exif=exif)))
    read_image(source)
    assert source.size == (GREY.shape[1], GREY.shape[0]) and source.getexif()[274] == 6
    array = RAMP.copy()
    result = read_image(array)
    assert np.array_equal(array, RAMP)
    result.putpixel((0, 0), 9)
    own = GREY.copy()
    read_image(own).putpixel((0, 0), 9)
    assert np.array_equal(own, GREY)


WAYS = {  # of writing a picture
    "png": {"format": "PNG"},
    "jpeg": {"format": "JPEG"},
    "progressive jpeg": {"format": "JPEG", "progressive": True},
    "tiff": {"format": "TIFF"},
    "lzw tiff": {"format": "TIFF", "compression": "tiff_lzw"},
    "webp": {"format": "WEBP"},
    "bmp": {"format": "BMP"},
    "gif": {"format": "GIF"},
    "animated gif": {"format": "GIF", "save_all": True, "append_images": [grey_picture(48, 48, 1)]},
}
REAL = ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_implicit.dcm", "headless"]


def sample(name: str) -> bytes:
    if name in WAYS:
        buffer = io.BytesIO()
        grey_picture(48, 48).save(buffer, **WAYS[name])
        return buffer.getvalue()
    if name == "headless":  # no preamble
        return sample("MR_small.dcm")[132:]
    return Path(get_testdata_file(name)).read_bytes()


@pytest.mark.parametrize("name", [*WAYS, *REAL])
@pytest.mark.filterwarnings("ignore")
def test_files_cut_short_are_refused_or_whole(name):
    """Cut at many places: never half a picture, never anything but ImageRefused."""
    data = sample(name)
    whole = None if name == "animated gif" else values(data)
    refused = 0
    for length in np.linspace(1, len(data) - 1, 60).astype(int):
        try:
            assert np.array_equal(values(data[:length]), whole), length
        except ImageRefused as refusal:
            refused += 1
            assert "Accepted is" in str(refusal)
    assert refused >= 50


@pytest.mark.parametrize("name", [*WAYS, *REAL])
@pytest.mark.filterwarnings("ignore")
def test_files_with_wrong_bytes_raise_nothing_but_a_refusal(name):
    data = sample(name)
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        broken = bytearray(data)
        for place in generator.integers(0, min(len(data), 1500), 5):
            broken[place] = generator.integers(256)
        try:
            assert frame_count(bytes(broken)) >= 1
            outcomes.add(read_image(bytes(broken)).mode)
        except ImageRefused as refusal:
            outcomes.add("refused")
            assert "Accepted is" in str(refusal)
    assert "refused" in outcomes and outcomes <= {"refused", "L"}


# ---- the real pictures


def test_every_real_picture_opens_unchanged(shared_data):
    paths = sorted(shared_data.rglob("*.jpg"))
    assert len(paths) == 3143
    for path in paths[::30]:
        assert np.array_equal(values(path), np.asarray(Image.open(path))), path.name
    assert min(read_image(next(shared_data.rglob("ct_000490.jpg"))).size) == 61  # the smallest


def test_a_picture_for_several_models_is_decoded_once(tmp_path, monkeypatch):
    decoded = []
    for place, name in ((images, "_read_file"), (images.dicom, "_cells")):
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *given, real=real: (decoded.append(1), real(*given))[1])
    small = Path(__file__).parents[1] / "files"
    files = [*sorted(small.rglob("*.dcm")), Path(get_testdata_file("CT_small.dcm"))]
    Image.new("L", (64, 64), 90).save(tmp_path / "a.png")
    for file in (tmp_path / "a.png", *files):
        decoded.clear()
        found = images.read_for(file, ("xray", "ct", None))
        assert len(decoded) == 1
        for modality, picture in found.items():
            if isinstance(picture, ImageRefused):
                with pytest.raises(ImageRefused) as refusal:
                    read_image(file, modality=modality)
                assert str(refusal.value) == str(picture)
            else:
                assert picture.tobytes() == read_image(file, modality=modality).tobytes()
    assert {type(one) for one in images.read_for(files[-1], ("xray", "ct")).values()} == {
        ImageRefused,
        Image.Image,
    }
    assert all(
        one.reason.code == "missing" for one in images.read_for(tmp_path / "b.png", ("xray", "ct")).values()
    )


def test_16_bits_are_stretched_level_by_level_as_pixel_by_pixel():
    random = np.random.default_rng(0)
    for kind in (np.uint16, np.int16):
        for _ in range(20):
            shape = tuple(random.integers(1, 60, 2))
            values = (random.normal(0, 10 ** random.uniform(0, 4), shape)).clip(-30000, 30000).astype(kind)
            inside = random.choice([None, 1]) and random.random(shape) < 0.5
            assert np.array_equal(
                grey.to_8_bit(values, inside), grey.to_8_bit(values.astype(np.int64), inside)
            )
        flat = np.full((40, 40), 3000, kind)
        flat[0, 0] = 2000
        assert np.array_equal(grey.to_8_bit(flat), grey.to_8_bit(flat.astype(np.int64)))
