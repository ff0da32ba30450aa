"""The site check: plans, copies, local settings, figures, verdicts, and what it says of bad input."""

import datetime
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file
from scipy.sparse.csgraph import connected_components
from scipy.special import expit
from typer.testing import CliRunner

from hub_model import Screener
from hub_model.__main__ import app
from hub_model.changes import CHANGES
from hub_model.check import adapt, copies, groups, planning, report, writing
from hub_model.check.calibration import operating_points
from hub_model.check.cases import Case, Material, judge
from hub_model.check.comparing import chance_of_calibration, difference, in_words
from hub_model.check.families import joined
from hub_model.check.files import DataRefused
from hub_model.check.page import render
from hub_model.layout import FolderRefused
from hub_model.refused import Refused
from hub_model.screener import AutoScreener
from hub_model.site import SEAL, SiteRefused, read_site, sealed, shift
from tests.made_run import make_run, patients

SCHEMA = json.loads((Path(report.__file__).parent / "check.schema.json").read_text("utf-8"))
WEIGHTS = "a" * 64


# --- how many pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17, 1998, 857-872, table I, method 5 (Clopper and Pearson)
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0000, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ],
)
def test_intervals_are_those_of_the_textbook(hits, n, low, high):
    found = planning.exact_interval(hits, n)
    assert [round(float(end), 4) for end in found] == [low, high]


@pytest.mark.parametrize(("share", "width"), [(0.9, 0.1), (0.8, 0.2), (0.98, 0.06), (0.5, 0.3)])
def test_a_plan_is_enough_and_one_less_is_not(share, width):
    n = planning.needed(share, width)["n"]
    more = np.arange(n, n + 150)
    low, high = planning.exact_interval(np.floor(share * more + 0.5), more)
    assert (high - low <= width).all()
    low, high = planning.exact_interval(np.floor(share * (n - 1) + 0.5), n - 1)
    assert high - low > width


def test_a_plan_counts_patients_in_a_row():
    found = planning.plan(0.9, 0.1, prevalence=0.2, specificity=0.8)
    assert found["consecutive"] == max(-(-found["covid"] * 5), -(-found["others"] * 10 // 8))
    assert found["others"] > found["covid"]  # shares nearer to a half take more


@pytest.mark.parametrize("wrong", [{"sensitivity": 0}, {"prevalence": 1.0}, {"width": 0}])
def test_plans_of_nonsense_are_refused(wrong):
    with pytest.raises(Refused, match="is a number"):
        planning.plan(**{"sensitivity": 0.5, **wrong})


# --- copies ---------------------------------------------------------------------------------------


def chest(seed: int) -> Image.Image:
    """A drawn picture with enough structure to be told from others."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (14, 14), dtype=np.uint8))
    return small.resize((300, 260), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", ["JPEG, quality 40", "gamma 0.8", "resized to 256 px", "padded to a square",
                                  "white border 5 %", "mirrored", "noise of 2 %"])  # fmt: skip
def test_copies_are_found_and_others_are_not(name):
    change = next(change for change in CHANGES if change.name == name)
    first, copy = chest(0), Image.fromarray(np.ascontiguousarray(change.apply(np.asarray(chest(0)))))
    found = list(copies.pairs([copies.hashes(one) for one in (chest(1), first, chest(2), copy, chest(3))]))
    assert found == [(1, 3)]


def test_flat_and_tiny_pictures_have_hashes():
    for image in (Image.new("L", (40, 30)), Image.new("L", (1, 1), 9), Image.new("L", (1, 500), 255)):
        assert copies.hashes(image).exact != copies.hashes(chest(0)).exact


def test_seen_pictures_travel_as_hashes(tmp_path):
    own = [copies.hashes(chest(seed)) for seed in range(6)]
    save_file(copies.tensors(own, ["train", "validation", "test"] * 2, "d" * 64), tmp_path / copies.SEEN)
    seen = copies.read_seen(tmp_path)
    assert [seen.role(one) for one in own] == ["train", "validation", "test"] * 2
    stream = io.BytesIO()
    chest(1).save(stream, "JPEG", quality=60)
    assert seen.role(copies.hashes(Image.open(stream).convert("L"))) == "validation"
    assert seen.role(copies.hashes(chest(99))) is None and seen.data.hex() == "d" * 64
    assert (tmp_path / copies.SEEN).stat().st_size < 1000  # nothing to make six pictures of


@pytest.mark.parametrize("broken", ["role", "look", "kind", "bytes"])
def test_damaged_hashes_are_refused(tmp_path, broken):
    tensors = copies.tensors([copies.hashes(chest(0))], ["train"], "d" * 64)
    if broken == "role":
        tensors["role"][:] = 7
    if broken == "look":
        tensors["look"] = tensors["look"][:, :4].copy()
    if broken == "kind":
        tensors["exact"] = tensors["exact"].astype(np.int32)
    save_file(tensors, tmp_path / copies.SEEN)
    if broken == "bytes":
        (tmp_path / copies.SEEN).write_bytes(b"nothing")
    with pytest.raises(FolderRefused):
        copies.read_seen(tmp_path)


def test_groups_are_the_connected_components_of_the_textbook():
    rng = np.random.default_rng(0)
    for size in (1, 7, 60, 400):
        tokens = [[str(token) for token in rng.integers(0, size, rng.integers(0, 4))] for _ in range(size)]
        shares = [[bool(set(one) & set(other)) for other in tokens] for one in tokens]
        _, component = connected_components(np.array(shares), directed=False)
        groups = {number: np.flatnonzero(component == number).tolist() for number in component}
        assert joined(tokens) == list(groups.values())


# --- figures of invented answers --------------------------------------------------------------------


LOOKS = [copies.hashes(chest(10_000 + number)) for number in range(3)]


def invented(n=240, strength=2.0, offset=0.0, scale=1.0, seed=0, patients=None):
    """Judged pictures, two of a patient; log-odds that are calibrated but for `offset` and `scale`."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(patients or n // 2) % 2, 2)[:n]
    odds = rng.normal(strength * (2 * labels - 1), 1.5)
    odds = odds * 2 * strength / 1.5**2  # of two normal distributions: the log of their ratio
    return [
        Case(f"{place}.png", "ward", int(label), None,
             {"view": ("PA", "AP", "AP")[place % 3], "age": f"{20 + place % 70}"}, ("patient",),
             bytes([place % 256]) * 32, LOOKS[place % 3], float(expit(odd * scale + offset)), 0.5,
             family=f"{place // 2:06d}")
        for place, (label, odd) in enumerate(zip(labels, odds, strict=True))
    ]  # fmt: skip


def model(cases, tmp_path, evaluation=None):
    """As much of a Screener as figures need."""
    labels, probabilities, families = report._arrays([case for case in cases if case.probability is not None])
    points = operating_points(np.log(probabilities / (1 - probabilities)), labels, families)
    if evaluation:
        (tmp_path / "evaluation.json").write_text(json.dumps({"weights_sha256": WEIGHTS, **evaluation}))
    return SimpleNamespace(
        path=tmp_path, modality="ct", site=None, operating_points=points, config={"architecture": "drawn"},
        screening={"weights_sha256": WEIGHTS, "provenance": {"data_sha256": "d" * 64}},
    )  # fmt: skip


def material(cases, **more):
    return Material(cases, Counter({"not a picture": 2}), patients=True, **more)


PLAIN = report.Settings(changes=0)


def test_a_report_is_as_its_schema_says(tmp_path):
    cases = invented()
    screener = model(cases, tmp_path)
    told = report.examine(material(cases), screener, report.Settings(("view",), 0, prevalence=0.1))
    jsonschema.validate(told, SCHEMA)
    assert told["verdict"]["word"] == report.USABLE and any(
        "no medical device" in line for line in told["verdict"]["limits"]
    )
    assert set(told["groups"]) == {"view", "age"} and told["card"] is None
    assert {row["state"] for row in told["promises"]} <= {"kept", "open"}
    assert (
        told["prevalence"]["at"]["sensitivity"]["ppv"]["value"]
        < told["figures"]["at"]["sensitivity"]["ppv"]["value"]
    )
    page = render(told)
    assert "<script" not in page and "http" not in page.replace("http-equiv", "") and page.count("<svg") == 3
    assert any(row["answer"] for row in told["checklist"]) and any(row["open"] for row in told["checklist"])


def test_figures_are_set_beside_the_card_and_differences_said(tmp_path):
    good, bad = invented(n=400), invented(n=400, strength=0.7, seed=1)
    screener = model(good, tmp_path)
    told = report.examine(material(good), screener, PLAIN)
    evaluation = {"test": {**told["figures"], "n": 400}}
    again = report.examine(material(invented(n=400, seed=2)), model(good, tmp_path, evaluation), PLAIN)
    assert not any(row["difference"]["more_than_chance"] for row in again["against_card"])
    assert "chance instead" in next(row["words"] for row in again["against_card"] if row["figure"] == "ece")
    worse = report.examine(material(bad), model(good, tmp_path, evaluation), PLAIN)
    rows = {(row["point"], row["figure"]): row for row in worse["against_card"]}
    assert rows[None, "auroc"]["difference"]["more_than_chance"] and "worse" in rows[None, "auroc"]["words"]
    assert any("AUROC" in line and "more than chance" in line for line in worse["verdict"]["limits"])
    jsonschema.validate(worse, SCHEMA)
    assert "Card" in render(worse)


def test_chance_is_called_chance(tmp_path):
    cases = invented(strength=0.0)
    told = report.examine(material(cases), model(invented(), tmp_path), PLAIN)
    assert told["verdict"]["word"] == report.NOT_BETTER
    jsonschema.validate(told, SCHEMA)


def test_shifted_probabilities_are_told_from_chance(tmp_path):
    right = report.examine(material(invented(n=600)), model(invented(), tmp_path), PLAIN)
    wrong = report.examine(material(invented(n=600, offset=2.5)), model(invented(), tmp_path), PLAIN)
    assert not right["figures"]["calibration"]["more_than_chance"]
    assert wrong["figures"]["calibration"]["more_than_chance"]
    assert any("--adapt" in line for line in wrong["verdict"]["limits"])


def test_differences_are_as_wide_as_they_should_be():
    """Of two equal samples about 5 % of the intervals leave out 0."""
    rng, misses = np.random.default_rng(0), 0
    for _ in range(300):
        ends = []
        for n in (80, 200):
            hits = rng.binomial(n, 0.8)
            low, high = planning.exact_interval(hits, n)
            ends.append({"value": hits / n, "low": float(low), "high": float(high)})
        misses += difference(*ends)["more_than_chance"]
    assert misses <= 0.08 * 300
    undefined = {"value": None, "low": None, "high": None}
    assert in_words("x", difference(undefined, ends[0])) == "x: nothing to compare."


def test_calibration_error_of_chance_is_that_of_perfect_probabilities():
    p = np.random.default_rng(1).uniform(0, 1, 300)
    found = chance_of_calibration(p, 0.03, 15)
    assert 0.03 < found["expected"] < found["high"] < 0.12 and not found["more_than_chance"]


# --- bad input --------------------------------------------------------------------------------------


def test_one_class_is_refused(tmp_path):
    cases = [case for case in invented() if case.label]
    with pytest.raises(Refused, match="All 120 pictures are labelled COVID"):
        report.examine(material(cases), model(invented(), tmp_path), PLAIN)


def test_ten_pictures_are_refused(tmp_path):
    with pytest.raises(Refused, match=r"at least 10 of each.*--plan"):
        report.examine(material(invented(n=10)), model(invented(), tmp_path), PLAIN)


def test_everything_refused_is_said(tmp_path):
    cases = invented()
    for case in cases:
        case.probability, case.code, case.reason = None, "foreign", "Not like it."
    with pytest.raises(Refused, match=r"All 240 pictures were refused .foreign: 240"):
        report.examine(material(cases), model(invented(), tmp_path), PLAIN)


def test_training_pictures_are_said_first(tmp_path):
    cases = invented()
    for case in cases:
        case.seen = "train"
    told = report.examine(material(cases, seen_known=True), model(cases, tmp_path), PLAIN)
    assert told["first"][0].startswith("240 of these 240") and told["verdict"]["word"] == report.NONE
    for case in cases[:40]:
        case.seen = None
    for case in cases[40:]:
        case.seen = "validation" if case.label else None
    told = report.examine(material(cases, seen_known=True), model(cases, tmp_path), PLAIN)
    assert told["data"]["counted"] == 140 and "do not count" in told["first"][0]
    jsonschema.validate(told, SCHEMA)


def test_groups_carry_warnings_and_unknown_columns_are_refused(tmp_path):
    cases = invented()
    for case in cases[:6]:
        case.about = {**case.about, "view": "AP Supine"}
    told = report.examine(material(cases), model(cases, tmp_path), report.Settings(("View",), 0))
    rows = {row["value"]: row for row in told["groups"]["view"]}
    assert "too small" in rows["AP Supine"]["warning"] and rows["AP"]["warning"] is None
    assert [row["value"] for row in told["groups"]["age"]] != []
    with pytest.raises(Refused, match=r"'ward'.*age, view"):
        report.examine(material(cases), model(cases, tmp_path), report.Settings(("ward",), 0))


@pytest.mark.parametrize(
    ("said", "group"),
    [("45", "40 to 59"), ("045Y", "40 to 59"), ("010M", "under 40"), ("39.9", "under 40"), ("80", "80 and over"),
     ("300", "80 and over"), ("old", ""), ("", ""), ("-3", "")],
)  # fmt: skip
def test_ages_are_grouped(said, group):
    assert groups.age_group(said) == group


# --- local settings ---------------------------------------------------------------------------------


def local(tmp_path, **changed):
    cases = invented(n=400, offset=2.0, scale=0.5)
    content, _ = adapt.adapt(material(cases), model(cases, tmp_path))
    content = sealed({**content, **changed})
    (tmp_path / "site.json").write_text(json.dumps(content))
    return tmp_path / "site.json"


def test_adapting_mends_calibration_on_patients_kept_out(tmp_path):
    cases = invented(n=600, offset=2.0, scale=0.5)
    content, measured = adapt.adapt(material(cases), model(cases, tmp_path))
    assert content["temperature"] == pytest.approx(0.5, rel=0.3) and content["bias"] == pytest.approx(
        -4, abs=1.2
    )
    apart = measured["differences"]["ece"]
    assert apart["value"] < 0 and apart["more_than_chance"] and "better" in measured["words"][0]
    assert content["data"]["fitted_on"] + content["data"]["measured_on"] == 600
    assert content["operating_points"]["sensitivity"]["promise"]["holds"]
    assert measured["after"]["auroc"]["value"] == measured["before"]["auroc"]["value"]
    (tmp_path / "site.json").write_text(json.dumps(content))
    assert read_site(tmp_path / "site.json").temperature == content["temperature"]


def test_no_patient_fits_and_reports():
    rng = np.random.default_rng(0)
    families = rng.integers(0, 90, 300).astype(str)
    labels = (families.astype(int) % 2).astype(int)
    folds = adapt.deal(labels, families, seed=1)
    assert all(len(set(folds[families == name])) == 1 for name in set(families))
    for fold in range(adapt.FOLDS):
        held = {label: len(set(families[(folds == fold) & (labels == label)])) for label in (0, 1)}
        assert min(held.values()) >= 8


def test_too_few_to_adapt_are_refused(tmp_path):
    cases = invented(n=120)
    with pytest.raises(Refused, match="at least 49 of each"):
        adapt.adapt(material(cases), model(cases, tmp_path))


TOMORROW = (datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=3)).isoformat()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": 2}, "newer covid-xct"),
        ({"made": TOMORROW}, "clock"),
        ({"made": "yesterday"}, "no day"),
        ({"temperature": -1}, "temperature"),
        ({"operating_points": {}}, "operating point"),
        ({"model": {"modality": "ct"}}, "model.architecture"),
    ],
)
def test_site_files_that_cannot_be_right_are_refused(tmp_path, changed, said):
    with pytest.raises(SiteRefused, match=said):
        read_site(local(tmp_path, **changed))


def test_a_site_file_edited_by_hand_is_refused(tmp_path):
    path = local(tmp_path)
    content = json.loads(path.read_text())
    content["operating_points"]["sensitivity"]["threshold"] = 0.01
    path.write_text(json.dumps(content))
    with pytest.raises(SiteRefused, match="changed after it was written"):
        read_site(path)
    far = ('{"format": %s}' % (400 * "9"), '{"figures": {"a": 1e999}}', 500 * '{"a":' + "1" + 500 * "}")
    for text in ("[1]", "{", '{"temperature": NaN}', "[" * 100_000, *far):
        path.write_text(text)
        with pytest.raises(SiteRefused):
            read_site(path)
    with pytest.raises(SiteRefused, match="no file"):
        read_site(tmp_path / "none.json")


def test_a_prevalence_moves_probabilities_by_bayes():
    p, fitted, there = 0.7, 0.5, 0.02
    odds = np.log(p / (1 - p)) + shift(there, fitted)
    likelihood = (p / (1 - p)) / (fitted / (1 - fitted))
    assert expit(odds) == pytest.approx(likelihood * there / (likelihood * there + 1 - there))
    with pytest.raises(SiteRefused, match="between 0 and 1"):
        shift(1.0, 0.5)


# --- the whole, on a network that nobody trained ------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "ct", "ct")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Forty-eight drawn pictures, two of a patient, with a table."""
    folder = tmp_path_factory.mktemp("hospital")
    lines = ["file_name,label,patient_id,sex,machine"]
    for number, picture in enumerate(patients(48, seed=5)):
        picture.save(folder / f"{number}.png")
        label = "COVID" if number // 2 % 2 else "Non-COVID"
        lines.append(f"{number}.png,{label},p{number // 2},{'FM'[number % 2]},{'AB'[number // 24]}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_the_check_of_the_page_needs_no_further_package(run, hospital):
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(('scipy', 'pyarrow', 'pandas', 'torch'))\n"
        "from hub_model import Screener\n"
        "from hub_model.check import cases, page, report, sources\n"
        "screener = Screener.from_pretrained(sys.argv[1])\n"
        "material = cases.listed(sources.open_sources(sys.argv[2], 'ct'))\n"
        "for _ in cases.judging(material, screener): pass\n"
        "print(page.render(report.examine(material, screener, report.Settings(changes=2))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, run, hospital], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "</html>" in done.stdout and "48" in done.stdout


@pytest.mark.slow
def test_a_check_from_the_shell_writes_everything(run, hospital, tmp_path):
    out = tmp_path / "report"
    asked = [
        "check",
        str(hospital),
        "--model",
        str(run),
        "--out",
        str(out),
        "--by",
        "machine",
        "--changes",
        "4",
    ]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    told = json.loads((out / "check.json").read_text("utf-8"))
    jsonschema.validate(told, SCHEMA)
    assert {"machine", "sex"} <= set(told["groups"]) and told["changes"]["pictures"] == 4
    table = pq.read_table(out / "predictions.parquet")
    told_columns = json.loads((out / "predictions_dictionary.yml").read_text())["predictions"]
    assert table.column_names == [row["name"] for row in told_columns] and all(
        row["definition"] for row in told_columns
    )
    usage = json.loads((out / "usage_config.yml").read_text())["data_usage"]
    assert {usage["entity_id"], usage["context_id"], usage["primary_output"], usage["predict_time"]} <= set(
        table.column_names
    )
    told_refused = (out / "refused.csv").read_text().count("\n") - 1
    assert (
        pq.read_table(out / "events.parquet").num_rows
        == table.num_rows
        == 48 - told_refused
        == told["data"]["judged"]
    )
    page = (out / "report.html").read_text("utf-8")
    assert "0.png" not in page.replace("errors/", "") or "47.png" not in page
    assert (out / "errors" / "errors.csv").read_text().count("\n") == len(
        list((out / "errors").glob("*-heat.png"))
    ) + 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(Refused, match="something else"):
        writing.check_place(tmp_path / "mine")
    assert writing.check_place(out) == out  # an earlier report gives way


@pytest.mark.slow
def test_local_settings_are_used_and_said(run, hospital, tmp_path, monkeypatch):
    plain = Screener.from_pretrained(run)
    found = judge(hospital, plain)
    assert found.patients and len({case.family for case in found.counted}) <= 24
    for place, case in enumerate(found.cases):  # drawn pictures: half of them as far apart as two patients
        case.family = f"{place:06d}"
    monkeypatch.setattr(adapt, "LEAST", 10)
    site, _ = adapt.adapt(found, plain)
    (tmp_path / "site.json").write_text(json.dumps(site))
    adapted = Screener.from_pretrained(run, site=tmp_path / "site.json", prevalence=0.05)
    source = hospital / found.counted[0].path
    before, after = plain.screen(source), adapted.screen(source)
    odds = np.log(before.probability / (1 - before.probability)) / site["temperature"] + site["bias"]
    assert (
        after.probability == pytest.approx(expit(odds)) and after.site == f"{site['made']} {site[SEAL][:12]}"
    )
    assert after.threshold == site["operating_points"]["sensitivity"]["threshold"] and before.site is None
    assert after.at_prevalence == pytest.approx(expit(odds + shift(0.05, site["data"]["prevalence"])))
    assert after.to_dict()["site"] and after.to_dict()["at_prevalence"] == after.at_prevalence
    out = tmp_path / "findings.csv"
    asked = [
        "score",
        str(source),
        "--model",
        str(run),
        "--site",
        str(tmp_path / "site.json"),
        "--out",
        str(out),
    ]
    assert CliRunner().invoke(app, asked).exit_code == 0 and after.site in out.read_text()
    other = make_run(tmp_path / "other", "ct", seed=3)
    with pytest.raises(SiteRefused, match="for another model"):
        Screener.from_pretrained(other, site=tmp_path / "site.json")
    both = AutoScreener.from_pretrained(run, sites=[tmp_path / "site.json"])
    assert both.screeners[0].site.seal == site[SEAL]
    with pytest.raises(SiteRefused, match="second file"):
        AutoScreener.from_pretrained(run, sites=[tmp_path / "site.json"] * 2)
    with pytest.raises(Refused, match="already uses local settings"):
        adapt.adapt(found, adapted)


@pytest.mark.slow
def test_copies_with_both_labels_and_unknown_labels_are_said(run, tmp_path):
    for label, seed in (("COVID", 1), ("Non-COVID", 2)):
        (tmp_path / label).mkdir()
        for number, picture in enumerate(patients(12, seed=seed)):
            picture.save(tmp_path / label / f"{label}{number}.png")
    twin = next(patients(1, seed=1))
    twin.save(tmp_path / "Non-COVID" / "again.png")
    found = judge(tmp_path, Screener.from_pretrained(run))
    doubtful = [case.path for case in found.cases if case.left_out]
    assert "COVID/COVID0.png" in doubtful and "Non-COVID/again.png" in doubtful
    with pytest.raises(DataRefused, match="at most 5"):
        judge(tmp_path, Screener.from_pretrained(run), most=5)
    (tmp_path / "maybe").mkdir()
    twin.save(tmp_path / "maybe" / "1.png")
    with pytest.raises(DataRefused, match="maybe"):
        judge(tmp_path, Screener.from_pretrained(run))
