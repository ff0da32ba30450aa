"""Harmless changes: one table, each row a real change of a picture that leaves the picture it was given alone."""

import numpy as np
import pytest

from hub_model.changes import CHANGES, bordered, compressed, cropped, random_copy, resampled, toned


@pytest.fixture
def grey() -> np.ndarray:
    """(200, 240) with structure at several scales."""
    y, x = np.mgrid[0:200, 0:240]
    levels = 120 + 60 * np.sin(x / 17) * np.cos(y / 23) + 30 * np.sin(x / 3 + y / 5)
    return levels.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_every_row_changes_the_picture_and_always_alike(change, grey):
    before = grey.copy()
    changed = change.apply(grey)
    assert changed.dtype == np.uint8
    assert changed.ndim == 2
    assert changed.shape != grey.shape or not np.array_equal(changed, grey)
    assert np.array_equal(changed, change.apply(grey))
    assert np.array_equal(grey, before)
    assert set(change.modalities) <= {"xray", "ct"}


def test_names_are_unique():
    assert len({change.name for change in CHANGES}) == len(CHANGES)


def test_frames_by_share(grey):
    assert cropped(grey, 0.1, 0.2, 0.1, 0.0).shape == (160, 192)
    framed = bordered(grey, 0.05, 0.05, 0.05, 0.05)
    assert framed.shape == (220, 264)
    assert framed[0].max() == 0
    assert np.array_equal(framed[10:-10, 12:-12], grey)


def test_a_crop_that_would_leave_nothing_leaves_the_picture(grey):
    assert cropped(grey, 0.6, 0, 0.5, 0) is grey


def test_tones_and_losses_go_the_right_way(grey):
    assert toned(grey, gamma=0.8).mean() > grey.mean() > toned(grey, gamma=1.25).mean()
    assert toned(grey, centre=0.45).mean() > grey.mean()
    assert min(resampled(grey, 128).shape) == 128
    harm = [np.abs(compressed(grey, quality).astype(int) - grey).mean() for quality in (95, 40, 15)]
    assert harm == sorted(harm)


def test_a_random_copy_is_repeatable_and_not_the_picture(grey):
    copies = [random_copy(grey, np.random.default_rng(seed)) for seed in range(12)]
    again = [random_copy(grey, np.random.default_rng(seed)) for seed in range(12)]
    assert all(np.array_equal(one, other) for one, other in zip(copies, again, strict=True))
    assert all(copy.dtype == np.uint8 and min(copy.shape) >= 16 for copy in copies)
    assert sum(np.array_equal(copy, grey) for copy in copies) <= 1
