"""The one door: every documented kind of collection becomes rows; what cannot be trusted is refused in
words."""

import json
import os
import shutil
import stat
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest

from hub_model.check.files import DataRefused, read_bytes
from hub_model.check.sources import open_sources
from tests.bad_files import grey_picture, make_odd_files, write_dicom

CLASSES = {"COVID": 1, "Non-COVID": 0}


def tree(root: Path, *names: str, start: int = 0) -> Path:
    """A folder with one small picture per name; pictures differ by their number, counted from `start`."""
    for seed, name in enumerate(names, start):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        grey_picture(seed=seed).save(path, "PNG")
    return root


def zipped(root: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                target.write(path, path.relative_to(root.parent))
    return archive


def told(rows) -> dict[str, tuple]:
    """Modality and class by path, of the pictures."""
    return {row.path: (row.modality, row.label) for row in rows if row.skipped is None}


def skipped(rows) -> dict[str, str]:
    return {row.path: row.skipped for row in rows if row.skipped is not None}


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Data sets opened here leave nothing in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


# --- the documented layout --------------------------------------------------------------------------


@pytest.mark.parametrize("xray", ["X-ray", "X-Ray", "XRay", "xray", "X_RAY"])
@pytest.mark.parametrize("negative", ["Non-COVID", "Non_COVID", "NonCOVID", "non-covid", "Non COVID"])
def test_documented_names_in_any_spelling(tmp_path, xray, negative):
    names = [f"{kind}/{label}/1.png" for kind in (xray, "ct") for label in ("Covid", negative)]
    rows = open_sources(tree(tmp_path / "data", *names))
    assert told(rows) == dict(zip(names, [("xray", 1), ("xray", 0), ("ct", 1), ("ct", 0)], strict=True))


@pytest.mark.parametrize("above", ["", "COVID-19 Dataset/", "a/b/c/COVID-19 Dataset/"])
@pytest.mark.parametrize("below", ["", "patient 7/day 2/"])
def test_folder_and_zip_at_any_depth_give_the_same_rows(tmp_path, above, below):
    names = [f"{above}{kind}/{label}/{below}scan.png" for kind in ("X-ray", "CT") for label in CLASSES]
    root = tree(tmp_path / "set", *names)
    folder, archive = open_sources(root), open_sources(zipped(root, tmp_path / "set.zip"))
    assert told(folder) == dict(zip(names, [("xray", 1), ("xray", 0), ("ct", 1), ("ct", 0)], strict=True))
    assert told(archive) == {f"set/{path}": value for path, value in told(folder).items()}
    assert {row.source for row in [*folder, *archive]} == {"set"}
    assert sorted(read_bytes(row.ref) for row in folder) == sorted(read_bytes(row.ref) for row in archive)


def test_one_modality_is_taken_from_two(tmp_path):
    root = tree(tmp_path, *(f"{kind}/{label}/1.png" for kind in ("X-ray", "CT") for label in CLASSES))
    rows = open_sources(root, modality="ct")
    assert {value[0] for value in told(rows).values()} == {"ct"}
    assert set(skipped(rows).values()) == {"another modality (xray)"}


def test_folder_named_by_its_modality(tmp_path):
    rows = open_sources(tree(tmp_path / "CT", "COVID/1.png", "Non-COVID/1.png"))
    assert told(rows) == {"COVID/1.png": ("ct", 1), "Non-COVID/1.png": ("ct", 0)}


def test_two_folder_tree_with_the_modality_said(tmp_path):
    root = tree(tmp_path / "scans", "COVID/1.png", "Normal/1.png")
    rows = open_sources(root, modality="xray", labels=["Normal=Non-COVID"])
    assert told(rows) == {"COVID/1.png": ("xray", 1), "Normal/1.png": ("xray", 0)}


def test_parts_named_by_folders(tmp_path):
    names = [f"{part}/CT/{label}/1.png" for part in ("train", "val", "Test") for label in CLASSES]
    rows = open_sources(tree(tmp_path / "set", *names))
    assert [row.official_split for row in rows] == ["test"] * 2 + ["train"] * 2 + ["validation"] * 2


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["scans/COVID/1.png", "scans/Non-COVID/1.png"], "do not say class and modality: 'scans/"),
        (["CT/COVID/1.png", "CT/Normal/1.png"], r"1 pictures .*'CT/Normal' \(1\).*--labels Normal=Non-COVID"),
        (["CT/COVID/Non-COVID/1.png"], "'CT/COVID/Non-COVID'"),
        (["COVID-19/CT/Normal/1.png"], "'COVID-19/CT/Normal'"),
        (["CT/X-ray/COVID/1.png"], "'CT/X-ray/COVID'"),
        (["CT/COVID/1.png", "loose.png"], r"'\(top\)' \(1\)"),
    ],
)
def test_names_that_do_not_say_enough_are_never_guessed(tmp_path, names, words):
    with pytest.raises(DataRefused, match=words):
        open_sources(tree(tmp_path / "set", *names))


def test_conflicting_modalities_are_not_settled_by_the_flag(tmp_path):
    with pytest.raises(DataRefused, match="'CT/X-ray/COVID'"):
        open_sources(tree(tmp_path / "set", "CT/X-ray/COVID/1.png"), modality="ct")


# --- files with odd names -----------------------------------------------------------------------------


def test_every_file_is_told_of_except_what_operating_systems_leave(tmp_path):
    root = tree(
        tmp_path / "set", "CT/COVID/胸部 Röntgen.png", "CT/Non-COVID/胸部 Röntgen.png", "CT/COVID/.x.png"
    )
    for name in ("readme.txt", "CT/Thumbs.db", "CT/COVID/.DS_Store", "__MACOSX/CT/COVID/._1.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("no picture")
    for rows in (open_sources(root), open_sources(zipped(root, tmp_path / "set.zip"))):
        assert len(told(rows)) == 2
        assert [Path(path).name for path in skipped(rows)] == ["readme.txt"]


def test_pictures_are_found_whatever_they_are_called(tmp_path):
    make_odd_files(tmp_path / "CT" / "COVID")
    grey_picture().save(tmp_path / "CT" / "COVID" / "picture.txt", "PNG")
    rows = open_sources(tmp_path)
    assert len(told(rows)) == len(list((tmp_path / "CT" / "COVID").iterdir()))
    assert not skipped(rows)


def test_names_that_are_no_text(tmp_path):
    root = tree(tmp_path / "set", "CT/COVID/1.png", "CT/Non-COVID/1.png")
    odd = os.fsencode(root / "CT" / "COVID") + b"/caf\xe9.png"
    try:
        shutil.copy(root / "CT/COVID/1.png", odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    row = next(row for row in open_sources(root) if "caf" in row.path)
    assert row.path == "CT/COVID/caf\\xe9.png"
    assert read_bytes(row.ref).startswith(b"\x89PNG")


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = tree(tmp_path / "set", "CT/Non-COVID/1.png")
    elsewhere = tree(tmp_path / "elsewhere", "1.png", "2.png")
    (root / "CT" / "COVID").symlink_to(elsewhere, target_is_directory=True)
    (root / "CT" / "loop").symlink_to(root, target_is_directory=True)
    (root / "CT" / "COVID" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    rows = open_sources(root)
    assert skipped(rows) == {"CT/loop": "a link back to a folder above it"}
    assert sorted(told(rows)) == [
        "CT/COVID/1.png",
        "CT/COVID/2.png",
        "CT/COVID/gone.png",
        "CT/Non-COVID/1.png",
    ]
    gone = next(row for row in rows if row.path.endswith("gone.png"))
    with pytest.raises(FileNotFoundError, match="a link that leads nowhere"):
        read_bytes(gone.ref)


def test_a_pipe_named_like_a_picture_does_not_block(tmp_path):
    root = tree(tmp_path / "set", "CT/COVID/1.png")
    os.mkfifo(root / "CT" / "COVID" / "2.png")
    pipe = next(row for row in open_sources(root) if row.path.endswith("2.png"))
    with pytest.raises(OSError, match="not a regular file"):
        read_bytes(pipe.ref)


# --- tables -------------------------------------------------------------------------------------------


def write_table(path: Path, lines: list[dict]) -> None:
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(lines).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    else:
        keys = list(lines[0])
        text = [",".join(keys)] + [
            ",".join("" if line[k] is None else str(line[k]) for k in keys) for line in lines
        ]
        path.write_text("\n".join(text), "utf-8-sig")


LINES = [
    dict(file_name="a.png", label="COVID", modality="ct", group=7, source="north", official_split="val"),
    dict(
        file_name="sub/b.png",
        label="Non-COVID",
        modality="X-Ray",
        group=None,
        source="south",
        official_split=None,
    ),
]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("packed", [False, True])
def test_table_beside_pictures(tmp_path, suffix, packed):
    root = tree(tmp_path / "set", "inner/a.png", "inner/sub/b.png", "inner/c.png")
    write_table(root / "inner" / f"metadata.{suffix}", LINES)
    rows = open_sources(zipped(root, tmp_path / "set.zip") if packed else root)
    first, second = sorted((row for row in rows if row.skipped is None), key=lambda row: row.path)
    assert (first.modality, first.label, first.source, first.official_split) == (
        "ct",
        1,
        "north",
        "validation",
    )
    assert (second.modality, second.label, second.source, second.official_split) == ("xray", 0, "south", None)
    assert (first.known, second.known) == (("set:group:7",), ())
    assert [(Path(path).name, why) for path, why in skipped(rows).items()] == [
        ("c.png", "not in the label table")
    ]


def test_what_the_table_does_not_say_folders_may(tmp_path):
    root = tree(tmp_path / "set", "CT/COVID/1.png", "CT/Non-COVID/1.png")
    write_table(
        root / "metadata.csv",
        [{"file_name": f"CT/{label}/1.png", "patient_id": f"p-{label}"} for label in CLASSES],
    )
    rows = {row.path: row for row in open_sources(root)}
    assert told(rows.values()) == {"CT/COVID/1.png": ("ct", 1), "CT/Non-COVID/1.png": ("ct", 0)}
    assert rows["CT/COVID/1.png"].known == ("set:patient_id:p-COVID",)


def test_entries_without_file_or_label_are_told_of(tmp_path):
    root = tree(tmp_path / "set", "a.png", "b.png")
    write_table(
        root / "metadata.csv",
        [dict(file_name=f"{n}.png", label=v) for n, v in {"a": "COVID", "b": None, "c": "COVID"}.items()],
    )
    rows = {row.path: row for row in open_sources(root, modality="ct")}
    assert rows["b.png"].skipped == "no label in the table"
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_bytes(rows["c.png"].ref)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"label": "1"}, "a label is '1'.*Numbers are not guessed"),
        ({"label": "pneumonia"}, "a label is 'pneumonia'"),
        ({"modality": "mri"}, "modality 'mri'; accepted are xray and ct"),
        ({"official_split": "holdout"}, "official split 'holdout'"),
        ({"file_name": "../a.png"}, "does not lie below the table"),
        ({"file_name": "/etc/a.png"}, "does not lie below the table"),
        ({"file_name": "C:/a.png"}, "does not lie below the table"),
        ({"file_name": ""}, "does not lie below the table"),
        ({"file_name": "sub/b.png"}, "sub/b.png is listed twice"),
        ({"modality": ""}, "nothing says whether a.png is X-ray or CT"),
    ],
)
def test_tables_that_cannot_be_trusted(tmp_path, line, words):
    root = tree(tmp_path / "set", "a.png", "sub/b.png")
    write_table(root / "metadata.csv", [LINES[0] | line, LINES[1]])
    with pytest.raises(DataRefused, match=words):
        open_sources(root)


def test_numbers_count_once_their_meaning_is_said(tmp_path):
    root = tree(tmp_path / "set", "a.png", "b.png")
    write_table(root / "metadata.csv", [dict(file_name="a.png", label=0), dict(file_name="b.png", label=1)])
    rows = open_sources(root, modality="ct", labels=["0=COVID", "1=Non-COVID"])
    assert told(rows) == {"a.png": ("ct", 1), "b.png": ("ct", 0)}


@pytest.mark.parametrize(
    ("name", "content"),
    [("metadata.jsonl", b"[1]\n"), ("metadata.parquet", b"PAR"), ("metadata.csv", b"\xff\xfe\x00")],
)
def test_damaged_tables_are_refused(tmp_path, name, content):
    root = tree(tmp_path / "set", "a.png")
    (root / name).write_bytes(content)
    with pytest.raises(DataRefused, match=f"{name}: not a readable table"):
        open_sources(root)


def test_table_must_name_files(tmp_path):
    root = tree(tmp_path / "set", "a.png")
    write_table(root / "metadata.csv", [dict(image="a.png", label="COVID")])
    with pytest.raises(DataRefused, match="has the columns image, label; one must name the files: file_name"):
        open_sources(root)


@pytest.mark.parametrize("column", ["SOPInstanceUID", "series_instance_uid", "PatientID"])
def test_dicom_folder_with_a_table_by_id(tmp_path, column):
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    ids = {"SOPInstanceUID": "1.2.{}", "SeriesInstanceUID": "1.3.{}", "PatientID": "P{}"}
    for number, modality in enumerate(["CT", "DX"]):
        tags = {name: pattern.format(number) for name, pattern in ids.items()}
        write_dicom(tmp_path / f"IM{number}", pixels, Modality=modality, **tags)
    value = next(ids[name] for name in ids if name.lower() == column.replace("_", "").lower())
    write_table(
        tmp_path / "metadata.csv",
        [{column: value.format(n), "label": label} for n, label in enumerate(["COVID", "Non-COVID"])],
    )
    assert told(open_sources(tmp_path)) == {"IM0": ("ct", 1), "IM1": ("xray", 0)}


# --- datasets and several sources -----------------------------------------------------------------------


def image_dataset(names: list[str]) -> datasets.DatasetDict:
    """Two parts of two pictures; the class numbers follow the order of `names`."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    pictures = [grey_picture(seed=seed) for seed in range(4)]
    lines = [{"image": picture, "label": names[seed % 2]} for seed, picture in enumerate(pictures)]
    parts = {"train": lines[:2], "test": lines[2:]}
    return datasets.DatasetDict(
        {name: datasets.Dataset.from_list(some, features) for name, some in parts.items()}
    )


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_datasets_folder_by_class_name_not_number(tmp_path, own_cache, form):
    data = image_dataset(["COVID", "Non-COVID"])  # the alphabetical order, in which COVID is 0
    if form == "saved":
        data.save_to_disk(tmp_path / "set")
    else:
        for name, part in data.items():
            part.to_parquet(tmp_path / "set" / f"{name}-00000-of-00001.parquet")
    rows = open_sources(tmp_path / "set", modality="xray")
    assert [(row.label, row.official_split) for row in rows] == [
        (1, "train"),
        (0, "train"),
        (1, "test"),
        (0, "test"),
    ]
    assert all(read_bytes(row.ref).startswith(b"\x89PNG") for row in rows)


def test_datasets_folder_must_say_the_modality(tmp_path, own_cache):
    image_dataset(["COVID", "Non-COVID"]).save_to_disk(tmp_path / "set")
    with pytest.raises(DataRefused, match="nothing says whether train-000000 is X-ray or CT"):
        open_sources(tmp_path / "set")


def test_datasets_folder_needs_image_and_label(tmp_path, own_cache):
    datasets.Dataset.from_dict({"text": ["a"], "label": ["COVID"]}).save_to_disk(tmp_path / "set")
    with pytest.raises(DataRefused, match="the columns text, label; needed are one of images"):
        open_sources(tmp_path / "set")


def test_hub_id_that_cannot_be_fetched(own_cache):
    with pytest.raises(
        DataRefused, match="nobody/nothing: neither a folder here nor a data set that can be fetched"
    ):
        open_sources("nobody/nothing")


def test_sources_are_joined_under_their_names(tmp_path):
    one = tree(tmp_path / "one" / "data", "a.png")
    write_table(
        one / "metadata.csv", [dict(file_name="a.png", label="COVID", modality="ct", group=1, source="inner")]
    )
    two = tree(tmp_path / "two" / "data", "CT/Non-COVID/a.png")
    rows = [row for row in open_sources([f"first={one}", f"second={two}"]) if row.skipped is None]
    assert [row.source for row in rows] == ["first/inner", "second"]
    assert rows[0].known == ("first:group:1",)
    with pytest.raises(DataRefused, match="Several sources are called 'data'"):
        open_sources([one, two])


# --- archives that cannot be trusted --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../CT/COVID/1.png", "CT/../../1.png", "/CT/COVID/1.png", "C:\\CT\\1.png", "..\\1.png"]
)
def test_zip_entries_outside_the_archive(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        entry = zipfile.ZipInfo("placeholder")
        entry.filename = name
        archive.writestr(entry, b"content")
    with pytest.raises(DataRefused, match="points outside the archive"):
        open_sources(tmp_path / "set.zip")


def test_zip_with_a_link(tmp_path):
    entry = zipfile.ZipInfo("CT/COVID/1.png")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(DataRefused, match="points outside the archive"):
        open_sources(tmp_path / "set.zip")


def test_zip_that_unpacks_to_too_much(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("CT/COVID/1.png", bytes(2**21))
    assert (tmp_path / "set.zip").stat().st_size < 2**13
    with pytest.raises(DataRefused, match=r"unpacks to 0.00 GiB; the limit is 0.00 GiB.*--zip-limit"):
        open_sources(tmp_path / "set.zip", zip_limit=2**20)


def test_encrypted_zip(tmp_path):
    archive = zipped(tree(tmp_path / "set", "CT/COVID/1.png"), tmp_path / "set.zip")
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # general purpose flag, bit 0, in the central directory
    archive.write_bytes(content)
    with pytest.raises(DataRefused, match="the archive is encrypted"):
        open_sources(archive)


def test_damaged_zip_entry_is_that_files_trouble_alone(tmp_path):
    archive = zipped(tree(tmp_path / "set", "CT/COVID/1.png", "CT/COVID/2.png"), tmp_path / "set.zip")
    content = bytearray(archive.read_bytes())
    content[200] ^= 0xFF
    archive.write_bytes(content)
    first, second = open_sources(archive)
    with pytest.raises(OSError, match="damaged within its archive"):
        read_bytes(first.ref)
    assert read_bytes(second.ref).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("set.rar", b"Rar!\x1a\x07", "neither a folder nor a zip archive.*Unpack other archives"),
        ("cut.zip", b"PK\x05\x06" + bytes(18), "No pictures in"),
    ],
)
def test_files_that_hold_no_pictures(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataRefused, match=words):
        open_sources(tmp_path / name)


def test_replaced_zip_is_read_anew(tmp_path):
    one = open_sources(zipped(tree(tmp_path / "a", "CT/COVID/1.png"), tmp_path / "set.zip"))
    two = open_sources(zipped(tree(tmp_path / "b", "CT/COVID/1.png", "CT/COVID/2.png"), tmp_path / "set.zip"))
    assert (len(one), len(two)) == (1, 2)


def test_nothing_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataRefused, match=r"No pictures in .*empty. Accepted is 'X-ray' or 'CT'"):
        open_sources(tmp_path / "empty")
    with pytest.raises(DataRefused, match="no such folder or zip archive"):
        open_sources(tmp_path / "missing")
    with pytest.raises(DataRefused, match="No pictures of modality 'xray'"):
        open_sources(tree(tmp_path / "set", "CT/COVID/1.png"), modality="xray")
    with pytest.raises(DataRefused, match="Modality 'mri': accepted are xray and ct"):
        open_sources(tmp_path / "set", modality="mri")


def test_bad_label_words(tmp_path):
    for pair in ("Normal", "Normal=Healthy", "=COVID"):
        with pytest.raises(DataRefused, match="accepted is NAME=CLASS"):
            open_sources(tmp_path, labels=[pair])


def test_the_real_collection(shared_data):
    rows = open_sources(shared_data)
    pictures = [row for row in rows if row.skipped is None]
    assert len(pictures) == 2643
    assert sum(row.modality == "ct" for row in pictures) == 739
    assert sum(row.label for row in pictures) == 846 + 344
    assert sum(row.official_split == "test" for row in pictures) == 201
    assert all(row.known for row in pictures)
    assert sum(row.skipped == "not in the label table" for row in rows) == 500
