"""From folders to a data set one can trust: what is written, what is refused, and what survives a kill."""

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

from hub_model.check.files import Cell, DataRefused, read_bytes
from hub_model.images import read_image
from tests.bad_files import files_of_at_most, grey_picture, make_bad_files, make_odd_files, write_dicom
from tests.check.test_sources import tree, zipped
from train.__main__ import app
from train.data import reading
from train.data.dataset import load_data, open_data, verify
from train.data.explore import explore
from train.data.manifest import read_manifest, write_manifest
from train.data.prepare import prepare
from train.data.split import LeakError, split_hash

COLUMNS = ["image", "label", "modality", "family", "source", "path"]
PARTS = ["train", "validation", "test"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Data opened here leaves nothing in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    datasets.disable_progress_bars()


def archive(root: Path, pictures: int = 12) -> Path:
    """The documented layout with so many different pictures per modality and class."""
    kinds = [(kind, label) for kind in ("X-ray", "CT") for label in ("COVID", "Non-COVID")]
    return tree(root, *(f"{kind}/{label}/{n}.png" for kind, label in kinds for n in range(pictures)))


def manifest(out: Path) -> dict[str, dict]:
    return {line["path"]: line for line in pq.read_table(out / "manifest.parquet").to_pylist()}


def lines(data: datasets.DatasetDict) -> list[tuple]:
    """Everything but the pictures."""
    return [
        (part, *(row[c] for c in COLUMNS[1:])) for part in PARTS for row in data[part].remove_columns("image")
    ]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """One prepared folder, not to be changed."""
    root = tmp_path_factory.mktemp("prepared")
    return prepare([archive(root / "set")], root / "out", families="known", jobs=1)


# --- the DatasetDict ----------------------------------------------------------------------------------


def test_covid_is_class_one(tmp_path):
    data = load_data(archive(tmp_path / "set"), families="known")
    for part in data.values():
        assert part.features["label"].names == ["Non-COVID", "COVID"]
        assert part.features["label"].str2int("COVID") == 1
        for row in part:
            assert row["label"] == ("/COVID/" in row["path"])
            assert row["modality"] == ("ct" if row["path"].startswith("CT/") else "xray")


def test_parts_columns_and_pictures(tmp_path):
    root = archive(tmp_path / "set")
    data = load_data(root, families="known")
    assert list(data) == PARTS
    assert [len(data[part]) for part in PARTS] == [34, 8, 6]  # per modality 16.8, 3.6 and 3.6 are wanted
    for part in PARTS:
        assert data[part].column_names == COLUMNS
        assert len({(row[1], row[2]) for row in lines(data) if row[0] == part}) == 4
    row = data["test"][0]
    assert (row["image"].mode, row["source"]) == ("L", "set")
    assert np.array_equal(row["image"], read_image(root / row["path"]))


def test_folder_zip_and_second_time_are_the_same(tmp_path, monkeypatch):
    root = archive(tmp_path / "set")
    first = lines(load_data(root, seed=1, families="known"))
    other = lines(load_data(zipped(root, tmp_path / "set.zip"), seed=1, families="known"))
    assert sorted((*row[:-1], row[-1].removeprefix("set/")) for row in other) == sorted(first)
    monkeypatch.setattr(reading, "read_image", None)  # whoever reads a picture now fails
    assert lines(load_data(root, seed=1, families="known")) == first


def test_seed_decides(tmp_path):
    root = archive(tmp_path / "set")
    one, same, other = (load_data(root, seed=seed, families="known") for seed in (1, 1, 2))
    assert lines(one) == lines(same) != lines(other)


def test_changed_file_is_noticed(tmp_path):
    root = archive(tmp_path / "set")
    load_data(root, families="known")
    grey_picture(seed=999).save(root / "CT/COVID/0.png")
    data = load_data(root, families="known")
    row = next(row for part in PARTS for row in data[part] if row["path"] == "CT/COVID/0.png")
    assert np.array_equal(row["image"], grey_picture(seed=999))


def test_one_modality(tmp_path, prepared):
    for source in (archive(tmp_path / "set"), prepared):
        data = load_data(source, modality="ct", families="known")
        assert sum(len(data[part]) for part in PARTS) == 24
        assert {row[2] for row in lines(data)} == {"ct"}


def test_real_collection_by_official_split(shared_data):
    data = load_data(shared_data, modality="ct", split="official", families="known", jobs=1)
    labels = {part: np.bincount(data[part]["label"]).tolist() for part in PARTS}
    assert labels == {"train": [232, 188], "validation": [58, 60], "test": [105, 96]}
    homes = {}
    for row in lines(data):
        assert homes.setdefault(row[3], row[0]) == row[0]
    assert len(homes) == 376


# --- the prepared folder ------------------------------------------------------------------------------


def test_datasets_opens_it_without_us(prepared):
    data = datasets.load_dataset(str(prepared))
    assert list(data) == PARTS
    assert data["train"].features == datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["Non-COVID", "COVID"]),
            **dict.fromkeys(COLUMNS[2:], datasets.Value("string")),
        }
    )
    assert lines(data) == lines(load_data(prepared))
    streamed = datasets.load_dataset(str(prepared), split="test", streaming=True)
    assert [row["path"] for row in streamed] == data["test"]["path"]


def test_the_files_beside_it(prepared):
    listed = manifest(prepared)
    assert len(listed) == 48
    picture = prepared.parent / "set" / "CT" / "COVID" / "3.png"
    one = listed[hashlib.sha256(picture.read_bytes()).hexdigest()[:16]]
    assert (one["mode"], one["width"], one["height"], one["label"]) == ("PNG L", 80, 64, "COVID")
    assert one["bytes"] > 0 and len(one["sha256"]) == 64 and one["split"] in PARTS and one["refused"] is None
    told = json.loads((prepared / "split.json").read_text())
    assert (told["split"], told["seed"], told["leaking"]) == ("family", 0, False)
    assert sum(told["counts"]["ct"]["train"].values()) == 17
    report = json.loads((prepared / "leak_report.json").read_text())
    assert (report["pictures"], report["families"], report["families_of_one"]) == (48, 48, 48)
    assert report["this_split"]["families_crossing"] == report["random_split"]["families_crossing"] == 0
    row = " | ".join(str(told["counts"]["ct"]["train"][label]) for label in ("Non-COVID", "COVID"))
    assert f"| ct | train | {row} |" in (prepared / "README.md").read_text()
    with Image.open(prepared / "families.png") as sheet:
        assert sheet.width == 1120


def test_what_a_process_killed_after_its_last_step_left_goes_with_the_next_run(tmp_path):
    given = {"families": "known", "jobs": 1}
    out = prepare([archive(tmp_path / "set")], tmp_path / "out", **given)
    (tmp_path / "out.partial" / "work").mkdir(parents=True)
    prepare([tmp_path / "set"], out, **given)
    assert not (tmp_path / "out.partial").exists()


def test_origin_is_what_the_data_say_and_not_what_flags_default_to(tmp_path):
    given = {"families": "known", "seed": 7, "jobs": 1, "keep_names": True}
    out = prepare([archive(tmp_path / "set")], tmp_path / "out", **given)
    data, origin = open_data(out)
    assert (origin.split, origin.seed, origin.families, origin.leaking) == ("family", 7, "known", False)
    assert (origin.ratios, origin.long_side, origin.sources) == ((0.7, 0.15, 0.15), None, ("set",))
    assert open_data(out, seed=7, families="known", split="family", ratios=(0.7, 0.15, 0.15))[1] == origin
    raw, same = open_data(tmp_path / "set", families="known", seed=7)
    assert lines(raw) == lines(data) and same == origin
    assert open_data(tmp_path / "set", families="known", seed=8)[1].split_sha256 != origin.split_sha256
    assert open_data(out, "ct")[1].data_sha256 != origin.data_sha256


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"seed": 7}, r"was prepared with seed 0; 7 was asked for \(--seed\)"),
        ({"split": "official"}, "split 'family'; 'official' was asked for"),
        ({"families": "found"}, "families 'known'; 'found' was asked for"),
        ({"ratios": (0.8, 0.1, 0.1)}, r"ratios \[0.7, 0.15, 0.15\]; \[0.8, 0.1, 0.1\] was asked for"),
        ({"long_side": 64}, r"long_side None; 64 was asked for \(--long-side\)"),
        (
            {"labels": ["Normal=Non-COVID"]},
            "its labels are settled; --labels Normal=Non-COVID comes too late",
        ),
    ],
)
def test_what_contradicts_prepared_data_is_refused(prepared, asked, words):
    with pytest.raises(DataRefused, match=words):
        open_data(prepared, **asked)


def test_plain_files_are_kept_and_others_become_lossless(tmp_path):
    root = archive(tmp_path / "set")
    folder, grey = root / "CT" / "COVID", grey_picture(seed=50)
    exif = Image.Exif()
    exif[0x010E] = "Mrs Smith"  # image description
    grey.save(folder / "plain.jpg", quality=80)
    grey.save(folder / "named.jpg", exif=exif)
    grey.save(folder / "comment.jpg", comment="Mrs Smith")
    grey.convert("RGB").save(folder / "rgb.jpg")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 200).save(folder / "deep.png")
    make_odd_files(folder / "odd")
    out = prepare([root], tmp_path / "out", families="known", jobs=1, keep_names=True)
    data = datasets.load_dataset(str(out)).cast_column("image", datasets.Image(decode=False))
    stored = {row["path"]: row["image"]["bytes"] for part in PARTS for row in data[part]}
    assert len(stored) == len(manifest(out)) == 48 + 5 + 9
    assert stored["CT/COVID/plain.jpg"] == (folder / "plain.jpg").read_bytes()
    for path, content in stored.items():
        with Image.open(io.BytesIO(content)) as image:
            assert image.mode == "L"
            assert np.array_equal(image, read_image(root / path)), path
        assert b"Smith" not in content


def test_long_side(tmp_path):
    root = archive(tmp_path / "set")
    data = load_data(root, families="known", long_side=40)
    assert {row["image"].size for row in data["train"]} == {(40, 32)}
    with pytest.raises(DataRefused, match="at least 32 pixels"):
        load_data(root, long_side=8)


def test_prepared_folders_can_be_joined(tmp_path, prepared):
    other = tree(
        tmp_path / "more",
        *(f"CT/{label}/x{n}.png" for label in ("COVID", "Non-COVID") for n in range(3)),
        start=100,
    )
    out = prepare([f"old={prepared}", f"new={other}"], tmp_path / "out", jobs=1, families="known")
    data = load_data(out)
    assert {row[4] for row in lines(data)} == {"old/set", "new"}
    assert {row[-1]: row[1] for row in lines(data) if row[4] == "old/set"} == {
        row[-1]: row[1] for row in lines(load_data(prepared))
    }


def test_several_processes_write_what_one_writes(tmp_path, prepared, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", 16)
    out = prepare([archive(tmp_path / "set")], tmp_path / "out", families="known", jobs=2)
    assert lines(load_data(out)) == lines(load_data(prepared))
    assert (
        json.loads((out / "split.json").read_text())["hash"]
        == json.loads((prepared / "split.json").read_text())["hash"]
    )


# --- families and leaks -------------------------------------------------------------------------------


def test_equal_pixels_and_known_groups_are_one_family(tmp_path):
    root = tree(tmp_path / "set", *(f"{n}.png" for n in range(20)))
    grey_picture(seed=0).save(root / "copy.png", compress_level=1)
    table = ["file_name,label,modality,group"]
    table += [f"{n}.png,{'COVID' if n % 2 else 'Non-COVID'},ct,{n % 10}" for n in range(20)]
    (root / "metadata.csv").write_text("\n".join([*table, "copy.png,Non-COVID,ct,99"]))
    out = prepare([root], tmp_path / "out", families="known", jobs=1, keep_names=True)
    listed = manifest(out)
    assert len({line["family"] for line in listed.values()} - {None}) == 10
    assert listed["copy.png"]["family"] == listed["0.png"]["family"] == listed["10.png"]["family"]
    assert listed["copy.png"]["sha256"] != listed["0.png"]["sha256"]
    assert json.loads((out / "leak_report.json").read_text())["exact_duplicates"] == 1


def test_dicom_files_of_one_patient_are_one_family_and_the_id_is_nowhere(tmp_path):
    root = archive(tmp_path / "set")
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 4000, (64, 64), np.uint16)
        patient = {"PatientID": "SECRET-77", "Modality": "DX"}
        write_dicom(root / f"X-ray/COVID/film{number}.dcm", pixels, **patient)
    out = prepare([root], tmp_path / "out", families="known", jobs=1, keep_names=True)
    listed = manifest(out)
    films = [line for path, line in listed.items() if path.endswith(".dcm")]
    assert len({line["family"] for line in films}) == 1
    assert {line["mode"] for line in films} == {"DICOM MONOCHROME2"}
    assert not any(b"SECRET" in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_names_of_files_and_folders_are_nowhere_and_families_learnt_from_them_stay(tmp_path, capfd):
    """Names may name patients, in files that are taken, copied, refused and never read alike."""
    root = archive(tmp_path / "set")
    for number in range(4):  # slices of one patient, by the folder they lie in
        folder = root / "CT" / "COVID" / "Doe_Jane_1948"
        folder.mkdir(exist_ok=True)
        grey_picture(seed=300 + number).save(folder / f"Doe_Jane_{number}.png")
    shutil.copy(root / "CT/COVID/0.png", root / "CT/COVID/Doe_Jane_copy.png")
    shutil.copy(root / "CT/COVID/0.png", root / "CT/Non-COVID/Doe_Jane_other_label.png")
    (root / "CT/COVID/Doe_Jane_broken.png").write_bytes(b"")
    (root / "CT/COVID/Doe_Jane_nowhere.png").symlink_to("Doe_Jane_missing.png")
    (root / "Doe_Jane.txt").write_text("no picture")
    options = {"families": "known", "jobs": 1, "max_unreadable": 0.5}
    named = prepare([root], tmp_path / "named", keep_names=True, **options)
    out = prepare([root], tmp_path / "out", **options)
    heard = capfd.readouterr()
    assert "Doe_Jane" not in heard.out + heard.err
    assert any(b"Doe_Jane" in path.read_bytes() for path in named.rglob("*") if path.is_file())
    listed = pq.read_table(out / "manifest.parquet").to_pylist()
    told = pq.read_table(named / "manifest.parquet").to_pylist()
    assert len({line["path"] for line in listed}) == len(listed) == 48 + 9
    for hidden, plain in zip(listed, told, strict=True):
        assert {**hidden, "path": plain["path"]} == plain
    explored = explore([str(out)], tmp_path / "explored")
    for folder in (out, explored.parent):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files and not any(b"Doe_Jane" in path.read_bytes() for path in files)
    assert {row[-1] for row in lines(load_data(out))} == {line["path"] for line in listed if line["split"]}
    assert json.loads((out / "split.json").read_text())["names"] == "hashed"
    assert prepare([root], out, **options) == out
    with pytest.raises(DataRefused, match="with other settings"):
        prepare([root], out, keep_names=True, **options)


def test_contradictory_labels_are_dropped_and_listed(tmp_path):
    root = archive(tmp_path / "set")
    shutil.copy(root / "CT/COVID/0.png", root / "CT/Non-COVID/again.png")
    out = prepare([root], tmp_path / "out", families="known", jobs=1, keep_names=True)
    listed = manifest(out)
    for path in ("CT/COVID/0.png", "CT/Non-COVID/again.png"):
        assert (listed[path]["split"], listed[path]["refused"]) == (
            None,
            "contradictory labels within its family",
        )
    (found,) = json.loads((out / "leak_report.json").read_text())["contradictions"]
    assert [one["label"] for one in found["dropped"]] == ["COVID", "Non-COVID"]
    assert sum(map(len, load_data(out).values())) == 47


def test_random_split_needs_a_word_and_is_marked_everywhere(tmp_path):
    root = archive(tmp_path / "set")
    for kind in ("COVID", "Non-COVID"):
        for copy in range(20):
            shutil.copy(root / f"CT/{kind}/0.png", root / f"CT/{kind}/copy{copy}.png")
    with pytest.raises(DataRefused, match=r"memory test.*--allow-leak"):
        prepare([root], tmp_path / "out", split="random")
    out = prepare([root], tmp_path / "out", split="random", allow_leak=True, families="known", jobs=1)
    told = json.loads((out / "split.json").read_text())
    report = json.loads((out / "leak_report.json").read_text())
    assert told["leaking"] == report["this_split"]["leaking"] == "LEAKING"
    assert report["this_split"]["families_crossing"] == report["random_split"]["families_crossing"] == 2
    assert "LEAKING" in (out / "README.md").read_text().split("---")[2].splitlines()[2]
    with pytest.warns(UserWarning, match="LEAKING"):
        load_data(out)
    with pytest.raises(DataRefused, match="prepared with split 'random'; 'family' was asked for"):
        load_data(out, split="family")


@pytest.mark.parametrize("file", ["manifest", "data"])
def test_a_changed_folder_is_found_out(tmp_path, prepared, file):
    out = Path(shutil.copytree(prepared, tmp_path / "out"))
    path = out / "manifest.parquet" if file == "manifest" else next((out / "data").glob("train*"))
    table = pq.read_table(path)
    changed = table.to_pylist()
    changed[0]["family"] = changed[1]["family"]
    pq.write_table(type(table).from_pylist(changed, table.schema), path)
    with pytest.raises(DataRefused, match="do not belong together"):
        load_data(out)


def test_a_consistent_lie_is_a_leak_all_the_same(tmp_path, prepared):
    """Whoever forges manifest, pictures and hash alike still cannot have one family on two sides."""
    out = Path(shutil.copytree(prepared, tmp_path / "out"))
    entries = read_manifest(out / "manifest.parquet")
    first = {part: next(entry for entry in entries if entry.split == part) for part in PARTS}
    first["test"].family = first["train"].family
    write_manifest(out / "manifest.parquet", entries)
    (shard,) = (out / "data").glob("test*")
    table = pq.read_table(shard)
    rows = table.to_pylist()
    for row in rows:
        if row["path"] == first["test"].path:
            row["family"] = first["train"].family
    pq.write_table(type(table).from_pylist(rows, table.schema), shard)
    told = json.loads((out / "split.json").read_text())
    (out / "split.json").write_text(json.dumps(told | {"hash": split_hash(entries)}))
    with pytest.raises(LeakError, match="This split leaks: 1 families"):
        verify(out)


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../secret.png", "C:\\secret.png", "https://example.org/x.png"]
)
def test_a_row_that_names_a_file_elsewhere_is_never_followed(tmp_path, prepared, name):
    out = Path(shutil.copytree(prepared, tmp_path / "out"))
    (shard,) = (out / "data").glob("test*")
    table = pq.read_table(shard)
    rows = table.to_pylist()
    rows[0]["image"] = {"bytes": None, "path": name}
    pq.write_table(type(table).from_pylist(rows, table.schema), shard)
    with pytest.raises(DataRefused, match="instead of holding its picture"):
        load_data(out)


def test_raw_data_sets_read_files_of_their_own_folder_alone(tmp_path):
    grey_picture(seed=1).save(tmp_path / "secret.png")
    (tmp_path / "set").mkdir()

    def cell(path, root):
        rows = [{"image": {"bytes": None, "path": str(path)}}]
        return Cell(rows, "image", 0, root)

    for path, root in [
        ("secret.png", None),
        ("../secret.png", tmp_path / "set"),
        (tmp_path / "secret.png", tmp_path / "set"),
    ]:
        with pytest.raises(OSError, match="names a file outside itself"):
            read_bytes(cell(path, root))
    assert read_bytes(cell("secret.png", tmp_path)) == (tmp_path / "secret.png").read_bytes()


# --- bad input ----------------------------------------------------------------------------------------


def test_every_bad_file_is_listed_with_its_reason(tmp_path):
    root = archive(tmp_path / "set")
    bad = make_bad_files(root / "X-ray" / "COVID" / "bad")
    out = prepare([root], tmp_path / "out", families="known", max_unreadable=0.5, jobs=1, keep_names=True)
    refused = {Path(path).name: line["refused"] for path, line in manifest(out).items() if line["refused"]}
    assert refused.keys() == bad.keys()
    assert "empty" in refused["zero_bytes.png"] and "1 x 1" in refused["one_pixel.png"]
    assert not any(str(tmp_path) in reason for reason in refused.values())
    assert sum(map(len, load_data(out).values())) == 48


def test_every_trouble_at_once_through_the_command_line(tmp_path):
    """Each file met is in the manifest once: in a part, or with the reason why not."""
    root = archive(tmp_path / "set")  # equal names in different folders
    bad = make_bad_files(root / "X-ray" / "COVID" / "bad")
    odd = make_odd_files(root / "X-ray" / "COVID" / "odd")  # of the same picture as 0.png there
    (root / "CT" / "COVID" / "loop").symlink_to("..", target_is_directory=True)
    (root / "CT" / "COVID" / "dangling.png").symlink_to("nowhere.png")
    (root / "notes.txt").write_text("no picture")
    os.mkfifo(root / "CT" / "COVID" / "pipe.png")
    out = tmp_path / "out"
    flags = ["--families", "known", "--jobs", "1", "--max-unreadable", "0.5", "--keep-names"]
    result = CliRunner().invoke(app, ["prepare", str(root), "--out", str(out), *flags])
    assert result.exit_code == 0, result.output
    listed = manifest(out)
    assert listed.keys() == {
        path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()
    } | {"CT/COVID/loop"}
    refused = {path: line["refused"] for path, line in listed.items() if line["split"] is None}
    assert len(refused) == len(bad) + 4 and all(refused.values())
    assert refused["CT/COVID/dangling.png"] == "a link that leads nowhere"
    assert refused["CT/COVID/loop"] == "a link back to a folder above it"
    assert refused["CT/COVID/pipe.png"] == "not a regular file"
    assert sum(map(len, load_data(out).values())) == 48 + len(odd)
    said = " ".join(result.stderr.split())
    assert f"{48 + len(odd)} pictures of" in said
    for reason in (
        f"unreadable ({len(bad) + 2})",
        "a link back to a folder above it (1)",
        "not a picture (1)",
    ):
        assert reason in said.partition("Left out, one by one in manifest.parquet:")[2]


def test_too_many_unreadable_files_stop_it(tmp_path):
    root = archive(tmp_path / "set")
    for number in range(2):
        (root / f"CT/COVID/bad{number}.png").write_bytes(b"")
    prepare([root], tmp_path / "four percent", families="known", jobs=1)
    (root / "CT/COVID/bad3.png").write_text("no picture")
    with pytest.raises(
        DataRefused, match=r"(?s)3 of 51 pictures cannot be read, more than 5%: .*CT/COVID/bad\d.png: "
    ):
        prepare([root], tmp_path / "out", families="known", jobs=1)
    assert not (tmp_path / "out").exists()


def test_one_class_only(tmp_path):
    root = tree(tmp_path / "set", *(f"CT/COVID/{n}.png" for n in range(5)))
    with pytest.raises(
        DataRefused, match="ct: only the class COVID is there; both Non-COVID and COVID are needed"
    ):
        load_data(root)


def test_equal_names_in_different_folders_and_foreign_letters(tmp_path):
    names = [f"{above}/CT/{label}/胸部 1.png" for above in "abcd" for label in ("COVID", "Non-COVID")]
    out = prepare(
        [tree(tmp_path / "Größe", *names)], tmp_path / "aus 胸", families="known", jobs=1, keep_names=True
    )
    assert sorted(manifest(out)) == sorted(names)
    assert sorted(row[-1] for row in lines(load_data(out))) == sorted(names)


def test_output_that_cannot_be_written(tmp_path):
    root = archive(tmp_path / "set", 3)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataRefused, match="cannot be written"):
        prepare([root], tmp_path / "file" / "out", families="known")
    with pytest.raises(DataRefused, match="something else is there already"):
        prepare([root], tmp_path / "file", families="known")
    with pytest.raises(DataRefused, match="something else is there already"):
        prepare([root], root, families="known")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("room, chunks", [(10_000, 0), (40_000, 5)], ids=["while reading", "while writing"])
def test_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, room, chunks):
    root = archive(tmp_path / "set", 6)
    monkeypatch.setattr(reading, "CHUNK", 5)
    with files_of_at_most(room), pytest.raises(DataRefused) as refusal:
        prepare([root], tmp_path / "out", families="known", jobs=1)
    assert "the disk is full; nothing was written there" in str(refusal.value)
    assert "The finished work in out.partial is not redone" in str(refusal.value)
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.partial" / "work").glob("*.parquet"))) == chunks
    prepare([root], tmp_path / "out", families="known", jobs=1)
    assert not (tmp_path / "out.partial").exists()


def test_a_killed_run_resumes(tmp_path, monkeypatch):
    root = archive(tmp_path / "set")
    monkeypatch.setattr(reading, "CHUNK", 5)
    whole = prepare([root], tmp_path / "whole", families="known", jobs=1)
    read: list[int] = []

    def counted(content, **keywords):
        if len(read) == 23:
            raise KeyboardInterrupt
        read.append(len(content))
        return read_image(content, **keywords)

    monkeypatch.setattr(reading, "read_image", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare([root], tmp_path / "out", families="known", jobs=1)
    assert not (tmp_path / "out").exists()
    done = len(read) // 5 * 5
    read.clear()
    read.extend([0] * 100)
    out = prepare([root], tmp_path / "out", families="known", jobs=1)
    assert len(read) - 100 == 48 - done
    for name in ("manifest.parquet", "leak_report.json", "README.md", "families.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


KILLED = """
import os, signal, sys
from train.data import reading
from train.data.prepare import prepare

met, read_image = [], reading.read_image

def counted(content, **keywords):
    met.append(len(content))
    if len(met) == 150:
        os.kill(os.getpid(), signal.SIGKILL)
    return read_image(content, **keywords)

reading.read_image = counted
prepare([sys.argv[1]], sys.argv[2], families="known", jobs=1)
"""


def test_a_process_killed_by_the_system_resumes(tmp_path, monkeypatch):
    """SIGKILL, as where memory runs out: nothing is tidied up, and finished chunks are not read again."""
    root, out = archive(tmp_path / "set", 50), tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(root), str(out)], stderr=subprocess.PIPE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not out.exists()
    assert len(list((tmp_path / "out.partial" / "work").glob("*.parquet"))) == 150 // reading.CHUNK == 2
    read: list[int] = []

    def counted(content, **keywords):
        read.append(len(content))
        return read_image(content, **keywords)

    monkeypatch.setattr(reading, "read_image", counted)
    prepare([str(root)], out, families="known", jobs=1)
    assert len(read) == 200 - 2 * reading.CHUNK
    assert len(manifest(out)) == sum(map(len, load_data(out).values())) == 200
    assert not (tmp_path / "out.partial").exists()


def test_finished_work_is_not_done_again(tmp_path, monkeypatch):
    root = archive(tmp_path / "set", 3)
    out = prepare([root], tmp_path / "out", families="known", jobs=1)
    before = os.stat(out / "split.json").st_mtime_ns
    monkeypatch.setattr(reading, "read_image", None)
    assert prepare([root], out, families="known", jobs=1) == out
    assert os.stat(out / "split.json").st_mtime_ns == before
    with pytest.raises(DataRefused, match=r"other settings \(split 'family', seed 0\)"):
        prepare([root], out, seed=1, families="known", jobs=1)
    (out / "split.json").write_text("[1")
    with pytest.raises(DataRefused, match=r"split\.json is damaged"):
        prepare([root], out, families="known", jobs=1)


def test_unknown_families_word(tmp_path):
    with pytest.raises(DataRefused, match="accepted are 'found' and 'known'"):
        load_data(archive(tmp_path / "set", 3), families="guessed")


def test_look_alikes_are_one_family_and_patients_too(tmp_path, shared_data):
    """Real slices, one turned and one mirrored: their families hold the copies as well as the known
    groups."""
    lines_of = csv.DictReader((shared_data / "metadata.csv").open(encoding="utf-8"))
    chosen = [line for line in lines_of if line["modality"] == "ct" and int(line["width"]) > 300]
    some = [line for label in ("COVID", "Non-COVID") for line in chosen if line["label"] == label][::40]
    table, root = ["file_name,label,modality,group"], tmp_path / "set"
    root.mkdir()
    for number, line in enumerate(some):
        with Image.open(shared_data / line["file_name"]) as image:
            copies = {"as is": image, "turned": image.rotate(25), "mirrored": ImageOps.mirror(image)}
            for name, copy in copies.items():
                copy.save(root / f"{number} {name}.png")
                group = line["group"] if name == "as is" else ""
                table.append(f"{number} {name}.png,{line['label']},ct,{group}")
    (root / "metadata.csv").write_text("\n".join(table), "utf-8")
    listed = manifest(prepare([root], tmp_path / "out", jobs=1, keep_names=True))
    known = manifest(prepare([root], tmp_path / "known", jobs=1, keep_names=True, families="known"))
    for number, _ in enumerate(some):
        assert len({listed[f"{number} {name}.png"]["family"] for name in copies}) == 1
        assert len({known[f"{number} {name}.png"]["family"] for name in copies}) == 3
    assert len({line["family"] for line in listed.values()}) == len({line["group"] for line in some})
