"""One network out of several runs: the mean of their weights, and refusals where that mean means nothing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hub_model import hub_folder
from hub_model.refused import Refused
from tests.fit.test_fit import SMALL, archive, fit  # noqa: F401 - archive is a fixture
from train.fit.recipes import RECIPES, Recipe
from train.fit.soup import mean_weights, soup


@pytest.fixture(scope="module")
def runs(archive, tmp_path_factory):  # noqa: F811
    """Two runs that differ in their learning rate alone."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            RECIPES, "tiny", Recipe(batch=8, epochs=1, learning_rate=3e-3, input_size=32, freeze_norms=9)
        )
        for name, rate in (("slow", 1e-4), ("fast", 3e-3)):
            fit(
                data=[str(archive)],
                modality="ct",
                variant=SMALL,
                recipe="tiny",
                learning_rate=rate,
                epochs=1 if name == "fast" else None,  # as the recipe has it
                out=root / name,
            )
    return [root / "slow", root / "fast"]


def test_the_mean_of_two_runs_is_a_run(runs, archive, tmp_path):  # noqa: F811
    found = soup(runs, data=[str(archive)], out=tmp_path / "both")
    assert list(found) == [str(path) for path in (*runs, tmp_path / "both")]
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in found.values())
    slow, fast, both = (load_file(path / hub_folder.WEIGHTS) for path in (*runs, tmp_path / "both"))
    for name, tensor in both.items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, ((slow[name].double() + fast[name].double()) / 2).float())
    assert any(not torch.equal(slow[name], both[name]) for name in both)
    folder = hub_folder.load(tmp_path / "both")
    assert folder.screening["calibrated"] is False
    provenance = folder.screening["provenance"]
    assert provenance["validation_auroc"] == found[str(tmp_path / "both")]["value"]
    assert [member["settings"] for member in provenance["soup"]] == [
        {"learning_rate": 0.0001},
        {"learning_rate": 0.003},
    ]
    assert provenance["training"]["seconds"] == pytest.approx(
        sum(m["seconds"] for m in provenance["soup"]), abs=0.1
    )


def test_counters_are_not_averaged():
    states = [{"n": torch.tensor(count), "w": torch.tensor([float(count)])} for count in (4, 8)]
    assert mean_weights(states)["n"] == 4 and mean_weights(states)["w"] == 6


def changed(run, path, change):
    shutil.copytree(run, path)
    file = path / hub_folder.SCREENING
    screening = json.loads(file.read_text())
    change(screening)
    file.write_text(json.dumps(screening))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.update(calibrated=True), "calibrated"),
        (lambda s: s.update(modality="xray"), "another modality"),
        (lambda s: s["provenance"].update(split_sha256="0"), "another split"),
    ],
)
def test_runs_that_have_no_mean_are_refused(runs, archive, tmp_path, change, said):  # noqa: F811
    other = changed(runs[1], tmp_path / "other", change)
    with pytest.raises(Refused, match=said):
        soup([runs[0], other], data=[str(archive)], out=tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_one_run_and_an_occupied_place_are_refused(runs, archive, tmp_path):  # noqa: F811
    with pytest.raises(Refused, match="two or more"):
        soup(runs[:1], data=[str(archive)], out=tmp_path / "both")
    with pytest.raises(Refused, match="exists"):
        soup(runs, data=[str(archive)], out=runs[0])
