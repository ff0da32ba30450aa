"""Deletion and insertion: exact on a network whose region is known, and a report as others read it."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hub_model.refused import Refused
from tests.made_run import make_run, pictures
from train.measure import faithfulness, provenance
from train.measure.faithfulness import curve, curves_of, summary

REGION = (slice(2, 4), slice(10, 12))  # of 14 x 14 places: what the network below looks at


class Corner(nn.Module):
    """Answers COVID for brightness in one place of the picture, and for nothing else."""

    def __init__(self):
        super().__init__()
        self.pool, self.weight = nn.AvgPool2d(16), nn.Parameter(torch.zeros(14, 14))
        with torch.no_grad():
            self.weight[REGION] = 2.0

    def forward_features(self, pixels):
        return self.pool(pixels)

    def forward_head(self, features):
        unit = (features.mean(1) * self.weight).sum((1, 2))[:, None] - 4
        return torch.cat([-unit, unit], 1)

    def forward(self, pixels):
        return self.forward_head(self.forward_features(pixels))


@pytest.fixture(scope="module")
def network():
    return Corner().eval()


@pytest.fixture(scope="module")
def picture():
    """Bright where the network looks; the mean, which deletion leaves, is nearly dark."""
    pixels = torch.zeros(1, 3, 224, 224)
    pixels[:, :, 32:64, 160:192] = 1.0
    return pixels


def places(inside):
    value = np.full((14, 14), 1.0 - inside)
    value[REGION] = inside
    return value


def test_a_curve_is_the_probability_of_the_answer_worked_out_by_hand(network, picture):
    """Deleted before a tenth of the picture where the map is right, after nine tenths where it is wrong."""
    bright, dark = (1 / (1 + np.exp(-2 * unit)) for unit in (4, -4))
    right = curve(network, picture, torch.zeros_like(picture), places(1.0), 1, 10)
    wrong = curve(network, picture, torch.zeros_like(picture), places(0.0), 1, 10)
    assert right == pytest.approx([bright] + [dark] * 10, abs=1e-6)
    assert wrong == pytest.approx([bright] * 10 + [dark], abs=1e-6)
    assert faithfulness.areas(right) == pytest.approx(0.05 * bright + 0.95 * dark)
    other = curve(network, picture, torch.zeros_like(picture), places(1.0), 0, 10)
    assert other == pytest.approx(1 - right, abs=1e-6)


def test_insertion_ends_where_deletion_starts(network, picture):
    heat, chance = curves_of(network, picture, 8, np.random.default_rng(0))
    full = network(picture).softmax(1)[0, 1].item()
    for deletion, insertion in (heat, chance):
        assert deletion[0] == pytest.approx(full)
        assert insertion[-1] == pytest.approx(full)


def test_the_heat_map_beats_chance_where_it_is_known_to_be_right(network, picture):
    rng = np.random.default_rng(1)
    curves = np.array([curves_of(network, picture, 16, rng) for _ in range(12)])
    found = summary(curves, np.arange(12), 0)
    assert found["deletion"]["difference"]["high"] < -0.2
    assert found["insertion"]["difference"]["low"] > 0  # little: the blurred region is still bright
    assert found["deletion"]["better_on"]["value"] > 0.9


def test_a_map_no_better_than_chance_is_reported_as_such(network, picture, monkeypatch):
    rng = np.random.default_rng(2)
    monkeypatch.setattr(
        faithfulness.evidence,
        "heat_map",
        lambda *_: faithfulness.gaussian_filter(rng.normal(size=(14, 14)), 1),
    )
    curves = np.array([curves_of(network, picture, 16, rng) for _ in range(30)])
    difference = summary(curves, np.arange(30), 0)["deletion"]["difference"]
    assert difference["low"] < 0 < difference["high"]


def test_intervals_resample_families(network, picture):
    """Thirty copies of two pictures are two families, not thirty."""
    curves = np.array([curves_of(network, picture, 4, np.random.default_rng(i % 2)) for i in range(30)])
    alone = summary(curves, np.arange(30), 0)["deletion"]["random map"]
    families = summary(curves, np.arange(30) % 2, 0)["deletion"]["random map"]
    assert families["value"] == alone["value"]
    assert families["high"] - families["low"] > 2 * (alone["high"] - alone["low"]) > 0


class Part(list):
    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def _give(monkeypatch, rows, split_sha256):
    """Let any data be these rows, with this hash of the split."""
    origin = SimpleNamespace(split_sha256=split_sha256)
    monkeypatch.setattr(provenance, "open_data", lambda *_args, **_settings: ({"test": rows}, origin))


@pytest.fixture
def run(tmp_path, monkeypatch):
    rows = Part({"image": p, "label": i % 2, "family": f"f{i // 2}"} for i, p in enumerate(pictures(7, 4)))
    _give(monkeypatch, rows, "0" * 64)
    made = make_run(tmp_path / "made")
    screening = json.loads((made / "screening.json").read_text())
    screening["provenance"]["split_sha256"] = "0" * 64
    (made / "screening.json").write_text(json.dumps(screening))
    return shutil.move(made, tmp_path / "run")


def test_the_command_leaves_figures_and_a_plot(run):
    report = faithfulness.faithfulness(run, ["data"], images=5, steps=4)
    assert json.loads((run / "faithfulness.json").read_text()) == report
    assert (run / "plots/faithfulness.png").read_bytes().startswith(b"\x89PNG")
    assert (report["images"], report["families"], report["steps"]) == (5, 4, 4)
    for kind in ("deletion", "insertion"):
        assert set(report[kind]) == {"heat map", "random map", "difference", "better_on", "curves"}
        assert report[kind]["difference"]["n"] == 5
        assert [len(curve) for curve in report[kind]["curves"].values()] == [5, 5]
    assert faithfulness.faithfulness(run, ["data"], images=5, steps=4) == report


def test_settings_that_measure_nothing_and_other_data_are_refused(run, monkeypatch):
    with pytest.raises(Refused, match="at least 2 of each"):
        faithfulness.faithfulness(run, ["data"], steps=1)
    _give(monkeypatch, [], "1" * 64)
    with pytest.raises(Refused, match="Give the data that fit was given"):
        faithfulness.faithfulness(run, ["data"])
    assert not (run / "faithfulness.json").exists()
