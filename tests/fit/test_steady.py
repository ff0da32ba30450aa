"""The steady head: right on what the disease moves, deaf to what harmless changes and collections move."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from train.fit.steady import fit_steady

DISEASE, CHANGE, PLACE = 0, 1, 2  # what each of the first features carries


def make(rng: np.random.Generator, pictures: int = 300, looks: int = 5):
    """Features in which the label shows faintly, and strongly but falsely in what changes and collections move."""
    labels = rng.integers(0, 2, pictures)
    sources = np.where(labels == 1, rng.choice(["a", "b"], pictures), rng.choice(["c", "d"], pictures))
    features = rng.standard_normal((pictures, 1, 12)).repeat(looks, 1)
    features[..., DISEASE] += 1.5 * labels[:, None]
    features[..., CHANGE] += 2 * labels[:, None] + 4 * rng.standard_normal((pictures, looks))
    features[..., PLACE] += 3 * np.select([sources == "a", sources == "b"], [4, 1], -1)[:, None]
    return features, labels, sources


@pytest.fixture
def made():
    return make(np.random.default_rng(0))


def test_it_separates_the_labels(made):
    features, labels, sources = made
    slope, intercept = fit_steady(features, labels, sources, steady=1, blind=1, ridge=0.1)
    scores = features[:, 0] @ slope + intercept
    assert roc_auc_score(labels, scores) > 0.85
    assert (scores[labels == 1].mean() > 0) and (scores[labels == 0].mean() < 0)


def test_what_a_harmless_change_moves_counts_less(made):
    loose, _ = fit_steady(*made, steady=0, blind=0, ridge=0.1)
    steady, _ = fit_steady(*made, steady=10, blind=0, ridge=0.1)
    assert abs(steady[CHANGE] / steady[DISEASE]) < 0.5 * abs(loose[CHANGE] / loose[DISEASE])


def test_what_tells_collections_apart_counts_less(made):
    seeing, _ = fit_steady(*made, steady=0, blind=0, ridge=0.1)
    blind, _ = fit_steady(*made, steady=0, blind=100, ridge=0.1)
    assert abs(blind[PLACE] / blind[DISEASE]) < 0.3 * abs(seeing[PLACE] / seeing[DISEASE])


def test_the_scale_of_the_features_does_not_matter(made):
    features, labels, sources = made
    slope, intercept = fit_steady(features, labels, sources, steady=1, blind=1, ridge=0.1)
    other, shifted = fit_steady(features * 50 + 7, labels, sources, steady=1, blind=1, ridge=0.1)
    assert np.allclose(
        features[:, 0] @ slope + intercept, (features[:, 0] * 50 + 7) @ other + shifted, atol=1e-2
    )


def test_one_look_and_one_source_do(made):
    features, labels, _ = made
    slope, intercept = fit_steady(
        features[:, :1], labels, np.full(len(labels), "one"), steady=1, blind=1, ridge=0.1
    )
    assert np.isfinite(slope).all() and np.isfinite(intercept)
