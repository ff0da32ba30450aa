"""Synthetic patients: the documented layout, known families, honest marks, and anatomy that makes sense."""

import csv
import hashlib
import json

import numpy as np
import pydicom
import pytest
from PIL import Image
from typer.testing import CliRunner

from hub_model.check.files import DataRefused
from hub_model.dicom import lung_window
from hub_model.images import frame_count, read_image
from hub_model.refused import Refused
from hub_model.volumes import read_volume
from tests.bad_files import files_of_at_most
from train.__main__ import app
from train.data.dataset import load_data
from train.phantom.imaging import Pose, axial_slice, draw_scan, film
from train.phantom.phantom import SETTINGS, draw_patient, draw_view, grey, phantom
from train.phantom.thorax import Thorax

SIZE = 96  # pixels: enough for lungs, and fast
FRONTAL = Pose(
    anteroposterior=False, yaw=0, pitch=0, roll=0, left=170, right=170, top=125, bottom=185, photons=1e6,
    scatter=0.1, flatten=0.2, sharpen=0, black=1, white=99, fog=0, gamma=1, blade=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return phantom(tmp_path_factory.mktemp("phantom") / "data", n=14, size=SIZE)


@pytest.fixture(scope="module")
def dicoms(tmp_path_factory):
    return phantom(tmp_path_factory.mktemp("dicom") / "data", n=4, patients=2, size=SIZE, dicom=True)


def table(folder):
    with open(folder / "metadata.csv", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def pictures(folder, suffix="*.png"):
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob(suffix)}


def person(finding, seed=5):
    return Thorax.drawn(finding, np.random.default_rng(seed), np.random.default_rng(seed + 1))


def test_layout_counts_and_table(folder):
    rows = table(folder)
    assert {row["file_name"] for row in rows} == set(pictures(folder))
    for modality, top in (("xray", "X-ray"), ("ct", "CT")):
        for label in ("COVID", "Non-COVID"):
            ours = [row for row in rows if (row["modality"], row["label"]) == (modality, label)]
            assert len(ours) == 7
            assert all(row["file_name"].startswith(f"{top}/{label}/phantom_") for row in ours)
    views = {row["patient_id"]: 0 for row in rows}
    for row in rows:
        views[row["patient_id"]] += row["modality"] == "ct"
        assert (row["source"], row["group"], row["synthetic"]) == ("phantom", row["patient_id"], "yes")
    assert len(views) == 6 and min(views.values()) >= 2
    assert {row["view"] for row in rows if row["modality"] == "ct"} == {"axial"}
    assert {row["view"] for row in rows if row["modality"] == "xray"} <= {"PA", "AP"}


def test_every_file_says_that_it_is_synthetic(folder, dicoms):
    for path in pictures(folder).values():
        with Image.open(path) as image:
            assert image.mode == "L" and min(image.size) == SIZE
            assert "not a patient" in image.text["Synthetic"]
    assert "SYNTHETIC" in (folder / "README.txt").read_text()
    for path in pictures(dicoms, "*.dcm").values():
        tags = pydicom.dcmread(path, stop_before_pixels=True)
        assert "NOT A PATIENT" in str(tags.PatientName) and tags.PatientID.startswith("PHANTOM-")
        assert "SYNTHETIC" in tags.StudyDescription and tags.InstitutionName == "NOT A HOSPITAL"
        assert path.name.startswith("phantom_")


def test_same_seed_same_bytes_and_patients_do_not_depend_on_n(folder, tmp_path):
    again = phantom(tmp_path / "again", n=6, patients=2, size=SIZE)
    other = phantom(tmp_path / "other", n=6, patients=2, size=SIZE, seed=1)
    first, second, third = ({name: hashlib.sha256(path.read_bytes()).digest() for name, path in found.items()}
                            for found in map(pictures, (folder, again, other)))  # fmt: skip
    shared = first.keys() & second.keys()
    assert len(shared) >= 8
    assert all(first[name] == second[name] for name in shared)
    assert second.keys() == third.keys()
    assert not set(second.values()) & set(third.values())
    assert len(set(first.values())) == len(first)


def test_the_door_takes_it_and_keeps_patients_together(folder):
    rows = {row["file_name"]: row["patient_id"] for row in table(folder)}
    parts = load_data(folder, modality="ct", families="known")
    homes = [{rows[path] for path in parts[name]["path"]} for name in ("train", "validation", "test")]
    assert sum(map(len, homes)) == len(set().union(*homes)) == 6
    assert all(set(parts[name]["label"]) == {0, 1} for name in parts)


def test_anatomy_does_not_depend_on_the_finding_and_lesions_lie_in_the_lungs():
    healthy, ill = person("healthy"), person("COVID-19")
    assert np.array_equal(healthy.vessels.start, ill.vessels.start) and healthy.width == ill.width
    axes = np.arange(-160, 161, 4.0), np.arange(-120, 121, 4.0), np.arange(-120, 90, 6.0)
    before, after = (one.hounsfield(*axes, upright=False, soft=4) for one in (healthy, ill))
    changed = np.abs(after - before) > 1
    x, y, z = axes
    lung = ill.lung_distance(x[None, None], y[None, :, None], z[:, None, None]) < 4
    assert changed.any() and not (changed & ~lung).any()
    inside = changed & (before < -700)  # not at an edge, which a voxel shares with rib or heart
    assert (after[changed] > before[changed]).all() and inside.any() and after[inside].max() < 60
    left, right = changed[..., x > 0].sum(), changed[..., x < 0].sum()
    assert min(left, right) > 0.2 * max(left, right), "COVID-19 is drawn on both sides"
    share = changed.sum() / lung.sum()
    assert 0.01 < share < 0.8


def test_covid_is_peripheral_and_lobar_pneumonia_one_sided():
    x, y, z = np.arange(-150, 151, 6.0), np.arange(-110, 111, 6.0), np.arange(-110, 90, 9.0)

    def touched(finding, seed):
        """Median depth under the pleura (mm), and the lesser side over the greater."""
        ill, none = person(finding, seed), person("healthy", seed)
        where = np.subtract(*(one.hounsfield(x, y, z, upright=False, soft=5) for one in (ill, none))) > 100
        depth = -none.lung_distance(x[None, None], y[None, :, None], z[:, None, None])
        sides = where[..., x < 0].sum(), where[..., x > 0].sum()
        return np.median(depth[where]), min(sides) / max(sides)

    covid, lobar = (
        np.mean([touched(finding, seed) for seed in range(4)], axis=0)
        for finding in ("COVID-19", "lobar pneumonia")
    )
    assert covid[0] < lobar[0]
    assert lobar[1] < 0.05 < 0.2 < covid[1]


def test_a_slice_has_hounsfield_units_of_a_chest():
    thorax = person("healthy")
    hu = axial_slice(thorax, -20.0, draw_scan(np.random.default_rng(0)), np.random.default_rng(1), 160)
    middle = np.abs(np.arange(hu.shape[1]) - hu.shape[1] / 2) < 0.3 * hu.shape[1]
    lung = (hu > -960) & (hu < -750)
    assert 0.08 < lung.mean() < 0.5
    assert lung[:, : hu.shape[1] // 2].any() and lung[:, hu.shape[1] // 2 :].any()
    assert 0.1 < ((hu > -150) & (hu < 150)).mean() < 0.7
    assert 0.005 < (hu > 250).mean() < 0.1, "bone"
    bone = np.argwhere((hu > 250) & middle)
    depth = bone[:, 0] / hu.shape[0]
    assert (depth > 0.7).any() and (depth < 0.3).any(), "breastbone and ribs above, spine and ribs below"
    assert not ((depth > 0.35) & (depth < 0.65)).any(), "and no bone between them"
    assert lung_window(hu)[lung].max() < 110


def test_a_film_has_dark_lungs_bright_middle_and_the_heart_on_the_patients_left():
    for seed in range(3):
        thorax = person("healthy", seed)
        shown = film(thorax, FRONTAL, np.random.default_rng(0), 160)
        pixel = (FRONTAL.left + FRONTAL.right) / shown.shape[1]

        def at(x, z, reach=8, shown=shown, pixel=pixel):
            row, column = round((FRONTAL.top - z) / pixel), round((FRONTAL.right + x) / pixel)
            span = round(reach / pixel)
            return shown[row - span : row + span + 1, column - span : column + span + 1].mean()

        for side in (-1, 1):
            assert at(side * 75, 20) < at(0, 20) - 0.25, "lungs are darker than the spine"
            assert at(side * 75, 20) < at(side * 70, min(thorax.domes) - 45) - 0.2, "and than the belly"
        heart = 0.5 * sum(thorax.domes) + 22
        assert at(55, heart) > at(-55, heart) + 0.1, "the heart is at the right of the picture"


def test_dicom_shows_the_same_picture(dicoms):
    rows = table(dicoms)
    assert len(rows) == 8
    for row in rows:
        number, view = (int(part[1:]) for part in row["file_name"].removesuffix(".dcm").split("_")[-2:])
        thorax, _ = draw_patient(0, number)
        index = ("xray", "ct").index(row["modality"])
        rng = np.random.default_rng([0, number, 2, index, view])
        expected = grey(draw_view(thorax, row["modality"], rng, SIZE))
        found = np.asarray(read_image(dicoms / row["file_name"], modality=row["modality"]), int)
        assert np.abs(found - expected).max() <= 1
    one = pydicom.dcmread(dicoms / next(row["file_name"] for row in rows if row["modality"] == "ct"))
    hu = one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept)
    assert one.BitsStored == 16 and hu.min() >= -2000 and 200 < hu.max() < 3072


def test_multi_frame_series_runs_from_the_belly_to_the_apices(dicoms):
    series = dicoms / "series" / "phantom_ct_series.dcm"
    assert frame_count(series) == 24
    shown = [np.asarray(read_image(series, frame=frame, modality="ct")) for frame in (0, 12, 23)]
    middle = [picture[40:-40, 40:-40] for picture in shown]
    dark = [np.mean((part > 60) & (part < 110)) for part in middle]
    assert dark[1] > 0.3 and dark[0] < dark[1] and dark[2] < dark[1]


def test_the_series_is_the_same_as_frames_as_slices_and_as_nifti(dicoms):
    frames, slices, nifti = (read_volume(dicoms / f"series{kind}") for kind in ("", "_slices", "_nifti"))
    assert (frames.kind, slices.kind, nifti.kind) == ("multi-frame DICOM", "DICOM series", "NIfTI")
    assert frames.positions == pytest.approx(nifti.positions, abs=0.01)
    for index in (0, 11, 23):
        expected = np.asarray(frames.slices[index]).astype(int)
        assert np.abs(np.asarray(slices.slices[index]) - expected).max() <= 1
        assert np.abs(np.asarray(nifti.slices[index]) - expected).max() <= 1


def test_a_finished_folder_is_left_alone_and_another_one_is_not_overwritten(folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert phantom(folder, n=14, size=SIZE) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(Refused, match=r"other settings \(seed 0\)"):
        phantom(folder, n=14, size=SIZE, seed=3)
    for number, damaged in enumerate(("{", "[]", "NaN")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / SETTINGS).write_text(damaged)
        with pytest.raises(Refused, match="is damaged"):
            phantom(tmp_path / str(number), n=4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(Refused, match="something else"):
        phantom(tmp_path / "mine", n=4)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_full_disk_leaves_nothing_behind(tmp_path):
    with files_of_at_most(500), pytest.raises(DataRefused, match="the disk is full; nothing was written"):
        phantom(tmp_path / "out", n=2, patients=2, modality="ct", size=SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"n": 1}, "at least 2 pictures"),
        ({"n": 4, "patients": 5}, "5 patients for 4 pictures"),
        ({"n": 4, "patients": 1}, "at least 2 patients"),
        ({"n": 4, "modality": "mri"}, "'xray' and 'ct'"),
        ({"n": 4, "size": 8}, "64 to 2048 pixels"),
        ({"n": 4, "seed": -1}, "seed of 0 or more"),
    ],
)
def test_settings_that_give_no_data_are_refused(tmp_path, settings, words):
    with pytest.raises(Refused, match=words):
        phantom(tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path):
    out = tmp_path / "made"
    flags = ["--n", "2", "--patients", "2", "--modality", "ct", "--size", "64", "--seed", "7"]
    result = CliRunner().invoke(app, ["phantom", "--out", str(out), *flags])
    assert result.exit_code == 0, result.output
    assert len(pictures(out)) == 2 and not (out / "X-ray").exists()
    assert json.loads((out / "phantom.json").read_text())["seed"] == 7
