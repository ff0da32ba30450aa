"""One answer for a CT series: what is left out, when a rule may speak, and what is said when it may not."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from hub_model import Finding, Screener, layout, read_volume
from hub_model.lungs import NO_LUNG
from hub_model.series import RULES, TOP, UNMEASURED, screen_volume
from tests.made_volumes import FLIPS, ORIGIN, SPACING, dicom_slices, hounsfield, nifti

EXAMPLE = "demo/examples/phantom_ct_1.png"
POINT = {"threshold": 0.4, "abstain": [0.35, 0.45]}
RULE = {
    "rule": "mean",
    "most_slices": 6,
    "weights_sha256": "a" * 64,
    "points": {"sensitivity": {**POINT, "measured": {"sensitivity": {"value": 0.8}}}},
}


class Told:
    """Answers slices with given probabilities; None is a slice without lung. The rule is what is tried here."""

    modality = "ct"

    def __init__(self, probabilities, rule=RULE):
        self.probabilities = probabilities
        self.screening = {"weights_sha256": "a" * 64, "series": rule}
        self.operating_points = {"sensitivity": {"threshold": 0.5}}

    def screen_many(self, sources, operating_point=None, heat_map=False, **_options):
        for read, probability in zip(sources, self.probabilities, strict=True):
            assert read().mode == "L"
            reasons = (NO_LUNG,) if probability is None else ()
            decision = "refused" if probability is None else "positive" if probability >= 0.5 else "negative"
            yield Finding(decision, probability, "sensitivity", 0.5, "ct", reasons)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return dicom_slices(tmp_path_factory.mktemp("series"), hounsfield())


def screened(folder, probabilities, rule=RULE):
    return screen_volume(Told(probabilities, rule), folder, "sensitivity", None, 2, 2)


def test_slices_without_lung_are_no_part_of_the_answer(folder):
    found = screened(folder, [None, 0.9, 0.2, 0.4, 0.1, None])
    assert found.decision == "inconclusive" and found.probability == pytest.approx(0.4)
    assert found.without_lung == 2 and found.positive == 1 and found.threshold == 0.4
    assert [one.number for one in found.judged] == [2, 4, 3, 5]
    assert [one.position for one in found.slices] == pytest.approx([-150 - 10 * n for n in range(6)])
    assert found.measured == {"sensitivity": {"value": 0.8}}
    told = json.loads(found.to_json(per_slice=True))
    assert told["judged"] == 4 and told["most_suspicious"] == 2 and len(told["per_slice"]) == 6


def test_a_rule_speaks_of_no_longer_series_than_it_was_measured_on(folder):
    found = screened(folder, [0.9] * 6, {**RULE, "most_slices": 5})
    assert (
        found.decision == UNMEASURED and found.probability is None and found.codes == ("series_unmeasured",)
    )
    assert "at most 5 slices" in found.reasons[0] and len(found.judged) == 6
    assert screened(folder, [0.9] * 6).decision == "positive"


def test_a_rule_of_other_weights_does_not_speak(folder):
    for rule in (None, {**RULE, "weights_sha256": "b" * 64}, {**RULE, "rule": "unknown"}):
        found = screened(folder, [0.9] * 6, rule)
        assert found.decision == UNMEASURED and found.codes == ("no_series_rule",)


def test_a_series_without_any_lung_is_refused(folder):
    found = screened(folder, [None] * 6)
    assert found.decision == "refused" and found.codes == ("series_no_lung",) and found.without_lung == 6


def test_what_cannot_be_opened_is_refused_and_not_raised(tmp_path):
    found = screened(tmp_path / "nothing", [])
    assert found.decision == "refused" and found.codes == ("missing",) and not found.slices


def test_rules_by_hand():
    p = np.array([0.1, 0.5, 0.4, 0.2])
    assert RULES["mean"](p) == pytest.approx(0.3) and RULES["highest"](p) == 0.5
    assert RULES[f"mean of the top {TOP}"](p) == pytest.approx(1.1 / 3)
    assert RULES["noisy-or"](p) == pytest.approx(1 - 0.9 * 0.5 * 0.6 * 0.8)
    assert all(0 <= rule(np.array([1.0])) <= 1 for rule in RULES.values())


def test_the_picture_shows_every_judged_slice_where_it_lies(folder):
    found = screened(folder, [None, 0.9, 0.2, 0.4, 0.1, None])
    page = found.picture()
    assert page.mode == "RGB" and page.width == 960
    colours = {colour for _, colour in page.getcolors(2**20)}
    assert {(194, 65, 12), (15, 118, 110)} <= colours  # positive and negative
    assert screened(folder / "nothing", []).picture().width == 960


def test_a_folders_rule_is_checked():
    assert layout.problem({"series": RULE}, {"series?": layout.SCREENING_RULES["series?"]}) is None
    for key, wrong in (("most_slices", 0), ("weights_sha256", "x"), ("points", {}), ("rule", "")):
        broken = {"series": {**RULE, key: wrong}}
        assert layout.problem(broken, {"series?": layout.SCREENING_RULES["series?"]})


@pytest.mark.slow
def test_a_volume_gets_the_answers_of_its_slices(tmp_path):
    """The embedded CT model, on a volume of one synthetic slice several times, and as rows of a file."""
    from hub_model import scoring

    picture = np.asarray(Image.open(EXAMPLE).convert("L"))
    stack = np.stack([picture, np.zeros_like(picture), picture])
    path = nifti(
        tmp_path / "a.nii.gz", np.ascontiguousarray(stack.transpose(2, 1, 0)), np.diag(SPACING), ORIGIN
    )
    screener = Screener.from_pretrained("ct")
    found = screener.screen_series(path)
    single = screener.screen(EXAMPLE)
    assert [one.probability for one in found.slices] == pytest.approx(
        [single.probability, None, single.probability]
    )
    assert found.without_lung == 1 and found.slices[1].finding.codes == ("blank",)
    assert screener.screen_series(read_volume(path)) == found
    dicom_slices(tmp_path / "dicom", hounsfield(), FLIPS[0])
    for per_slice, rows in ((False, 2), (True, 9)):
        out, options = tmp_path / f"{per_slice}.csv", scoring.Options(per_slice=per_slice)
        tally = scoring.score([tmp_path / "a.nii.gz", tmp_path / "dicom"], screener, out, options)
        assert tally.decisions.total() == tally.expected == rows
        with open(out, newline="") as stream:
            told = {row["file"]: row for row in csv.DictReader(stream)}
        assert len(told) == rows
        again = scoring.score([tmp_path / "a.nii.gz", tmp_path / "dicom"], screener, out, options)
        assert again.earlier == rows and not again.decisions
    assert told[f"{path.as_posix()}#0001"]["decision"] == single.decision
    assert told[f"{path.as_posix()}#0002"]["codes"] == "blank"
