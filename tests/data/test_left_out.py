"""What is no picture to learn from: masks, films from the side, localizers, pointers, files met twice."""

import json
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hub_model.check.files import DataRefused, pointer
from hub_model.check.headers import is_flat
from hub_model.check.sources import open_sources
from tests.bad_files import grey_picture, write_dicom
from tests.check.test_sources import skipped, told, tree, write_table, zipped
from train.data.dataset import USUAL
from train.data.explore import explore
from train.data.prepare import prepare

MASK = "a mask, not a picture"


def drawn_mask(seed: int = 0, mode: str = "L") -> Image.Image:
    mask = np.zeros((96, 96), np.uint8)
    mask[20:70, 15 + seed % 9 : 40] = mask[20:70, 55:80] = 255
    return Image.fromarray(mask).convert(mode)


def radiography_database(root, masks="masks", images="images", count=2):
    """The layout of the COVID-19 Radiography Database, and how its relatives call the two folders."""
    for number, name in enumerate(("COVID", "Normal")):
        for i in range(count):
            tree(root, f"{name}/{images}/{name}-{i}.png", start=10 * number + i)
            (root / name / masks).mkdir(parents=True, exist_ok=True)
            drawn_mask(i, "RGB").save(root / name / masks / f"{name}-{i}.png")
    return root


MASK_FOLDERS = "masks,Lung Masks,infection masks,Ground-truths,segmentation,labels,annotations,lungmask,gt"


@pytest.mark.parametrize("masks", MASK_FOLDERS.split(","))
@pytest.mark.parametrize("packed", [False, True])
def test_folders_of_masks_are_left_out_and_told_of(tmp_path, masks, packed):
    root = radiography_database(tmp_path / "COVID-19_Radiography_Dataset", masks)
    place = zipped(root, tmp_path / "set.zip") if packed else root
    rows = open_sources(place, modality="xray", labels=["Normal=Non-COVID"])
    assert len(told(rows)) == 4 and all("/images/" in path for path in told(rows))
    assert list(skipped(rows).values()) == [MASK] * 4


@pytest.mark.parametrize(
    "name", [*"1_mask 1-mask mask_1 1_lungmask 1_seg 1_gt 1.mask 1_segmentation 1_mask_2".split(), "1 mask"]
)
def test_files_called_masks_are_left_out(tmp_path, name):
    root = tree(tmp_path / "set", "CT/COVID/1.png", "CT/Non-COVID/1.png", f"CT/COVID/{name}.png")
    assert skipped(open_sources(root)) == {f"CT/COVID/{name}.png": MASK}


@pytest.mark.parametrize(
    "name", ["unmasked", "1_segment_3", "damask", "seg_1", "collateral", "bilateral pneumonia"]
)
def test_other_names_are_left_alone(tmp_path, name):
    root = tree(tmp_path / "set", f"CT/COVID/{name}.png", "CT/Non-COVID/1.png", "CT/labels/COVID/2.png")
    assert not skipped(open_sources(root))


def test_masks_called_like_their_picture_are_found_by_their_grey_levels(tmp_path):
    root = radiography_database(tmp_path / "set", masks="Lungs", images="", count=8)
    drawn_mask(3).save(root / "COVID" / "lonely.png")  # no twin: whatever it is, nothing says a mask
    for number, (name, mode) in enumerate([("one_bit", "1"), ("jpeg", "L")]):
        suffix = "png" if mode == "1" else "jpg"
        tree(root, f"COVID/{name}.png", start=90 + number)
        drawn_mask(number, mode).save(root / "COVID" / "Lungs" / f"{name}.{suffix}")
    out = prepare(
        [root],
        tmp_path / "out",
        "xray",
        labels=["Normal=Non-COVID"],
        families="known",
        jobs=1,
        keep_names=True,
    )
    lines = {line["path"]: line for line in pq.read_table(out / "manifest.parquet").to_pylist()}
    assert {path for path, line in lines.items() if line["refused"] == MASK} == {
        p for p in lines if "/Lungs/" in p
    }
    assert sum(line["split"] is not None for line in lines.values()) == 16 + 1 + 2
    assert not is_flat(grey_picture()) and is_flat(drawn_mask())


def test_explore_shows_what_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("train.data.dataset._cache", lambda: tmp_path)
    monkeypatch.setitem(USUAL, "families", "known")  # these small pictures all look alike
    root = radiography_database(tmp_path / "set", count=6)
    page = explore([str(root)], tmp_path / "report", modality="xray", labels=["Normal=Non-COVID"], examples=2)
    report = json.loads((page.parent / "report.json").read_text("utf-8"))
    assert report["left_out"] == {MASK: 12} and report["prepared"] is None
    assert f"<td>{MASK}</td><td>12</td>" in page.read_text("utf-8")


# --- views ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["view", "ViewPosition", "projection"])
@pytest.mark.parametrize("said", ["L", "LL", "RL", "LATERAL", "Left Lateral"])
def test_lateral_films_in_tables_are_left_out(tmp_path, column, said):
    root = tree(tmp_path / "set", "a.png", "b.png", "c.png")
    lines = zip("abc", ("PA", said, "AP Supine"), ("COVID", "COVID", "Non-COVID"), strict=True)
    write_table(
        root / "metadata.csv", [{"file_name": f"{n}.png", column: v, "label": c} for n, v, c in lines]
    )
    rows = open_sources(root, modality="xray")
    assert sorted(told(rows)) == ["a.png", "c.png"] and skipped(rows) == {"b.png": "a lateral view"}


@pytest.mark.parametrize("name", ["lateral/1", "view2_lateral", "1-Lateral"])
def test_lateral_films_by_name_are_left_out(tmp_path, name):
    root = tree(tmp_path / "set", "X-ray/COVID/1.png", "X-ray/Non-COVID/1.png", f"X-ray/COVID/{name}.png")
    assert skipped(open_sources(root)) == {f"X-ray/COVID/{name}.png": "a lateral view"}


def test_dicom_says_view_and_localizer(tmp_path):
    root = tree(
        tmp_path / "set",
        *(f"{k}/{c}/{n}.png" for k in ("X-ray", "CT") for c in ("COVID", "Non-COVID") for n in range(3)),
    )
    film = np.random.default_rng(0).integers(0, 4000, (64, 64), np.uint16)
    views = [
        {"ViewPosition": "LL"},
        {"ViewPosition": "LATERAL"},
        {"PatientOrientation": ["A", "F"]},
        {"ViewPosition": "RL"},
    ]
    for number, tags in enumerate(views):
        write_dicom(root / f"X-ray/COVID/side{number}.dcm", film + number, Modality="DX", **tags)
    frontal = {"ViewPosition": "PA", "PatientOrientation": ["L", "F"], "Modality": "DX"}
    write_dicom(root / "X-ray/COVID/front.dcm", film + 9, **frontal)
    scout = {"Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_dicom(root / "CT/COVID/scout.dcm", film + 10, RescaleSlope=1, RescaleIntercept=-1024, **scout)
    out = prepare([root], tmp_path / "out", families="known", jobs=1, keep_names=True)
    refused = {line["path"]: line["refused"] for line in pq.read_table(out / "manifest.parquet").to_pylist()}
    lateral = {f"X-ray/COVID/side{number}.dcm": "a lateral view" for number in range(4)}
    assert {path: why for path, why in refused.items() if why} == lateral | {
        "CT/COVID/scout.dcm": "a localizer (scout) image"
    }


# --- tables of other collections --------------------------------------------------------------------------


def test_a_table_without_a_label_says_which_column_is_wanted(tmp_path):
    root = tree(tmp_path / "a", "0.png", "1.png")
    (root / "metadata.csv").write_text("file_name,finding\n0.png,COVID\n1.png,Non-COVID\n")
    words = (
        "metadata.csv has the columns file_name, finding; one must hold the class: label. Rename that column"
    )
    with pytest.raises(DataRefused, match=words):
        open_sources(root, modality="ct")


def test_the_table_of_ieee8023_works_as_it_comes(tmp_path):
    root = tree(tmp_path / "ieee", *(f"images/{n}.png" for n in range(4)))
    (root / "volumes").mkdir()
    (root / "volumes" / "a.nii.gz").write_bytes(b"\x1f\x8b")
    (root / "metadata.csv").write_text(
        "patientid,offset,finding,view,modality,folder,filename,notes\n"
        "1,0,Pneumonia/Viral/COVID-19,PA,X-ray,images,0.png,\n2,,No Finding,L,X-ray,images,1.png,\n"
        '2,,No Finding,AP Supine,X-ray,images,2.png,"a, b"\n3,,No Finding,Coronal,CT,images,3.png,\n'
        "4,,No Finding,Axial,CT,volumes,a.nii.gz,\n"
    )
    rows = open_sources(root, labels=["Pneumonia/Viral/COVID-19=COVID", "No Finding=Non-COVID"])
    films = {"images/0.png": ("xray", 1), "images/2.png": ("xray", 0)}
    assert told(rows) == films | {"volumes/a.nii.gz": ("ct", 0)}
    assert skipped(rows) == {"images/1.png": "a lateral view", "images/3.png": "a coronal or sagittal view"}
    known = {row.known for row in rows if row.label == 0 and row.skipped is None}
    assert known == {("ieee:patient_id:2",), ("ieee:patient_id:4",)}
    with pytest.raises(DataRefused, match=r"a label is 'No Finding' \(2\), 'Pneumonia/Viral/COVID-19' \(1\)"):
        open_sources(root)


@pytest.mark.parametrize("where", ["train/", ""])
def test_the_lists_of_covidx_are_tables(tmp_path, where):
    root = tree(tmp_path / "covidx", f"{where}a.png", f"{where}b.png", "test/c.png", f"{where}extra.png")
    (root / "train.txt").write_text("7 a.png positive cohen\n8 b.png negative rsna\n")
    (root / "test_COVIDx9B.txt").write_text("9 c.png COVID-19 sirm\n")
    (root / "requirements.txt").write_text("numpy\n")
    rows = open_sources(root, modality="xray")
    assert told(rows) == {
        f"{where}a.png": ("xray", 1),
        f"{where}b.png": ("xray", 0),
        "test/c.png": ("xray", 1),
    }
    found = {row.path: row for row in rows}
    first = found[f"{where}a.png"]
    assert (first.source, first.known, first.official_split) == ("cohen", ("covidx:patient_id:7",), "train")
    assert (found["test/c.png"].official_split, found["requirements.txt"].skipped) == (
        "test",
        "not a picture",
    )


def test_the_lists_of_covidx_ct_need_their_numbers_explained(tmp_path):
    root = tree(tmp_path / "covidx", "2A_images/a.png", "2A_images/b.png", "2A_images/c.png")
    lines = ("a.png 2 9 9 330 340\n", "b.png 0 9 9 330 340\n", "c.png 1 9 9 330 340\n")
    (root / "train_COVIDx_CT-2A.txt").write_text("".join(lines))
    with pytest.raises(DataRefused, match=r"a label is '2' \(1\), '0' \(1\), '1' \(1\)"):
        open_sources(root, modality="ct")
    rows = open_sources(root, modality="ct", labels=["2=COVID", "0=Non-COVID", "1=skip"])
    assert told(rows) == {"2A_images/a.png": ("ct", 1), "2A_images/b.png": ("ct", 0)}


def test_tables_find_files_of_other_systems(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as target:
        for name in ("pictures\\Ro\u0308ntgen.png", "pictures/b.png"):  # decomposed, as macOS writes it
            content = tree(tmp_path / "made", "x.png", start=len(name)) / "x.png"
            info = zipfile.ZipInfo("x")
            info.filename = name
            target.writestr(info, content.read_bytes())
        target.writestr(
            "metadata.csv",
            "file_name;label\r\npictures\\R\u00f6ntgen.png;COVID\r\npictures/b.png;Non-COVID\r\n",
        )
    rows = open_sources(tmp_path / "set.zip", modality="xray")
    assert [(row.label, row.skipped) for row in rows] == [(1, None), (0, None)]
    assert all(row.ref is not None for row in rows)


# --- twice, never, or something else ------------------------------------------------------------------------


def test_a_zip_that_names_one_file_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as target, pytest.warns(UserWarning, match="Duplicate"):
        for seed in (1, 2):
            content = tree(tmp_path / "made", "x.png", start=seed) / "x.png"
            target.writestr("CT/COVID/slice.png", content.read_bytes())
    with pytest.raises(DataRefused, match=r"CT/COVID/slice\.png is in it 2 times"):
        open_sources(tmp_path / "set.zip")


def test_a_folder_linked_twice_is_taken_once(tmp_path):
    root = tree(tmp_path / "set", "CT/COVID/1.png", "CT/Non-COVID/1.png")
    elsewhere = tree(tmp_path / "elsewhere", "2.png", start=5)
    for name in ("CT/COVID/linked", "CT/COVID/linked again"):
        (root / name).symlink_to(elsewhere)
    rows = open_sources(root)
    assert sorted(told(rows)) == ["CT/COVID/1.png", "CT/COVID/linked/2.png", "CT/Non-COVID/1.png"]
    assert skipped(rows) == {"CT/COVID/linked again": "a link to a folder that is listed already"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n",
            "a Git LFS pointer.*git lfs pull",
        ),
        (b"/annex/objects/MD5E-s1--x.png\n", "a git-annex pointer.*git annex get"),
        (b"\n<!DOCTYPE html><html>Log in</html>", "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "an XML text"),
    ],
)
def test_stand_ins_are_named_as_what_they_are(tmp_path, content, words):
    root = tree(tmp_path / "set", *(f"CT/{c}/{n}.png" for c in ("COVID", "Non-COVID") for n in range(3)))
    (root / "CT/COVID/9.png").write_bytes(content)
    with pytest.raises(DataRefused, match=f"1 of 7 pictures cannot be read.*CT/COVID/9.png: {words}"):
        prepare([root], tmp_path / "out", families="known", jobs=1)
    assert pointer(b"\x89PNG") is None
    (root / "metadata.csv").write_bytes(content)
    with pytest.raises(DataRefused, match=f"metadata.csv: not a readable table.*{words}"):
        open_sources(root)
