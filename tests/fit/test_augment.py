"""Augmentation: seeded, bounded, per modality, and each change does what it says and nothing else."""

import pytest
import torch

from train.fit import augment as room
from train.fit.augment import AUGMENTATIONS, Augmentation, augment, equalised

SIDE = 48


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch() -> torch.Tensor:
    """(12, 1, 48, 48): smooth and unlike left to right, top to bottom, and picture to picture."""
    x = torch.linspace(0, 1, SIDE)
    ramp = 0.15 + 0.4 * x.view(1, 1, 1, -1) + 0.2 * x.view(1, 1, -1, 1) ** 2
    return ramp + torch.linspace(0, 0.2, 12).view(-1, 1, 1, 1)


@pytest.mark.parametrize("modality", ["xray", "ct"])
@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_rows_are_seeded_bounded_and_leave_the_batch_given_alone(name, modality, batch):
    before = batch.clone()
    once, again = (augment(batch, name, modality, seeded(3)) for _ in range(2))
    assert torch.equal(once, again)
    assert torch.equal(batch, before)
    assert once.shape == batch.shape and once.dtype == batch.dtype
    assert once.min() >= 0 and once.max() <= 1
    other = augment(batch, name, modality, seeded(4))
    assert torch.equal(once, other) == (name == "none")


def test_torchs_own_generator_is_used_when_none_is_given(batch):
    torch.manual_seed(5)
    once = augment(batch, "strong", "ct")
    torch.manual_seed(5)
    assert torch.equal(once, augment(batch, "strong", "ct"))


def test_no_augmentation_is_the_identity(batch):
    assert torch.equal(augment(batch, "none", "xray", seeded()), batch)


def test_equal_channels_stay_equal(batch):
    changed = augment(batch.expand(-1, 3, -1, -1), "light", "ct", seeded())
    assert torch.equal(changed[:, 0], changed[:, 1]) and torch.equal(changed[:, 0], changed[:, 2])


def test_a_certain_mirroring_mirrors(batch):
    torch.testing.assert_close(room.apply(batch, Augmentation(mirror=1.0), seeded()), batch.flip(-1))


def test_zooming_in_keeps_a_part_of_the_picture(batch):
    changed = room.apply(batch, Augmentation(zoom=(0.5, 0.5)), seeded())
    spread = changed.amax((1, 2, 3)) - changed.amin((1, 2, 3))
    whole = batch.amax((1, 2, 3)) - batch.amin((1, 2, 3))
    assert (spread < 0.75 * whole).all() and (spread > 0.2 * whole).all()
    assert (changed > 0.1).all(), "half of the side, wherever it lies, shows nothing from outside the picture"


def test_zooming_out_adds_a_margin(batch):
    changed = room.apply(batch, Augmentation(zoom=(1.5, 1.5)), seeded())
    assert ((changed == 0).float().mean((1, 2, 3)) > 0.4).all()


def test_rotation_moves_the_rim_more_than_the_middle(batch):
    moved = (room.apply(batch, Augmentation(degrees=20, fill="border"), seeded()) - batch).abs()
    middle = slice(SIDE // 2 - 4, SIDE // 2 + 4)
    assert moved.mean() > 3 * moved[:, :, middle, middle].mean()


@pytest.mark.parametrize("row", [{"gamma": (0.5, 2.0)}, {"window": 0.3}, {"equalise": 1.0}])
def test_another_grey_level_curve_keeps_the_order_of_the_levels(row, batch):
    changed = room.apply(batch, Augmentation(**row), seeded())
    assert not torch.allclose(changed, batch, atol=0.02)
    for old, new in zip(batch.flatten(1), changed.flatten(1), strict=True):
        assert (new[old.argsort()].diff() >= -1e-6).all()


def test_equalised_levels_are_spread_evenly():
    dark = torch.rand(2, 1, 64, 64, generator=seeded()) ** 4
    levels = equalised(dark).flatten(1)
    assert levels.min() == 0 and levels.max() == 1
    shares = torch.stack([(levels < edge).float().mean(1) for edge in (0.45, 0.6, 0.8)])
    torch.testing.assert_close(shares, torch.tensor([[0.45], [0.6], [0.8]]).expand(3, 2), atol=0.06, rtol=0)
    blank = torch.full((1, 1, 4, 4), 0.5)
    assert torch.equal(equalised(blank), torch.zeros(1, 1, 4, 4))


def test_mixed_amplitudes_keep_where_the_edges_are():
    pictures = torch.zeros(2, 1, SIDE, SIDE)
    pictures[0, :, :, 16:32] = 0.8
    pictures[1, :, :, 30:34] = 0.5
    changed = torch.cat([room.apply(pictures, Augmentation(spectrum=1.0), seeded(seed)) for seed in range(4)])
    assert not torch.allclose(changed, pictures.repeat(4, 1, 1, 1), atol=0.01)
    for steps in changed[::2].mean(2).diff().abs().squeeze(1):
        assert set(steps.topk(2).indices.tolist()) == {15, 31}


def test_coarsening_takes_the_finest_detail_and_keeps_the_mean():
    fine = (torch.arange(SIDE) % 2).float().expand(4, 1, SIDE, SIDE).contiguous()
    changed = room.apply(fine, Augmentation(coarse=1.0, coarsest=0.3), seeded())
    assert (changed.std((1, 2, 3)) < 0.75 * fine.std((1, 2, 3))).all()
    torch.testing.assert_close(changed.mean((1, 2, 3)), fine.mean((1, 2, 3)), atol=0.03, rtol=0)


def test_blanks_lie_where_they_are_said_to_lie(batch):
    def touched(**row) -> torch.Tensor:
        rows = [room.apply(batch, Augmentation(**row), seeded(seed)) != batch for seed in range(20)]
        return torch.cat(rows).squeeze(1)

    quarter = SIDE // 4
    margins = touched(margin=1.0, widest=0.25)
    assert margins.any() and not margins[:, quarter:-quarter, quarter:-quarter].any()
    corners = touched(corner=1.0, largest=0.25)
    assert corners.any()
    assert not corners[:, quarter:-quarter].any() and not corners[:, :, quarter:-quarter].any()
    holes = touched(hole=1.0, largest=0.25).float()
    assert (holes.mean((1, 2)) <= 0.25**2 + 0.03).all()
    half = SIDE // 2
    quadrants = [holes[:, y : y + half, x : x + half].mean() for y in (0, half) for x in (0, half)]
    assert min(quadrants) > 0.5 * max(quadrants), "a hole may lie anywhere"


def test_a_change_of_chance_one_half_leaves_some_pictures_alone(batch):
    changed = room.apply(batch.repeat(4, 1, 1, 1), Augmentation(mirror=0.5), seeded())
    kept = torch.isclose(changed, batch.repeat(4, 1, 1, 1), atol=1e-5).flatten(1).all(1).float().mean()
    assert 0.25 < kept < 0.75
