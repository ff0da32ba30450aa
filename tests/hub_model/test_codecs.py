"""Compressed DICOM: every common codec gives the stored values, and no stream unpacks to more than is declared."""

import resource
import struct
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from hub_model import codecs
from hub_model.grey import ImageRefused
from hub_model.images import frame_count, read_image
from tests import bombs
from tests.bad_files import write_dicom
from tests.bombs import FILM, SIDE, TWELVE, compressed, deflated
from tests.pictures import values

imagecodecs = pytest.importorskip("imagecodecs", reason="writes the compressed streams")


def rle(array: np.ndarray) -> bytes:
    """PS3.5 annex G, by literal runs of at most 128 bytes."""
    planes = array.astype(array.dtype.newbyteorder("<")).view(np.uint8).reshape(array.size, -1)[:, ::-1].T
    segments = []
    for plane in planes:
        runs = [plane[start : start + 128].tobytes() for start in range(0, plane.size, 128)]
        body = b"".join(bytes([len(run) - 1]) + run for run in runs)
        segments.append(body + bytes(len(body) % 2))
    offsets = [64 + sum(map(len, segments[:number])) for number in range(len(segments))]
    return struct.pack("<16L", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


WAYS = {  # transfer syntax -> how to write 12 bits without loss
    "1.2.840.10008.1.2.4.57": lambda array: imagecodecs.ljpeg_encode(array, bitspersample=12),
    "1.2.840.10008.1.2.4.70": lambda array: imagecodecs.ljpeg_encode(array, bitspersample=12),
    "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_encode,
    "1.2.840.10008.1.2.4.81": imagecodecs.jpegls_encode,
    "1.2.840.10008.1.2.4.90": lambda a: imagecodecs.jpeg2k_encode(
        a, codecformat="j2k", bitspersample=12, level=0
    ),
    "1.2.840.10008.1.2.4.91": lambda a: imagecodecs.jpeg2k_encode(
        a, codecformat="j2k", bitspersample=12, level=0
    ),
    "1.2.840.10008.1.2.4.201": imagecodecs.htj2k_encode,
    "1.2.840.10008.1.2.4.203": imagecodecs.htj2k_encode,
    "1.2.840.10008.1.2.5": rle,
    "1.2.840.10008.1.2.1.98": lambda array: array.tobytes(),
    codecs.DEFLATED_FRAMES: lambda array: deflated(array.tobytes()),
}


@pytest.mark.parametrize("syntax", WAYS)
def test_every_codec_gives_the_stored_values(tmp_path, syntax):
    plain = values(write_dicom(tmp_path / "a.dcm", FILM, **TWELVE))
    assert np.array_equal(values(compressed(tmp_path / "b.dcm", syntax, WAYS[syntax](FILM))), plain)
    second = np.ascontiguousarray(FILM[::-1])
    path = compressed(tmp_path / "c.dcm", syntax, WAYS[syntax](FILM), WAYS[syntax](second))
    assert frame_count(path) == 2
    assert np.array_equal(values(path, frame=0), plain)
    assert np.array_equal(values(path, frame=1), values(write_dicom(tmp_path / "d.dcm", second, **TWELVE)))


@pytest.mark.parametrize("syntax", [name for name in WAYS if ".4.9" not in name and ".4.20" not in name])
def test_signed_values(tmp_path, syntax):
    """These codecs know no sign: 12 bits in two's complement, as scanners send them."""
    signed = FILM.astype(np.int16) - 2000
    tags = {"PixelRepresentation": 1, "Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -500}
    plain = values(write_dicom(tmp_path / "a.dcm", signed, **TWELVE | tags))
    coded = WAYS[syntax]((signed & 0xFFF).astype(np.uint16))
    assert np.array_equal(values(compressed(tmp_path / "b.dcm", syntax, coded, **tags)), plain)


def test_jpeg_of_12_bits(tmp_path):
    plain = values(write_dicom(tmp_path / "a.dcm", FILM, **TWELVE))
    coded = imagecodecs.jpeg8_encode(FILM, bitspersample=12, level=95)
    shown = values(compressed(tmp_path / "b.dcm", "1.2.840.10008.1.2.4.51", coded))
    assert np.abs(shown - plain).max() <= 2


@pytest.mark.parametrize("name", ["JPGExtended", "JPEG-lossy", "MR_small_jpeg_ls_lossless"])
def test_real_files_that_needed_a_further_decoder(name):
    assert values(get_testdata_file(f"{name}.dcm")).std() > 0.5
    if name.startswith("MR"):
        assert np.array_equal(
            values(get_testdata_file(f"{name}.dcm")), values(get_testdata_file("MR_small.dcm"))
        )


# ---- a stream that unpacks to more than the header says

LARGE = np.zeros((SIDE * 2, SIDE), np.uint16)


def seconds(path: Path, message: str) -> float:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ImageRefused, match=message) as refusal:
        read_image(path)
    assert "\n" not in str(refusal.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # kB
    return time.process_time() - start


@pytest.mark.parametrize("syntax", WAYS)
def test_streams_of_another_size_are_refused(tmp_path, syntax):
    for array in (LARGE, np.ascontiguousarray(LARGE[:40, :40])):
        path = compressed(tmp_path / "a.dcm", syntax, WAYS[syntax](array))
        assert seconds(path, "cannot be decoded") < 5


def test_a_stream_that_is_cut_short_is_refused_at_once(tmp_path):
    for syntax in ("1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80"):
        whole = WAYS[syntax](FILM)
        path = compressed(tmp_path / "a.dcm", syntax, whole[: len(whole) // 2])
        assert seconds(path, "cannot be decoded") < 2


def test_jpeg_ls_is_no_long_search_wherever_it_is_cut(tmp_path):
    """CharLS counts bits that are not there for five seconds where no marker follows."""
    syntax = "1.2.840.10008.1.2.4.80"
    whole = WAYS[syntax](FILM)
    for length in range(300, len(whole) - 2, len(whole) // 20):
        for end in (b"", codecs.END_OF_IMAGE, b"\xff\xff", b"\xff\xd9\xff"):
            path = compressed(tmp_path / "a.dcm", syntax, whole[:length] + end)
            assert seconds(path, "cannot be decoded") < 1


def test_bombs(tmp_path):
    """Smaller than in the campaign, which reads each under a ceiling; here the words are asked for."""
    assert seconds(bombs.run_lengths(tmp_path / "a.dcm", 2_000_000), "cannot be decoded") < 2
    assert seconds(bombs.large_jpeg_2000(tmp_path / "b.dcm"), "cannot be decoded") < 5
    assert seconds(bombs.large_jpeg(tmp_path / "c.dcm"), "damaged|cannot be decoded") < 5
    assert seconds(bombs.deflated_zeros(tmp_path / "d.dcm", 20_000_000), "cannot be decoded") < 2


@pytest.mark.parametrize("frames", ["2147483647", "100000", "400"])
def test_declared_frames_that_are_not_there(tmp_path, frames):
    for path in (
        write_dicom(tmp_path / "a.dcm", FILM, **TWELVE),
        compressed(tmp_path / "b.dcm", "1.2.840.10008.1.2.5", rle(FILM)[:3000]),
    ):
        file = pydicom.dcmread(path)
        file.NumberOfFrames = frames
        file.save_as(path)
        start = time.process_time()
        with pytest.raises(
            ImageRefused, match=r"more than 5,000 frames|too short to hold them|damaged|frames"
        ):
            frame_count(path)
            read_image(path)
        assert time.process_time() - start < 2


def test_countless_items(tmp_path):
    path = bombs.countless_items(tmp_path / "a.dcm", 200_000)
    assert seconds(path, "more than 100,000 items") < 2
    assert read_image(bombs.countless_items(path, 20_000)).mode == "L"


def test_what_is_not_read_is_named(tmp_path):
    for syntax, words in (
        ("1.2.840.10008.1.2.4.102", "MPEG-4 AVC/H.264 High Profile / Level 4.1, which is not read"),
        ("1.2.840.10008.1.2.4.94", "JPIP Referenced"),
        ("1.2.840.10008.1.2.4.64", "Hierarchical"),
        ("1.2.840.113619.5.2", "private transfer syntax"),
        ("1.3.46.670589.33.1.4.1", "private transfer syntax"),
    ):
        with pytest.raises(ImageRefused) as refusal:
            read_image(compressed(tmp_path / "a.dcm", syntax, bytes(100)))
        said = str(refusal.value)
        assert words in said and refusal.value.reason.code == "undecodable" and "pip" not in said
        assert "Export it" in said


@pytest.mark.parametrize("syntax", WAYS)
def test_broken_streams_raise_nothing_but_a_refusal(tmp_path, syntax, capfd):
    whole = WAYS[syntax](FILM)
    generator = np.random.default_rng(0)
    outcomes = set()
    for number in range(25):
        broken = bytearray(whole[: len(whole) // 2] if number == 0 else whole)
        for place in generator.integers(0, min(len(broken), 300 if number % 2 else len(broken)), 4):
            broken[place] = generator.integers(256)
        path = compressed(tmp_path / "a_secret_name.dcm", syntax, bytes(broken))
        try:
            outcomes.add(read_image(path).mode)
        except ImageRefused as refusal:
            outcomes.add("refused")
            assert "Accepted is" in str(refusal)
    assert outcomes <= {"refused", "L"}
    heard = capfd.readouterr()
    assert "secret" not in heard.out + heard.err
