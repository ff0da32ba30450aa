"""The figures as a module of the evaluate library: by path, from a Space, and as the verb uses it."""

import shutil
from pathlib import Path

import evaluate
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hub_model.check.metrics import figures
from tests.conftest import ROOT
from train.measure.screening_figures import ScreeningFigures

FILES = ("screening_figures.py",)


@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    return labels, np.clip(rng.normal(0.4 + 0.2 * labels, 0.25), 0, 1), (np.arange(300) // 3).astype(str)


def test_it_computes_what_the_functions_compute(scored):
    labels, p, families = scored
    thresholds = {"low": 0.3, "high": 0.7}
    found = ScreeningFigures(keep_in_memory=True).compute(
        predictions=p, references=labels, families=families, thresholds=thresholds, seed=5
    )
    assert found == figures(labels, p, families, thresholds, seed=5)


def test_it_opens_by_path_and_takes_batches(scored):
    labels, p, _ = scored
    by_path = evaluate.load(str(ROOT / "train/measure/screening_figures.py"))
    by_path.add_batch(predictions=p[:100], references=labels[:100])
    by_path.add_batch(predictions=p[100:], references=labels[100:])
    found = by_path.compute(thresholds={"t": 0.3}, prevalence=0.01)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, p), abs=1e-12)
    assert found["at"]["t"]["sensitivity"] == pytest.approx((p[labels == 1] >= 0.3).mean(), abs=1e-12)
    direct = ScreeningFigures().compute(
        predictions=p, references=labels, thresholds={"t": 0.3}, prevalence=0.01
    )
    assert direct == found


def test_it_opens_from_a_space(scored, tmp_path, monkeypatch):
    """A Space holds this file; where `evaluate` would fetch it, it finds it here."""
    labels, p, _ = scored
    space = tmp_path / "space"
    space.mkdir()
    for name in FILES:
        shutil.copy(ROOT / "train" / "measure" / name, space)
    asked = []

    def fetch(url_or_filename, **_settings):
        asked.append(str(url_or_filename))
        return str(space / Path(asked[-1]).name)

    monkeypatch.setattr("evaluate.loading.cached_path", fetch)
    opened = evaluate.load("clinic/screening_figures")
    assert {Path(name).name for name in asked} == set(FILES)
    assert all("huggingface.co/spaces/clinic/screening_figures" in name for name in asked)
    found = opened.compute(predictions=p, references=labels)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, p), abs=1e-12)
