"""Splits: families stay whole, classes and sources stay balanced, and a leak is found."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from hub_model.check.files import DataRefused
from train.data.split import (
    RATIOS,
    SPLITS,
    LeakError,
    assign_splits,
    prove_no_leak,
    random_crossings,
    split_hash,
)


@dataclass
class Picture:
    path: str
    family: str
    label: int = 0
    modality: str = "ct"
    source: str = "a"
    official_split: str | None = None
    split: str | None = None
    pixels: str = ""

    def __post_init__(self):
        self.pixels = self.pixels or self.path


def collection(seed: int = 0, families: int = 300) -> list[Picture]:
    """Families of 1 to 22 pictures over two modalities, two classes and three sources, as real ones are."""
    rng = random.Random(seed)
    pictures = []
    for family in range(families):
        modality, label = rng.choice(["ct", "xray"]), rng.randrange(2)
        source = rng.choices(["big", "middle", "small"], [70, 25, 5])[0]
        for _ in range(rng.choice([1, 1, 1, 2, 3, 10, 22])):
            name = f"{modality}/{len(pictures):05d}.png"
            pictures.append(Picture(name, f"f{family}", label, modality, source))
    return pictures


def place(pictures: list[Picture], *args, **keywords) -> list[Picture]:
    for picture, split in zip(pictures, assign_splits(pictures, *args, **keywords), strict=True):
        picture.split = split
    return pictures


@pytest.mark.parametrize("seed", range(5))
def test_family_split_keeps_families_whole(seed):
    pictures = place(collection(seed), "family", seed)
    prove_no_leak(pictures)
    homes = Counter()
    for family in {picture.family for picture in pictures}:
        homes[len({picture.split for picture in pictures if picture.family == family})] += 1
    assert homes == {1: 300}


@pytest.mark.parametrize("seed", range(5))
def test_every_class_and_every_larger_source_has_its_shares(seed):
    pictures = place(collection(seed), "family", seed)
    groups = [("modality", "ct"), ("modality", "xray"), ("label", 0), ("label", 1), ("source", "big")]
    for key, value in [*groups, ("source", "middle")]:
        some = [picture.split for picture in pictures if getattr(picture, key) == value]
        for split, share in zip(SPLITS, RATIOS, strict=True):
            assert some.count(split) / len(some) == pytest.approx(share, abs=0.03), (key, value, split)


def test_split_depends_on_seed_and_content_alone():
    pictures = collection()
    first = {picture.path: picture.split for picture in place(pictures, seed=3)}
    random.Random(1).shuffle(pictures)
    assert {picture.path: picture.split for picture in place(pictures, seed=3)} == first
    assert {picture.path: picture.split for picture in place(pictures, seed=4)} != first


def test_modality_splits_the_same_with_and_without_the_other():
    pictures = collection()
    both = {p.path: p.split for p in place(pictures) if p.modality == "ct"}
    alone = {p.path: p.split for p in place([p for p in pictures if p.modality == "ct"])}
    assert alone == both


def test_large_families_are_not_all_trained_on():
    pictures = place(collection())
    largest = {name for name, size in Counter(p.family for p in pictures).items() if size == 22}
    assert {p.split for p in pictures if p.family in largest} == set(SPLITS)


def test_three_families_of_a_class_are_enough_and_two_are_not():
    pictures = [
        Picture(f"{label}-{i}-{j}", f"{label}-{i}", label)
        for label in (0, 1)
        for i in range(3)
        for j in range(4)
    ]
    place(pictures)
    for label in (0, 1):
        assert {p.split for p in pictures if p.label == label} == set(SPLITS)
    few = [p for p in pictures if p.family != "1-0"]
    with pytest.raises(DataRefused, match=r"ct: class COVID has 2 families.*at least 3"):
        assign_splits(few)


def test_patient_in_both_modalities_stays_in_one_part():
    pictures = collection()
    pictures += [Picture("xray/extra.png", "f0", 1, "xray"), Picture("ct/extra.png", "f0", 1, "ct")]
    prove_no_leak(place(pictures))


def test_official_split_is_kept_and_cleaned_towards_test():
    pictures = [
        Picture(f"{label}-{part}-{i}", f"{label}-{part}-{i}", label, official_split=part)
        for label in (0, 1)
        for part in SPLITS
        for i in range(3)
    ]
    pictures[0].family = "0-test-0"  # a training picture whose copy is tested
    pictures.append(Picture("unassigned", "unassigned"))
    xray = [p for p in collection() if p.modality == "xray"]
    place(pictures + xray, "official")
    assert [p.split for p in pictures] == [None] + [p.official_split for p in pictures[1:]]
    assert {p.split for p in xray} == set(SPLITS)
    prove_no_leak(p for p in pictures + xray if p.split)


def test_validation_is_taken_from_train_where_none_is_published():
    pictures = collection(families=100)
    for picture in pictures:
        picture.official_split = "test" if int(picture.family[1:]) % 3 == 0 else "train"
    place(pictures, "official")
    assert all((p.split == "test") == (p.official_split == "test") for p in pictures)
    assert {p.split for p in pictures} == set(SPLITS)
    prove_no_leak(pictures)


def test_a_collection_without_official_parts_trains_beside_one_that_has_them():
    published = [
        Picture(f"{label}-{part}-{i}", f"{label}-{part}-{i}", label, official_split=part)
        for label in (0, 1) for part in ("train", "validation", "test") for i in range(3)
    ]  # fmt: skip
    other = [Picture(f"o{i}", f"o{i}", i % 2, source="other") for i in range(6)]
    other.append(Picture("copy", published[-1].family, 1, source="other"))  # of a test picture
    place(published + other, "official")
    assert [p.split for p in other] == ["train"] * 6 + [None]
    assert [p.split for p in published] == [p.official_split for p in published]


def test_official_split_needs_a_test_part():
    pictures = collection()
    pictures[0].official_split = "train"
    with pytest.raises(DataRefused, match=r"official splits are train; train and test must be among them"):
        assign_splits(pictures, "official")


def test_official_split_needs_a_column():
    with pytest.raises(DataRefused, match="No row names an official split"):
        assign_splits(collection(), "official")


def test_random_split_leaks_and_is_measured():
    pictures = place(collection(), "random", 0)
    with pytest.raises(LeakError, match=r"This split leaks: \d+ families"):
        prove_no_leak(pictures)
    crossing = {
        p.family for p in pictures if p.split != next(q.split for q in pictures if q.family == p.family)
    }
    known = {p.family for p in pictures if p.split == "train"}
    tested = [p for p in pictures if p.split == "test"]
    assert random_crossings(pictures, 0) == {
        "families_crossing": len(crossing),
        "families": 300,
        "test_pictures_with_family_in_train": sum(p.family in known for p in tested),
        "test_pictures": len(tested),
    }
    assert len(crossing) > 100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"family": "f1"}, "family f1 in"),
        ({"pixels": "ct/one.png"}, "picture ct/one.png in"),
        ({"split": None}, "both must be set"),
        ({"family": ""}, "both must be set"),
    ],
)
def test_audit_finds_one_leak(change, words):
    pictures = [Picture("ct/one.png", "f1", split="train"), Picture("ct/two.png", "f2", split="test")]
    prove_no_leak(pictures)
    for name, value in change.items():
        setattr(pictures[1], name, value)
    with pytest.raises(LeakError, match=words):
        prove_no_leak(pictures)


def test_hash_is_of_the_assignment_not_of_its_order():
    pictures = place(collection(families=60))
    before = split_hash(pictures)
    assert split_hash(reversed(pictures)) == before
    pictures[0].split = "validation" if pictures[0].split != "validation" else "test"
    assert split_hash(pictures) != before


@pytest.mark.parametrize("ratios", [(0.7, 0.3), (0.7, 0.2, 0.2), (1.0, 0.0, 0.0), (0.9, 0.2, -0.1)])
def test_bad_ratios_are_refused(ratios):
    with pytest.raises(DataRefused, match="three shares above 0"):
        assign_splits(collection(), ratios=ratios)


def test_unknown_kind_is_refused():
    with pytest.raises(DataRefused, match="accepted are 'family', 'official', 'random'"):
        assign_splits(collection(), "stratified")
