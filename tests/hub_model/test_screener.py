"""The door: findings on pictures, decisions at operating points, refusals, and the command."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from hub_model import AutoScreener, Finding, FolderRefused, Screener, hub_folder
from hub_model.guard import Guard, is_blank, view
from hub_model.screener import decide
from tests.hub_model.test_hub_folder import ARCHITECTURE, CFG

EXAMPLES = Path(__file__).parents[2] / "demo" / "examples"
POINTS = {
    "sensitivity": {"threshold": 0.3, "target": "t", "abstain": [0.29, 0.31]},
    "specificity": {"threshold": 0.9, "target": "t"},
}


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (80, 90), dtype=np.uint8).astype(np.uint8)) for _ in range(12)
    ]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, pictures):
    """A folder with a guard fitted on noise pictures."""
    torch.manual_seed(0)
    model = timm.create_model(ARCHITECTURE, num_classes=2).eval()
    transform = hub_folder.transform_of({"pretrained_cfg": CFG | {"crop_pct": 1.0, "crop_mode": "squash"}})
    with torch.inference_mode():
        features = view(model, torch.stack([transform(p) for p in pictures]))[2]
    z = (features - features.mean(0)) / features.std(0).clamp_min(1e-4)
    _, singular, basis = torch.linalg.svd(z, full_matrices=False)
    tensors = {
        "mean": features.mean(0),
        "scale": features.std(0).clamp_min(1e-4),
        "basis": basis[:4],
        "deviation": singular[:4] / len(z) ** 0.5,
        "foreign": torch.zeros(len(features[0])),
        "bias": torch.tensor(-4.0),
    }
    screening = {
        "modality": "xray",
        "operating_points": POINTS,
        "guard": {"limits": {"distance": 1.5, "residual": 1.5, "foreign": 0.5}},
    }
    path = tmp_path_factory.mktemp("hub") / "guarded"
    return hub_folder.save(path, model, architecture=ARCHITECTURE, model_args={}, pretrained_cfg=CFG,
                           screening=screening, guard=tensors)  # fmt: skip


@pytest.fixture(scope="module")
def screener(guarded):
    return Screener.from_pretrained(guarded)


def test_probability_is_the_networks(screener, pictures):
    finding = screener.screen(pictures[0])
    with torch.inference_mode():
        expected = screener.model(screener.preprocess(pictures[0])[None]).softmax(1)[0, 1]
    assert finding.probability == pytest.approx(float(expected), abs=1e-7)
    assert (finding.operating_point, finding.threshold, finding.modality) == ("sensitivity", 0.3, "xray")
    assert finding.heat_map is None and finding.image.mode == "L"


def test_heat_map_on_request(screener, pictures):
    shown = screener.screen(pictures[0], heat_map=True).heat_map
    assert shown.dtype == np.float32 and shown.ndim == 2 and 0 <= shown.min() <= shown.max() <= 1


def test_every_kind_of_source_gives_the_same(screener, pictures, tmp_path):
    file = tmp_path / "p.png"
    pictures[0].save(file)
    sources = [
        pictures[0],
        file,
        str(file),
        file.read_bytes(),
        io.BytesIO(file.read_bytes()),
        np.asarray(pictures[0]),
    ]
    assert len({screener.screen(source).probability for source in sources}) == 1


@pytest.mark.parametrize(
    ("probability", "decision"),
    [
        (0.28, "negative"),
        (0.29, "inconclusive"),
        (0.30, "inconclusive"),
        (0.31, "positive"),
        (0.95, "positive"),
    ],
)
def test_decision_and_abstain_band(probability, decision):
    found, reasons = decide(probability, POINTS["sensitivity"])
    assert found == decision and bool(reasons) == (decision == "inconclusive")


def test_threshold_itself_is_positive():
    assert decide(0.9, POINTS["specificity"])[0] == "positive"
    assert decide(np.nextafter(0.9, 0), POINTS["specificity"])[0] == "negative"


def test_unknown_operating_point_names_the_known(screener, pictures):
    with pytest.raises(ValueError, match="this model has sensitivity, specificity"):
        screener.screen(pictures[0], operating_point="youden")


def test_unreadable_blank_and_foreign_pictures_are_refused_with_a_reason(screener):
    ramp = Image.fromarray(np.add.outer(np.arange(128), np.arange(128)).astype(np.uint8))
    cases = [
        (b"no picture", "no picture"),
        (Image.new("L", (90, 90), 40), "blank"),
        (ramp, "does not look like"),
    ]
    for source, words in cases:
        finding = screener.screen(source)
        assert finding.decision == "refused" and finding.probability is None
        assert words in finding.reasons[0]


def test_guard_scores_by_hand():
    """Two features; the basis is the first axis: distance |z1| / deviation, residual rms of the rest."""
    guard = Guard(torch.zeros(2), torch.ones(2), torch.tensor([[1.0, 0.0]]), torch.tensor([2.0]),
                  torch.tensor([0.0, 1.0]), torch.tensor(0.0),
                  {"distance": 1.0, "residual": 4.0, "foreign": 2.0}, "ct")  # fmt: skip
    scores = guard.scores(torch.tensor([[6.0, 4.0]]))
    assert float(scores["distance"]) == 3.0
    assert float(scores["residual"]) == pytest.approx(4 / 2**0.5)
    assert float(scores["foreign"]) == pytest.approx(1 / (1 + np.exp(-4)))
    assert float(guard.excess(torch.tensor([[6.0, 4.0]]))) == 3.0


def test_blank_is_flat_but_for_its_edge():
    grey = np.full((100, 100), 90, np.uint8)
    grey[:1] = 255
    assert is_blank(Image.fromarray(grey))
    grey[:, ::2] = 120
    assert not is_blank(Image.fromarray(grey))


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "hub_model", *map(str, arguments)], capture_output=True, text=True
    )


def test_score_writes_a_row_a_file_and_drops_none(guarded, pictures, tmp_path):
    scans = tmp_path / "scans" / "deep"
    scans.mkdir(parents=True)
    pictures[0].save(scans / "ä b.png")
    (scans / "notes.txt").write_text("no picture")
    out = tmp_path / "findings.csv"
    done = command("score", tmp_path / "scans", "--model", guarded, "--out", out)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert [row["decision"] == "refused" for row in rows] == [True, False]
    assert Finding(rows[1]["decision"], float(rows[1]["probability"]), "", 0, "").probability > 0
    assert not list(tmp_path.glob(".*partial"))


def test_score_says_what_is_wrong_in_one_paragraph(guarded, tmp_path):
    for arguments, words in (
        (("score", tmp_path, "--model", guarded), "no file"),
        (("score", tmp_path, "--model", tmp_path), "has no config.json"),
        (("score", __file__, "--model", guarded, "--operating-point", "x"), "this model has sensitivity"),
    ):
        done = command(*arguments)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_info_is_json(guarded):
    shown = json.loads(command("info", guarded).stdout)
    assert shown["modality"] == "xray" and set(shown["operating_points"]) == set(POINTS)


@pytest.fixture(scope="module")
def both() -> AutoScreener:
    return AutoScreener.from_pretrained()


class TestAuto:
    """A picture goes to the model that knows its kind."""

    @pytest.mark.parametrize("kind", hub_folder.MODALITIES)
    def test_each_kind_of_picture_finds_its_model(self, both, kind):
        examples = sorted(EXAMPLES.glob(f"phantom_{kind}_*.png"))
        assert examples
        assert {both.screen(example).modality for example in examples} == {kind}

    def test_the_finding_is_the_models_own(self, both):
        example = next(EXAMPLES.glob("phantom_ct_*.png"))
        with open(example, "rb") as stream:
            found = both.screen(stream, "specificity")
        assert found == both.choose(example).screen(example, "specificity")

    def test_nonsense_is_refused_and_not_guessed(self, both):
        assert both.screen(b"no picture").decision == "refused"
        noise = np.random.default_rng(0).integers(0, 256, (200, 200)).astype(np.uint8)
        assert both.screen(noise).decision == "refused"

    def test_a_model_without_guard_cannot_take_part(self, tmp_path):
        model = timm.create_model(ARCHITECTURE, num_classes=2)
        path = hub_folder.save(tmp_path / "run", model, architecture=ARCHITECTURE, model_args={}, pretrained_cfg=CFG,
                               screening={"modality": "ct", "operating_points": POINTS})  # fmt: skip
        with pytest.raises(FolderRefused, match="no input guard"):
            AutoScreener.from_pretrained(path).screen(np.arange(10_000, dtype=np.uint8).reshape(100, 100))
