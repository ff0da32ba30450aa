"""Families of copies: found under every step, never by a printed letter, and joined with what is known."""

import csv
import zipfile
from itertools import combinations

import cv2
import numpy as np
import pytest
from PIL import Image

from tests import augmented
from train.data.families import MIRRORED, NEAREST, RECORD, SURE, agreement, describe, find_families


def texture(seed: int, height: int = 240, width: int = 300) -> np.ndarray:
    """A grey picture with blobs of many sizes, different for every seed."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.normal(0, 1, (height, width)), (0, 0), size) * size for size in (2, 4, 8)]
    return cv2.normalize(sum(layers), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def decoded(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)


def partition(names) -> set[frozenset[int]]:
    names = list(names)
    return {frozenset(i for i, name in enumerate(names) if name == wanted) for wanted in set(names)}


def copies_of(seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [texture(seed)] + [decoded(augmented.augment(texture(seed), rng)[0]) for _ in range(count)]


def test_description_is_a_pure_function_of_fixed_size():
    image = texture(0)
    record = describe(image)
    assert record.dtype == RECORD and record.shape == () and record.nbytes == 21_762
    assert record["count"] == 160
    assert record.tobytes() == describe(Image.fromarray(image)).tobytes()
    assert np.frombuffer(record.tobytes(), RECORD)[0] == record


def test_reflecting_a_picture_permutes_its_features():
    plain, mirrored = describe(texture(0)), describe(texture(0)[:, ::-1])
    turned = plain["feature"][:, MIRRORED].astype(float)
    there = mirrored["feature"].astype(float)
    apart, unturned = (
        np.median(np.linalg.norm(some[:, None] - there[None], axis=2).min(axis=1))
        for some in (turned, plain["feature"].astype(float))
    )
    assert apart < 50 < 200 < unturned  # the features have length 512
    assert sorted(MIRRORED) == list(range(128))


@pytest.mark.parametrize("step", augmented.STEPS, ids=lambda step: step.__name__)
def test_copies_agree_under_each_step(step):
    rng = np.random.default_rng(0)
    image = texture(1)
    assert min(agreement(describe(image), describe(step(image, rng)[1])) for _ in range(8)) >= SURE


@pytest.mark.parametrize("angle", [1, 37, 90, 143, 180, 222, 301])
def test_copies_agree_under_any_angle_mirrored_or_not(angle):
    image = texture(2)
    matrix = cv2.getRotationMatrix2D((150, 120), angle, 1.0)
    turned = cv2.warpAffine(image, matrix, (300, 240))
    for copy in (turned, turned[:, ::-1], turned[::-1]):
        assert agreement(describe(image), describe(copy)) >= SURE


def test_copies_agree_after_strong_compression():
    content = cv2.imencode(".jpg", texture(3), [cv2.IMWRITE_JPEG_QUALITY, 20])[1]
    assert agreement(describe(texture(3)), describe(decoded(content.tobytes()))) >= SURE


def test_unrelated_pictures_do_not_agree():
    records = [describe(texture(seed)) for seed in range(12)]
    assert max(agreement(one, other) for one, other in combinations(records, 2)) == 0


def test_the_same_print_on_two_pictures_is_no_proof():
    pictures = [texture(seed) // 4 for seed in (4, 5)]
    for picture in pictures:
        cv2.putText(picture, "PORTABLE AP L", (10, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.9, 255, 2)
    assert agreement(*map(describe, pictures)) == 0


def test_families_are_exact_on_an_augmented_set():
    pictures = [copy for seed in range(6) for copy in copies_of(seed, 5)]
    order = np.random.default_rng(0).permutation(len(pictures))
    records = np.array([describe(pictures[place]) for place in order])
    names = find_families(records)
    assert partition(names) == partition(order // 6)
    assert list(dict.fromkeys(names)) == [f"family-{number:06d}" for number in range(6)]
    assert find_families(records, jobs=2) == names


def test_a_family_larger_than_the_neighbourhood_stays_whole():
    records = np.array([describe(texture(seed)) for seed in (0, 1) for _ in range(3 * NEAREST)])
    assert partition(find_families(records)) == partition(np.arange(6 * NEAREST) // (3 * NEAREST))


def test_known_names_are_joined_with_what_is_found():
    pictures = [*copies_of(0, 2), *copies_of(1, 2), texture(2), texture(3)]
    records = np.array([describe(picture) for picture in pictures])
    known = [None, None, "patient 7", "patient 7", "", None, "patient 8", ""]
    assert partition(find_families(records, known)) == {frozenset(range(6)), frozenset({6}), frozenset({7})}
    assert partition(find_families(records)) == partition([0, 0, 0, 1, 1, 1, 2, 3])


def test_a_wrong_number_of_known_names_is_refused():
    with pytest.raises(ValueError, match="1 known names for 2 pictures"):
        find_families(np.array([describe(texture(0))] * 2), ["patient 7"])


def test_featureless_and_odd_pictures_stay_alone():
    odd = [np.zeros((40, 40)), np.full((40, 40), 255), np.zeros((1, 1)), np.zeros((2, 4000)), texture(0)]
    records = np.array([describe(picture.astype(np.uint8)) for picture in odd])
    assert records["count"][:4].tolist() == [0, 0, 0, 0]
    assert len(set(find_families(records))) == 5
    assert len(set(find_families(records[:4]))) == 4


def test_no_picture_and_one_picture():
    assert find_families(np.zeros(0, RECORD)) == []
    assert find_families(np.array([describe(texture(0))])) == ["family-000000"]


def test_progress_never_goes_back_and_ends_complete():
    told = []
    records = np.array([describe(texture(seed)) for seed in range(NEAREST)])
    find_families(records, progress=lambda done, total: told.append((done, total)))
    assert (
        told == sorted(told) and told[-1][0] == told[-1][1] == NEAREST * (NEAREST - 1) // 2
    )  # each pair once


def test_stored_records_give_the_same_families(tmp_path):
    records = np.array([describe(copy) for seed in range(3) for copy in copies_of(seed, 3)])
    np.save(tmp_path / "records.npy", records, allow_pickle=False)
    mapped = np.load(tmp_path / "records.npy", mmap_mode="r", allow_pickle=False)
    assert find_families(mapped) == find_families(records)


def test_archive_has_the_documented_layout_and_a_seed_fixes_its_bytes(tmp_path):
    sources = []
    for number, (modality, label) in enumerate([("xray", "COVID"), ("ct", "Non-COVID")]):
        cv2.imwrite(str(tmp_path / f"{number}.png"), texture(number))
        sources.append(augmented.Original(tmp_path / f"{number}.png", modality, label, str(number)))
    folder, again, packed = tmp_path / "folder", tmp_path / "again", tmp_path / "archive.zip"
    tables = [augmented.write_archive(sources, out, copies=3, seed=5) for out in (folder, again, packed)]
    assert len({table.read_text("utf-8") for table in tables}) == 1
    with tables[0].open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {tuple(row["file_name"].split("/")[:3]) for row in rows} == {
        ("COVID-19 Dataset", "X-ray", "COVID"),
        ("COVID-19 Dataset", "CT", "Non-COVID"),
    }
    assert [row["original"] for row in rows] == ["0.png"] * 4 + ["1.png"] * 4
    assert [bool(row["steps"]) for row in rows] == [False, True, True, True] * 2
    with zipfile.ZipFile(packed) as archive:
        assert sorted(archive.namelist()) == sorted(row["file_name"] for row in rows)
        for row in rows:
            content = (folder / row["file_name"]).read_bytes()
            assert content == (again / row["file_name"]).read_bytes() == archive.read(row["file_name"])


@pytest.mark.parametrize("modality", ["ct", "xray"])
def test_real_pictures_find_their_copies_and_nothing_else(shared_data, modality):
    sources = augmented.originals(shared_data, modality, limit=8)
    records, truth = [], []
    for original in sources:
        for content, _, _ in augmented.copies_of(original, 4, np.random.default_rng(1)):
            records.append(describe(decoded(content)))
            truth.append(original)
    names = find_families(np.array(records))
    pairs = list(combinations(range(len(truth)), 2))
    copies = [names[one] == names[other] for one, other in pairs if truth[one] is truth[other]]
    assert np.mean(copies) >= 0.97
    assert all(truth[one].group == truth[other].group for one, other in pairs if names[one] == names[other])
