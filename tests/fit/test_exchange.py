"""Exchange between sources: each part takes what it says from the donor, and the lungs, label and source stay."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import fft

from hub_model import lungs
from hub_model.changes import blurred, compressed
from hub_model.lungs import SIDE, LungFinder, Lungs, lungs_of
from hub_model.refused import Refused
from train.fit import exchange as room
from train.fit import fit as fitting
from train.fit.batches import NAMELESS, read_images, read_unlabelled
from train.fit.exchange import Exchange
from train.fit.recipes import RECIPES

CFG = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}


def noise(seed: int, shape: tuple[int, int] = (96, 120), spread: float = 20) -> np.ndarray:
    """Grey noise far from black and white, so that nothing is cut off."""
    return np.random.default_rng(seed).normal(128, spread, shape).round().clip(0, 255).astype(np.uint8)


def ellipse(left: float, top: float, right: float, bottom: float) -> Lungs:
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    across, down = (x - (left + right) / 2) / (right - left), (y - (top + bottom) / 2) / (bottom - top)
    return lungs_of((across**2 + down**2 < 0.25).astype(np.float32))


NO_LUNGS = lungs_of(np.zeros((SIDE, SIDE), np.float32))


def mask(found: Lungs, shape: tuple[int, int]) -> np.ndarray:
    outline = Image.fromarray(found.outline).resize(shape[::-1], Image.Resampling.BILINEAR)
    return np.asarray(outline) >= lungs.LIKELY


class TestStyle:
    def test_the_histogram_is_the_donors_within_a_level(self):
        shares = (np.arange(256 * 40) + 0.5) / (256 * 40)
        grey = np.random.default_rng(0).permutation((shares * 256).astype(np.uint8)).reshape(80, 128)
        donor = (
            np.random.default_rng(1)
            .permutation((60 + 65 * (shares + shares**2)).astype(np.uint8))
            .reshape(128, 80)
        )
        taken = room.with_levels(grey, donor)
        assert (np.abs(np.sort(taken.ravel()).astype(int) - np.sort(donor.ravel())) <= 1).all()
        order = np.argsort(grey.ravel(), kind="stable")
        assert (np.diff(taken.ravel()[order].astype(int)) >= 0).all()

    def test_slow_amplitudes_are_the_donors_and_the_rest_stays(self):
        grey, donor = blurred(noise(0), 0.02), blurred(noise(1, spread=60), 0.05)
        taken = room.with_amplitudes(grey, donor, 1.0, 3.0)
        before, wanted, after = (fft.rfft2(picture.astype(float)) for picture in (grey, donor, taken))
        slow = np.hypot(np.minimum(np.arange(96), 96 - np.arange(96))[:, None], np.arange(61)) <= 3
        rounding = 3 * np.sqrt(grey.size)  # of grey levels, summed over the picture
        assert np.allclose(np.abs(after)[slow], np.abs(wanted)[slow], atol=rounding)
        assert np.allclose(after[~slow], before[~slow], atol=rounding)
        assert np.allclose(np.angle(after[slow] / before[slow]), 0, atol=0.3)
        assert np.abs(np.abs(before) - np.abs(wanted))[slow].max() > 10 * rounding

    @pytest.mark.parametrize("softer", [True, False])
    def test_sharpness_falls_off_as_the_donors(self, softer):
        sharp, soft = noise(0, spread=30), blurred(noise(1, spread=30), 0.008)
        grey, donor = (sharp, soft) if softer else (soft, sharp)
        fine = lambda picture: float(np.abs(np.diff(picture.astype(int), axis=1)).mean() / picture.std())  # noqa: E731
        taken = room.as_sharp_as(grey, donor)
        assert abs(fine(taken) - fine(donor)) < 0.35 * abs(fine(grey) - fine(donor))

    def test_what_is_hardly_there_is_not_made_of_noise(self):
        soft = blurred(noise(0, spread=60), 0.03)
        taken = room.as_sharp_as(soft, noise(1, spread=60))
        finest = [np.abs(fft.rfft2(picture.astype(float)))[48, 1:].mean() for picture in (soft, taken)]
        assert finest[1] < 1.2 * room.STRONGEST * finest[0]

    def test_blocks_become_as_visible_as_the_donors(self):
        grey, other = blurred(noise(0, (128, 128), 60), 0.01), blurred(noise(1, (160, 120), 60), 0.01)
        plain, blocky = room.blocks(other), room.blocks(compressed(other, 15))
        assert blocky > 1.3 * plain
        assert room.blocks(compressed(other, 15)[3:, 5:]) > 1.3 * plain  # cropped since
        taken = room.as_blocky_as(grey, compressed(other, 15))
        assert room.blocks(taken) > 1.2 * room.blocks(grey)
        assert np.array_equal(room.as_blocky_as(grey, grey), grey)

    def test_a_picture_that_is_its_own_donor_stays(self):
        grey = blurred(noise(0, spread=60), 0.01)
        assert np.array_equal(room.with_levels(grey, grey), grey)
        for taken in (room.with_amplitudes(grey, grey, 0.7, 4.0), room.as_sharp_as(grey, grey)):
            assert np.abs(taken.astype(int) - grey).max() <= 1

    @pytest.mark.parametrize("shape", [(1, 1), (9, 9), (16, 300), (300, 17), (64, 64)])
    @pytest.mark.parametrize("level", [None, 0, 255])
    def test_any_size_and_blank_pictures_do(self, shape, level):
        grey = noise(0, shape) if level is None else np.full(shape, level, np.uint8)
        for seed in range(6):
            for pair in ((grey, noise(1)), (noise(1), grey)):
                taken = room.restyled(*pair, np.random.default_rng(seed))
                assert taken.shape == pair[0].shape and taken.dtype == np.uint8


class TestBackground:
    def test_lungs_stay_and_what_lies_around_them_is_the_donors(self):
        own, other = ellipse(0.3, 0.2, 0.7, 0.9), ellipse(0.1, 0.3, 0.9, 0.6)
        grey, donor = noise(0, (200, 160)), np.full((130, 140), 200, np.uint8)
        donor[mask(other, donor.shape)] = 10
        taken = room.with_background(grey, own, donor, other)
        inside = mask(own, grey.shape)
        assert np.array_equal(taken[inside], grey[inside])
        far = ~mask(ellipse(0.2, 0.1, 0.8, 1.0), grey.shape)
        assert (taken[far] > 160).all() and np.median(taken[far]) == 200  # and the donor's lungs are filled

    def test_the_donors_lungs_come_to_lie_on_the_pictures(self):
        own, other = ellipse(0.5, 0.1, 0.9, 0.5), ellipse(0.2, 0.4, 0.6, 0.8)
        donor = np.full((256, 256), 50, np.uint8)
        donor[int(0.3 * 256) :, : int(0.1 * 256)] = (
            250  # a tenth of the side left of its lungs and beside them
        )
        taken = room.with_background(noise(0, (256, 256)), own, donor, other)
        assert taken[int(0.3 * 256), int(0.35 * 256)] == 250 and taken[int(0.3 * 256), int(0.45 * 256)] == 50

    @pytest.mark.parametrize(
        ("own", "other"), [(NO_LUNGS, ellipse(0, 0, 1, 1)), (ellipse(0, 0, 1, 1), NO_LUNGS)]
    )
    def test_without_lungs_a_picture_stays(self, own, other):
        grey = noise(0)
        assert room.with_background(grey, own, noise(1), other) is grey

    def test_lungs_that_fill_the_frame_do(self):
        full = lungs_of(np.ones((SIDE, SIDE), np.float32))
        grey = noise(0)
        assert np.array_equal(room.with_background(grey, full, noise(1), ellipse(0.2, 0.2, 0.8, 0.8)), grey)
        taken = room.with_background(grey, ellipse(0.2, 0.2, 0.8, 0.8), noise(1), full)
        assert taken.shape == grey.shape and not np.array_equal(taken, grey)


@pytest.fixture
def rows():
    """Pictures of three sources, each with its own range of levels, one of them with both labels."""
    sources = ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    levels = {"a": 40, "b": 120, "c": 200}
    pictures = [
        Image.fromarray((noise(i, (64, 64), 5) + levels[s] - 128).astype(np.uint8))
        for i, s in enumerate(sources)
    ]
    table = {"label": [1] * 4 + [0] * 4 + [0, 1] * 2, "source": sources, "path": [str(i) for i in range(12)],
             "family": [str(i) for i in range(12)]}  # fmt: skip

    class Rows(list):
        def __getitem__(self, key):
            return table[key] if isinstance(key, str) else super().__getitem__(key)

    return Rows({"image": picture} for picture in pictures)


def exchange(rows, **changes) -> Exchange:
    chances = {"style": 1.0, "background": 0.0} | changes
    return Exchange(rows["source"], lambda index: rows[index]["image"], **chances)


def transform(picture: Image.Image) -> torch.Tensor:
    small = np.asarray(picture.resize((32, 32)), np.float32)
    return torch.from_numpy(small)[None].div(255).sub(0.5).div(0.25).expand(3, -1, -1)


class TestExchange:
    def test_donors_are_of_another_source_and_every_source_alike(self, rows):
        giving = exchange(rows)
        rng = np.random.default_rng(0)
        means = np.array([giving.donor("a", rng).mean() for _ in range(200)])
        assert (means > 80).all() and 60 < (means > 160).sum() < 140
        assert giving.donor(NAMELESS, rng).shape == (64, 64)

    def test_the_same_state_gives_the_same_picture(self, rows):
        grey = noise(0)
        one, two, three = (exchange(rows)(grey, "a", np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert np.array_equal(one, two) and not np.array_equal(one, three)

    def test_chances_are_kept(self, rows):
        grey = noise(0)
        assert exchange(rows, style=0.0)(grey, "a", np.random.default_rng(0)) is grey
        kept = [
            exchange(rows, style=0.5)(grey, "a", np.random.default_rng(seed)) is grey for seed in range(100)
        ]
        assert 35 < sum(kept) < 65

    def test_backgrounds_come_with_the_lungs_that_the_finder_finds(self, rows):
        finder = LungFinder(
            lambda seen: np.broadcast_to(ellipse(0.3, 0.3, 0.7, 0.7).outline, seen.shape), "ct"
        )
        grey = noise(0, (64, 64))
        taken = exchange(rows, style=0.0, background=1.0, finder=finder)(grey, "a", np.random.default_rng(0))
        inside = mask(ellipse(0.3, 0.3, 0.7, 0.7), grey.shape)
        assert np.array_equal(taken[inside], grey[inside])
        assert np.abs(taken[:8].mean() - 128) > 30 or taken[:8].std() < 10

    @pytest.mark.parametrize(
        ("sources", "said"), [(["one"] * 3, "are of one, one. Give --data"), ([], "are of none")]
    )
    def test_one_source_is_refused(self, sources, said):
        with pytest.raises(Refused, match=said):
            Exchange(sources, lambda index: None, style=0.5, background=0.5)


class TestReading:
    def test_labels_sources_and_pictures_stay_and_copies_alone_change(self, rows):
        plain = read_images(rows, transform, CFG, "train", 1, seed=5)
        none = read_images(rows, transform, CFG, "train", 1, seed=5, exchange=exchange(rows, style=0.0))
        styled, again = (read_images(rows, transform, CFG, "train", 1, 5, exchange(rows)) for _ in range(2))
        assert torch.equal(none.copies, plain.copies)
        assert torch.equal(styled.copies, again.copies)
        assert (styled.copies != plain.copies).flatten(2).any(2).float().mean() > 0.6
        for name in ("pixels", "labels", "targets"):
            assert torch.equal(getattr(styled, name), getattr(plain, name))
        assert styled.sources.tolist() == rows["source"] and styled.paths == plain.paths

    def test_pictures_without_a_label_take_part(self, rows):
        pictures = [row["image"] for row in rows[:3]]
        plain = read_unlabelled(pictures, transform, CFG, 2, seed=5)
        styled = read_unlabelled(pictures, transform, CFG, 2, 5, exchange(rows))
        assert torch.equal(styled.pixels, plain.pixels) and not torch.equal(styled.copies, plain.copies)
        assert set(styled.sources) == {NAMELESS}

    def test_a_run_asks_for_what_its_recipe_says(self, rows):
        def of(recipe, rows, unlabelled):
            settings = SimpleNamespace(row=RECIPES[recipe])
            return fitting._exchange(settings, rows, unlabelled, None)

        assert of("steady", rows, []) is None
        further = Image.new("L", (64, 64), 250)
        giving = of("steady_exchange", rows, [further])
        assert set(giving.places) == {"a", "b", "c", NAMELESS}
        assert giving.picture(12).getpixel((0, 0)) == 250
        assert (giving.style, giving.background) == (0.5, 0.5)
        row = replace(RECIPES["steady_exchange"], style=0.0, background=0.0)
        assert row == RECIPES["steady"]
