"""The figures as a module of the evaluate library: by path, from a Space, and as the verb uses it."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hub_model.check.metrics import figures
from hub_model.refused import Refused
from tests.conftest import ROOT
from train.measure.screening_figures import ScreeningFigures
from train.release.metric import check_module, module_files, publish_metric


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
    """Where `evaluate` would fetch the files that the verb uploads, it finds them here; they need no other package."""
    labels, p, _ = scored
    files = module_files("clinic/covid_figures")
    space = tmp_path / "space"
    space.mkdir()
    for name, content in files.items():
        (space / name).write_bytes(content)
    assert b"hub_model" not in files["covid_figures.py"] + files["metrics.py"]
    asked = []

    def fetch(url_or_filename, **_settings):
        asked.append(str(url_or_filename))
        return str(space / Path(asked[-1]).name)

    monkeypatch.setattr("evaluate.loading.cached_path", fetch)
    opened = evaluate.load("clinic/covid_figures")
    assert {Path(name).name for name in asked} == {"covid_figures.py", "metrics.py"}
    assert all("huggingface.co/spaces/clinic/covid_figures" in name for name in asked)
    found = opened.compute(predictions=p, references=labels)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, p), abs=1e-12)


def test_the_verb_checks_and_lists_the_space(capsys):
    assert publish_metric("clinic/screening_figures", dry_run=True) is None
    shown = capsys.readouterr().out
    assert "screening_figures.py" in shown and "metrics.py" in shown
    with pytest.raises(Refused, match="letters, digits and underscores"):
        publish_metric("clinic/screening-figures", dry_run=True)


def test_a_module_that_computes_something_else_stays_here():
    files = module_files("clinic/screening_figures")
    other = files["screening_figures.py"].replace(b"seed: int = 0,", b"seed: int = 1,")
    assert other != files["screening_figures.py"]
    with pytest.raises(Refused, match="other figures"):
        check_module({**files, "screening_figures.py": other}, "screening_figures")
    with pytest.raises(Refused, match="does not load alone"):
        check_module({"screening_figures.py": files["screening_figures.py"]}, "screening_figures")
