"""The limits of the input guard: pictures of sources that it did not see pass, foreign ones do not."""

import numpy as np
import pytest


def test_the_limits_leave_room_for_a_source_that_nobody_has_seen():
    from train.measure.guard import further

    assert further([1.0, 1.3, 2.0]) == pytest.approx(2.7)
    assert further([2.0, 2.0, 2.0]) == 2.0
    assert further([1.0, 2.0]) == 2.0  # too few to go beyond what was seen
    rng = np.random.default_rng(0)
    ends = rng.uniform(0, 1, (4000, 6))
    missed = np.mean([one[-1] > further(one[:-1]) for one in ends])
    assert missed < 0.8 * np.mean(ends[:, -1] > ends[:, :-1].max(1))  # fewer than the largest seen would miss


def test_a_guard_of_several_sources_refuses_few_pictures_of_a_further_one():
    """Sources lie at different places along one direction, as collections do; the last one lies furthest out."""
    from train.measure.guard import LeftOut, Seen
    from train.measure.predict import Predictions

    rng = np.random.default_rng(1)
    places = np.repeat([0.0, 1.0, -1.0, 2.0], 80)
    own = rng.standard_normal((320, 12)) + places[:, None]
    sources = np.repeat(["a", "b", "c", "far"], 80)
    families = np.arange(320).astype(str)
    seen = Seen(own, own + 0.1 * rng.standard_normal(own.shape), sources, families,
                rng.standard_normal((60, 12)) * 8 + 12)  # fmt: skip
    validation = Predictions(np.zeros(320), own + 0.05, np.zeros(320, int), families, sources)
    refused = LeftOut(seen).refusals(validation, seed=0)
    assert set(refused) == {"a", "b", "c", "far"}
    limits = LeftOut(seen).limits(seen.statistics(), own)
    foreign = seen.statistics().scores(seen.foreign)
    assert np.mean(np.any([foreign[name] > limit for name, limit in limits.items()], axis=0)) > 0.9
    assert np.mean([record["value"] for record in refused.values()]) < 0.1
