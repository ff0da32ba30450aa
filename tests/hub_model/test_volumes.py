"""Volumes: the same slices out of every kind of file however it lies, and a word for what cannot be used."""

import gzip
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hub_model import grids, volumes
from hub_model.dicom import lung_window
from hub_model.grey import ImageRefused
from hub_model.volumes import Unusable, Volume, read_volume, read_volumes
from tests.made_volumes import (
    FLIPS,
    WAYS,
    ct_file,
    dicom_slices,
    gzipped,
    hounsfield,
    lying,
    meta,
    multi_frame,
    nifti,
    nrrd,
    saved,
)

HU = hounsfield()
SHOWN = lung_window(HU[::-1])  # from the head down
PLACES = tuple(float(z) for z in -150 - 10 * np.arange(6))


def pictures(volume: Volume) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in volume.slices])


def check(volume: Volume) -> None:
    assert len(volume) == len(volume.slices) == 6
    assert np.abs(pictures(volume).astype(int) - SHOWN).max() <= 1
    assert volume.positions == pytest.approx(PLACES) and volume.spacing == pytest.approx((0.8, 0.8, 10))


WRITERS = {
    "DICOM series": lambda folder, way: dicom_slices(folder / "dicom", HU, way),
    "multi-frame DICOM": lambda folder, way: multi_frame(folder / "a.dcm", HU, way),
    "NIfTI": lambda folder, way: nifti(folder / "a.nii.gz", *lying(HU, way)),
    "NRRD": lambda folder, way: nrrd(folder / "a.nrrd", *lying(HU, way)),
    "MetaImage": lambda folder, way: meta(folder / "a.mha", *lying(HU, way)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_in_all_eight_flips_gives_the_same_slices(tmp_path, kind):
    for way in FLIPS:
        volume = read_volume(WRITERS[kind](tmp_path, way))
        assert volume.kind == kind and not volume.notes
        check(volume)


def test_axes_in_any_order_give_the_same_slices(tmp_path):
    for way in WAYS:
        numbers, steps, origin = lying(HU, way)
        check(read_volume(nifti(tmp_path / "a.nii", numbers, steps, origin)))
    for way in WAYS[3::7]:
        numbers, steps, origin = lying(HU, way)
        check(read_volume(nrrd(tmp_path / "a.nrrd", numbers, steps, origin, encoding="raw")))
        check(read_volume(meta(tmp_path / "a.mha", numbers, steps, origin)))
    assert {read_volume(nifti(tmp_path / "a.nii", *lying(HU, way))).orientation for way in FLIPS} == {
        f"{x}{y}{z}" for x in "LR" for y in "AP" for z in "SI"
    }


def test_files_that_are_packed_or_in_two_parts(tmp_path):
    numbers, steps, origin = lying(HU, FLIPS[3])
    check(read_volume(gzipped(nifti(tmp_path / "a.nii", numbers, steps, origin)).read_bytes()))
    check(read_volume(meta(tmp_path / "b.mhd", numbers, steps, origin, packed=True)))
    check(read_volume(meta(tmp_path / "c.mha", numbers, steps, origin, packed=True)))
    for encoding in ("raw", "gzip", "bzip2"):
        check(read_volume(nrrd(tmp_path / f"{encoding}.nhdr", numbers, steps, origin, encoding=encoding)))
    big = nifti(tmp_path / "big.nii", numbers.astype(">i2"), steps, origin)
    check(read_volume(big))
    real = nifti(tmp_path / "real.nii", numbers.astype(np.float64), steps, origin)
    check(read_volume(real))
    packed = tmp_path / "all.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("b.mhd", "b.raw"):
            archive.write(tmp_path / name, f"inside/{name}")
    check(read_volume(packed))


def test_a_series_in_a_zip_and_as_a_list_of_files(tmp_path):
    folder = dicom_slices(tmp_path / "series", HU)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    check(read_volume(tmp_path / "a.zip"))
    check(read_volume(list(folder.iterdir())))


def test_an_independent_reader_agrees_on_where_volumes_lie(tmp_path):
    """SimpleITK, where it is installed, writes and says in which order slices go up."""
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(HU)
    image.SetSpacing((0.8, 0.8, 10.0))
    image.SetOrigin((-19.0, -16.0, -200.0))
    for code in ("LPS", "RAS", "SAR", "PIL", "ASL"):
        turned = sitk.DICOMOrient(image, code)
        for name in ("a.nii.gz", "a.nrrd", "a.mha", "a.mhd"):
            sitk.WriteImage(turned, str(tmp_path / name), useCompression=True)
            check(read_volume(tmp_path / name))


def test_pixels_that_are_not_square_are_enlarged(tmp_path):
    numbers, steps, origin = lying(HU, FLIPS[0])
    wide = steps.copy()
    wide[0, 0] = 1.6
    assert read_volume(nifti(tmp_path / "a.nii", numbers, wide, origin)).slices[0].size == (96, 40)
    wide[0, 0] = 8
    volume = read_volume(nifti(tmp_path / "a.nii", numbers, wide, origin))
    with pytest.raises(ImageRefused, match="not square"):
        volume.slices[0]


def test_slices_are_read_when_asked_for(tmp_path):
    folder = dicom_slices(tmp_path / "series", HU)
    volume = read_volume(folder)
    (folder / "002.dcm").unlink()
    with pytest.raises(ImageRefused) as refused:
        volume.slices[3]
    assert refused.value.reason.code == "missing"
    assert np.array_equal(np.asarray(volume.slices[1:3][0]), SHOWN[1])


def test_8_bit_volumes_are_taken_for_what_they_show(tmp_path):
    grey, steps, origin = lying(lung_window(HU), FLIPS[0])
    assert np.array_equal(pictures(read_volume(nifti(tmp_path / "a.nii", grey, steps, origin))), SHOWN)
    assert np.array_equal(
        pictures(read_volume(nifti(tmp_path / "b.nii", grey.astype(np.float32), steps, origin))), SHOWN
    )


# ---- what is told


def codes(found) -> list[str]:
    return [note.code for note in found.notes] if isinstance(found, Volume) else [found.reason.code]


def test_missing_and_double_slices_are_told(tmp_path):
    folder = dicom_slices(tmp_path / "series", HU)
    shutil.copy(folder / "001.dcm", folder / "again.dcm")
    (folder / "003.dcm").unlink()
    volume = read_volume(folder)
    assert codes(volume) == ["duplicates", "gaps"] and len(volume) == 5
    assert volume.notes[1].values["n"] == 1 and volume.spacing[2] == pytest.approx(10)


def test_localizers_and_other_sizes_are_left_out_and_told(tmp_path):
    folder = dicom_slices(tmp_path / "series", HU)
    place = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    saved(ct_file(HU[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **place), folder / "scout.dcm")
    saved(ct_file(HU[0, :32, :32], ImagePositionPatient=[0, 0, 5], PixelSpacing=[1, 1]), folder / "small.dcm")
    volume = read_volume(folder)
    assert codes(volume) == ["left_out", "mixed"]
    assert np.array_equal(pictures(volume), SHOWN)


def test_two_series_of_one_folder_stay_apart_and_others_go_on(tmp_path):
    folder = dicom_slices(tmp_path / "study", HU)
    for place in range(3):
        tags = {"ImagePositionPatient": [0, 0, place], "PixelSpacing": [1, 1], "SeriesInstanceUID": "9.9"}
        saved(ct_file(HU[place], Modality="PT", **tags), folder / f"pet{place}.dcm")
        tags["SeriesInstanceUID"] = "9.8"
        saved(ct_file(HU[place], **tags), folder / f"second{place}.dcm")
    (folder / "notes.txt").write_text("nothing")
    nifti(folder / "a.nii.gz", *lying(HU, FLIPS[0]))
    found = list(read_volumes(folder))
    ready = [one for one in found if isinstance(one, Volume)]
    assert sorted(map(len, ready)) == [3, 6, 6] and len({one.name for one in ready}) == 3
    assert sorted(one.reason.code for one in found if isinstance(one, Unusable)) == [
        "no_picture",
        "other_modality",
    ]
    with pytest.raises(ImageRefused) as refused:
        read_volume(folder)
    assert refused.value.reason.code == "several_series"
    assert len(read_volume(folder, series=2)) in (3, 6)
    with pytest.raises(ImageRefused) as refused:
        read_volume(folder, series=3)
    assert refused.value.reason.code == "no_such_series"


def test_slices_without_a_place_go_by_their_numbers(tmp_path):
    for place, number in enumerate((3, 1, 2)):
        saved(ct_file(HU[place], InstanceNumber=number), tmp_path / f"{place}.dcm")
    volume = read_volume(tmp_path)
    assert codes(volume) == ["no_positions"] and volume.positions is None
    assert np.array_equal(pictures(volume), lung_window(HU[[1, 2, 0]]))


def test_pictures_of_a_folder_go_by_their_names(tmp_path):
    from PIL import Image

    for number in (9, 10, 8):
        Image.fromarray(SHOWN[number - 8]).save(tmp_path / f"slice {number}.png")
    volume = read_volume(tmp_path)
    assert volume.kind == "pictures" and np.array_equal(pictures(volume), SHOWN[:3])


AXES = {
    "as usual": ([1, 0, 0, 0, 1, 0], "LP"),
    "rows from the right": ([-1, 0, 0, 0, 1, 0], "RP"),
    "columns from the back": ([1, 0, 0, 0, -1, 0], "LA"),
    "both": ([-1, 0, 0, 0, -1, 0], "RA"),
    "turned by 90 degrees": ([0, 1, 0, 1, 0, 0], "PL"),
    "tilted": ([1, 0, 0, 0, 0.94, -0.34], "LP"),
    "tilted and flipped": ([-1, 0, 0, 0, 0.94, -0.34], "RP"),
    "coronal": ([1, 0, 0, 0, 0, -1], "oblique"),
    "sagittal": ([0, 1, 0, 0, 0, -1], "oblique"),
    "nothing": ([0, 0, 0, 0, 0, 0], "no_orientation"),
}


@pytest.mark.parametrize("name", AXES)
def test_slices_come_from_the_head_down_and_upright_however_they_lie(tmp_path, name):
    axes, expected = AXES[name]
    for step in range(3):
        tags = {"ImagePositionPatient": [-100, -90, 40 + 5 * step], "ImageOrientationPatient": axes}
        saved(
            ct_file(HU[step], InstanceNumber=3 - step, PixelSpacing=[1, 1], **tags), tmp_path / f"{step}.dcm"
        )
    if len(expected) > 2:
        with pytest.raises(ImageRefused) as refused:
            read_volume(tmp_path)
        assert refused.value.reason.code == expected
        return
    volume = read_volume(tmp_path)
    assert volume.files == tuple((tmp_path / f"{step}.dcm").as_posix() for step in range(3))
    assert volume.orientation[:2] == expected and list(volume.positions) == sorted(volume.positions)[::-1]
    stored = lung_window(HU[2])
    turns = {
        "LP": stored,
        "RP": stored[:, ::-1],
        "LA": stored[::-1],
        "RA": stored[::-1, ::-1],
        "PL": stored.T,
    }
    assert np.array_equal(np.asarray(volume.slices[0]), turns[expected])
    assert ("tilted" in codes(volume)) == ("tilted" in name)


# ---- bad input


def tilted(degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return turn


def bad_files(folder: Path) -> dict[str, Path]:
    """Files that give no volume, by the code of the reason."""
    numbers, steps, origin = lying(HU, FLIPS[0])
    whole = nifti(folder / "whole.nii.gz", numbers, steps, origin).read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "bomb.nii.gz").write_bytes(whole)
    raw = bytearray(gzip.decompress(whole))
    raw[40:56] = np.array([3, 9000, 9000, 9000, 1, 1, 1, 1], "<i2").tobytes()
    (folder / "huge.nii").write_bytes(raw)
    raw[40:56] = np.array([3, -5, 9000, 2, 1, 1, 1, 1], "<i2").tobytes()
    (folder / "negative.nii").write_bytes(raw)
    header = meta(folder / "b.mhd", numbers, steps, origin).read_bytes()
    (folder / "lone.mhd").write_bytes(header.replace(b"b.raw", b"c.raw"))
    (folder / "elsewhere.mhd").write_bytes(header.replace(b"b.raw", b"/etc/passwd"))
    mri = np.abs(numbers.astype(np.float32)) * 3
    coronal = dicom_slices(folder / "coronal", HU, FLIPS[0])
    for file in coronal.iterdir():
        one = ct_file(
            HU[0], ImagePositionPatient=[0, int(file.stem), 0], ImageOrientationPatient=[1, 0, 0, 0, 0, -1]
        )
        saved(one, file)
    localizer = folder / "localizer"
    localizer.mkdir()
    saved(ct_file(HU[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), localizer / "a.dcm")
    return {
        "4-D: dimensions": nifti(folder / "4d.nii", np.stack([numbers] * 2, 3), steps, origin),
        "no orientation: no_orientation": nifti(folder / "no.nii", numbers, steps, origin, code=0),
        "no space: no_orientation": nrrd(folder / "no.nrrd", numbers, steps, origin, space="scanner-xyz"),
        "tilted: oblique": nifti(folder / "tilted.nii", numbers, tilted(45) @ steps, origin),
        "coronal series: oblique": coronal,
        "magnetic resonance: no_hounsfield": nifti(folder / "mri.nii", mri, steps, origin),
        "mask: no_hounsfield": nifti(folder / "mask.nii", (numbers > -500).astype(np.uint8), steps, origin),
        "colours: layout": nifti(
            folder / "rgb.nii", np.zeros((40, 40, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]), steps, origin
        ),
        "complex: layout": nifti(folder / "complex.nii", numbers.astype(np.complex64), steps, origin),
        "cut: damaged": folder / "cut.nii.gz",
        "huge: volume_too_large": folder / "huge.nii",
        "negative: volume_too_large": folder / "negative.nii",
        "numbers missing: no_companion": folder / "lone.mhd",
        "numbers elsewhere: no_companion": folder / "elsewhere.mhd",
        "only a localizer: localizer": localizer,
        "nothing there: missing": folder / "nothing",
    }


def test_bad_volumes_are_refused_with_a_word(tmp_path):
    for name, path in bad_files(tmp_path).items():
        what, code = name.split(": ")
        with pytest.raises(ImageRefused) as refused:
            read_volume(path)
        assert refused.value.reason.code == code, what
        assert len(str(refused.value)) > 40


def test_series_of_five_thousand_slices_are_refused_before_they_are_read(tmp_path, monkeypatch):
    tall = np.zeros((32, 32, 5000), np.int16)
    tall[:, :, ::2] = -900
    path = nifti(tmp_path / "tall.nii.gz", tall, np.eye(3), np.zeros(3))
    with pytest.raises(ImageRefused, match="5,000 slices; at most 2,000") as refused:
        read_volume(path)
    assert refused.value.reason.code == "too_many_slices"
    monkeypatch.setattr(volumes, "MAX_SLICES", 5)
    dicom_slices(tmp_path / "series", HU)
    nifti(tmp_path / "five.nii", *lying(HU[:5], FLIPS[0]))
    found = list(read_volumes([tmp_path / "series", tmp_path / "five.nii"]))
    assert sorted(map(str, map(type, found))) == sorted([str(Unusable), str(Volume)])


def test_gzip_is_unpacked_no_further_than_the_header_says(tmp_path, monkeypatch):
    numbers, steps, origin = lying(HU, FLIPS[0])
    raw = nifti(tmp_path / "a.nii", numbers, steps, origin).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(raw + bytes(2**23)))
    unpacked = []
    original = grids._unpacked

    def watched(*arguments):
        for part in original(*arguments):
            unpacked.append(len(part))
            yield part

    monkeypatch.setattr(grids, "_unpacked", watched)
    check(read_volume(tmp_path / "a.nii.gz"))
    assert sum(unpacked) <= 2 * grids.CHUNK
    monkeypatch.setattr(grids, "MAX_VOLUME", 1000)
    with pytest.raises(ImageRefused):
        read_volume(tmp_path / "a.nii.gz")


def test_a_disk_that_is_full_is_said(tmp_path, monkeypatch):
    path = nifti(tmp_path / "a.nii.gz", *lying(HU, FLIPS[0]))

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(grids.tempfile, "TemporaryFile", Full)
    with pytest.raises(ImageRefused) as refused:
        read_volume(path)
    assert refused.value.reason.code == "no_room"


def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch):
    path = nifti(tmp_path / "a.nii.gz", *lying(HU, FLIPS[0]))

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(grids, "import_module", missing)
    with pytest.raises(ImageRefused, match=r"nibabel .*pip install 'covid-xct\[volumes\]'"):
        read_volume(path)


def test_damaged_volume_files_are_refused_and_nothing_else(tmp_path):
    """Bytes changed and files cut anywhere: an answer or a refusal, never another error."""
    rng = np.random.default_rng(0)
    numbers, steps, origin = lying(HU[:, :33, :34], FLIPS[5])
    whole = [
        nifti(tmp_path / "a.nii", numbers, steps, origin),
        nifti(tmp_path / "b.nii.gz", numbers, steps, origin),
        nrrd(tmp_path / "c.nrrd", numbers, steps, origin),
        meta(tmp_path / "d.mha", numbers, steps, origin, packed=True),
    ]
    for file in whole:
        content = file.read_bytes()
        for turn in range(60):
            broken = bytearray(content)
            for place in rng.integers(0, 360 if turn % 2 else len(broken), 3):
                broken[place] = rng.integers(256)
            broken = broken[: rng.integers(1, len(broken))] if turn % 5 == 0 else broken
            for one in read_volumes(bytes(broken)):
                assert isinstance(one, (Volume, Unusable))
