"""A label is known exactly, mapped by the user, or refused with all that was met; never guessed."""

import unicodedata

import pytest

from hub_model.check.files import DataRefused
from hub_model.check.labels import exact, label_words, names_nobody
from hub_model.check.sources import open_sources
from tests.check.test_sources import skipped, told, tree, write_table


def table_of(root, *labels):
    """A folder with one picture per label and a metadata.csv that gives it."""
    tree(root, *(f"{n}.png" for n in range(len(labels))))
    write_table(
        root / "metadata.csv", [{"file_name": f"{n}.png", "label": label} for n, label in enumerate(labels)]
    )
    return root


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("COVID", "COVID-"), ("COVID", "COVID+"), ("COVID", "COVID?"), ("COVID", "非COVID"), ("COVID", "НЕ COVID"),
        ("COVID", "COVID阴性"), ("COVID", "COVID ±"), ("PCR+", "PCR-"), ("1", "-1.0"), ("1", "10"), ("1.0", "1.01"),
        ("COVID", "no covid"), ("COVID", "not covid"), ("COVID", "لا كوفيد COVID"), ("1-0", "10"), ("COVID", "¬COVID"),
        ("COVID", "COVID_"), ("COVID", "_COVID"), ("COVID", "(COVID)"), ("positive", "Positive?"), ("0", "-"),
    ],
)  # fmt: skip
def test_signs_and_letters_of_any_script_count(one, other):
    assert exact(one) != exact(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Non-COVID", "non_covid "), ("NonCOVID", "NON COVID"), ("Non‐COVID", "non–covid"), ("COVID-19", "covid 19"),
        ("ＣＯＶＩＤ", "covid"), ("１", "1"), ("1.0", "1"), ("+1", "01.00"), ("-0.0", "0"), ("-1", "-1.0"),
        ("Größe", "GRÖSSE"), (unicodedata.normalize("NFD", "é"), "É"), ("0" * 5000 + "1", "1"), (True, "TRUE"),
    ],
)  # fmt: skip
def test_ways_to_write_one_name_do_not(one, other):
    assert exact(one) == exact(other)


@pytest.mark.parametrize(
    "label",
    ["-1.0", "COVID-", "COVID+", "COVID?", "COVID±", "非COVID", "НЕ COVID", "COVID阴性", "no covid", "not covid",
     "Negative for COVID-19", "0.0", "1.0", "-1", "True", "كوفيد", "阴性", "отрицательный", "नकारात्मक", "2", "nan"],
)  # fmt: skip
def test_unknown_labels_are_refused_by_name(tmp_path, label):
    with pytest.raises(DataRefused) as refusal:
        open_sources(table_of(tmp_path / "set", "COVID", "Non-COVID", label, label), modality="xray")
    assert f"a label is {label!r} (2)" in str(refusal.value)


def test_everything_that_was_met_is_listed_with_its_count(tmp_path):
    with pytest.raises(
        DataRefused, match=r"a label is 'a' \(2\), 'b' \(1\); accepted are Non-COVID and COVID"
    ):
        open_sources(table_of(tmp_path / "set", "a", "b", "a", "COVID"), modality="ct")


def test_numbers_compare_as_numbers_and_minus_one_is_told_apart(tmp_path):
    root, said = table_of(tmp_path / "set", "1.0", "0.0", "-1.0"), ["1=COVID", "0=Non-COVID"]
    with pytest.raises(DataRefused, match=r"a label is '-1.0' \(1\).*'-1.0=COVID'.*=skip"):
        open_sources(root, modality="xray", labels=said)
    rows = open_sources(root, modality="xray", labels=[*said, "-1=skip"])
    assert told(rows) == {"0.png": ("xray", 1), "1.png": ("xray", 0)}
    assert skipped(rows) == {"2.png": "left out by --labels -1.0=skip"}


@pytest.mark.parametrize(
    "folder", ["COVID-", "COVID?", "非COVID", "НЕ COVID", "COVID阴性", "not COVID", "COVID+", "Negativo"]
)
def test_unknown_folders_are_refused_by_name(tmp_path, folder):
    root = tree(tmp_path / "set", "CT/COVID/1.png", "CT/Non-COVID/1.png", f"CT/{folder}/1.png")
    with pytest.raises(
        DataRefused, match="1 pictures lie in folders whose names do not say class"
    ) as refusal:
        open_sources(root)
    assert repr(f"CT/{folder}") in str(refusal.value)


@pytest.mark.parametrize("folder", ["not covid", "非covid", "COVID?", "COVID-", "Normal", "COVID negative"])
def test_a_doubtful_folder_below_a_class_is_not_that_class(tmp_path, folder):
    """Normal is doubtful as it lies beside CT/COVID/COVID: the classes are named there once more."""
    root = tree(tmp_path / "set", "CT/COVID/COVID/1.png", "CT/Non-COVID/1.png", f"CT/COVID/{folder}/1.png")
    with pytest.raises(DataRefused, match="Names are not guessed"):
        open_sources(root)


@pytest.mark.parametrize(
    "below", ["patient 7/day 2", "COVID-1", "covid_patient_12", "images", "train", "scan (3)"]
)
def test_folders_of_patients_below_a_class_stay_in_it(tmp_path, below):
    rows = open_sources(tree(tmp_path / "set", f"CT/COVID/{below}/1.png", "CT/Non-COVID/1.png"))
    assert told(rows) == {f"CT/COVID/{below}/1.png": ("ct", 1), "CT/Non-COVID/1.png": ("ct", 0)}


@pytest.mark.parametrize(
    ("positive", "negative"),
    [("PCR+", "PCR-"), ("新冠肺炎", "正常"), ("Ковид", "Норма"), ("كوفيد", "سليم"), ("कोविड", "सामान्य"), ("a=b", "a=c"),
     ("covid+", "covid-"), ("感染", "非感染")],
)  # fmt: skip
def test_names_in_any_script_can_be_mapped(tmp_path, positive, negative):
    said = [f"{positive}=COVID", f"{negative}=Non-COVID"]
    rows = open_sources(tree(tmp_path / "set", f"CT/{positive}/1.png", f"CT/{negative}/1.png"), labels=said)
    assert told(rows) == {f"CT/{positive}/1.png": ("ct", 1), f"CT/{negative}/1.png": ("ct", 0)}
    composed = [unicodedata.normalize("NFD", text) for text in said]
    assert label_words(composed) == label_words(said)
    rows = open_sources(table_of(tmp_path / "table", positive, negative), modality="xray", labels=said)
    assert [row.label for row in rows if row.skipped is None] == [1, 0]


def test_one_name_with_two_meanings_is_refused():
    with pytest.raises(DataRefused, match=r"'1\.0=COVID' and '1=Non-COVID' give one name two meanings"):
        label_words(["1.0=COVID", "1=Non-COVID"])
    assert label_words(["A=COVID", "a=covid"])["a"] == 1


@pytest.mark.parametrize(
    "word",
    [*"NA n/a nan NaN unknown Anonymous REMOVED <removed> [REDACTED] ? None de-identified -".split(), ""],
)
def test_what_stands_for_a_missing_patient_names_nobody(tmp_path, word):
    assert names_nobody(word) and not names_nobody("0") and not names_nobody("patient 7")
    root = tree(tmp_path / "set", "CT/COVID/1.png", "CT/Non-COVID/1.png")
    lines = [
        {"file_name": f"CT/{name}/1.png", "patient_id": word, "group": word}
        for name in ("COVID", "Non-COVID")
    ]
    write_table(root / "metadata.csv", lines)
    assert [row.known for row in open_sources(root)] == [(), ()]


@pytest.mark.parametrize("modality", ["非CT", "CT?", "not CT", "X-ray-"])
def test_modalities_are_no_more_guessed_than_labels(tmp_path, modality):
    root = table_of(tmp_path / "set", "COVID", "Non-COVID")
    lines = [{"file_name": f"{n}.png", "label": "COVID", "modality": modality} for n in range(2)]
    write_table(root / "metadata.csv", lines)
    with pytest.raises(DataRefused, match="accepted are xray and ct"):
        open_sources(root)
