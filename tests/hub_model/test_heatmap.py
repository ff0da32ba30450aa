"""The heat map: exact where it can be, the same scale in every picture, and nothing left behind."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from hub_model import covid_cnn, evidence, heatmap  # noqa: F401 - registers the family


def network(name):
    """Random weights that answer differently to different pictures."""
    torch.manual_seed(3)
    model = timm.create_model(name, num_classes=2)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(4, 3, 224, 224))
        model.get_classifier().weight.normal_(0, 0.3)
        model.get_classifier().bias.normal_(0, 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def pooled_linear():
    return network("resnet18")


@pytest.fixture(scope="module")
def pooled_nonlinear():
    return network("mobilenetv3_small_100")


@pytest.fixture(scope="module")
def flattened():
    return network("covid_cnn_3")


@pytest.fixture(params=["pooled_linear", "pooled_nonlinear", "flattened"])
def any_network(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(5))


def logit(p):
    return np.log(p) - np.log1p(-p)


def test_a_pooled_linear_head_gives_the_class_activation_map_exactly(pooled_linear, pixels):
    with torch.no_grad():
        features = pooled_linear.forward_features(pixels)[0]
        towards = pooled_linear.fc.weight[1] - pooled_linear.fc.weight[0]
        activation = torch.einsum("c,chw->hw", towards, features) + pooled_linear.fc.bias.diff()
    heat = evidence.heat_map(pooled_linear, pixels)
    assert heat.dtype == np.float32
    np.testing.assert_allclose(heat, torch.sigmoid(activation).numpy(), atol=2e-6)


def test_a_pooled_nonlinear_head_gives_grad_cam(pooled_nonlinear, pixels):
    """The weight of a channel is the mean gradient of the log-odds over places, here by central
    differences.
    """
    model = pooled_nonlinear.double()
    try:
        with torch.no_grad():
            features = model.forward_features(pixels.double())
            odds = evidence.log_odds(model.forward_head(features))
            steps = 1e-4 * torch.eye(features.shape[1], dtype=torch.double)[:, :, None, None]
            slope = evidence.log_odds(model.forward_head(features + steps))
            slope = (slope - evidence.log_odds(model.forward_head(features - steps))) / 2e-4
            grad_cam = torch.einsum("c,chw->hw", slope, features[0])
        expected = torch.sigmoid(grad_cam + odds - grad_cam.mean())
        np.testing.assert_allclose(evidence.heat_map(model, pixels.double()), expected.numpy(), atol=1e-5)
    finally:
        model.float()


def test_the_mean_evidence_is_the_networks_own_answer(any_network, pixels):
    with torch.no_grad():
        odds = evidence.log_odds(any_network(pixels)).item()
    assert logit(evidence.heat_map(any_network, pixels).astype(float)).mean() == pytest.approx(odds, abs=1e-3)


def test_evidence_for_one_class_is_evidence_against_the_other(any_network, pixels):
    ours, other = (evidence.heat_map(any_network, pixels, class_index) for class_index in (1, 0))
    np.testing.assert_allclose(ours, 1 - other, atol=1e-5)


class BrightSpots(nn.Module):
    """Answers COVID for brightness, wherever it is; its head is chosen by the test."""

    def __init__(self, head):
        super().__init__()
        self.pool, self.head = nn.AvgPool2d(16), head

    def forward_features(self, pixels):
        return self.pool(pixels)

    def forward_head(self, features):
        unit = self.head(features)
        return torch.cat([-unit, unit], 1)


@pytest.mark.parametrize("flatten", [False, True], ids=["pooled", "flattened"])
def test_the_map_points_where_the_evidence_is(flatten):
    linear = nn.Linear(3 * 14 * 14 if flatten else 3, 1)
    nn.init.constant_(linear.weight, 1.0)
    pool = [] if flatten else [nn.AdaptiveAvgPool2d(1)]
    model = BrightSpots(nn.Sequential(*pool, nn.Flatten(), linear))
    picture = torch.zeros(1, 3, 224, 224)
    picture[:, :, 32:64, 160:192] = 1.0
    heat = evidence.heat_map(model, picture)
    assert set(zip(*np.nonzero(heat > heat.mean()), strict=True)) == {(2, 10), (2, 11), (3, 10), (3, 11)}


def test_nothing_is_left_behind(any_network, pixels):
    modes = [module.training for module in any_network.modules()]
    before = {name: tensor.clone() for name, tensor in any_network.state_dict().items()}
    evidence.heat_map(any_network, pixels)
    assert all(p.grad is None and p.requires_grad for p in any_network.parameters())
    assert [module.training for module in any_network.modules()] == modes
    assert not any(
        m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in any_network.modules()
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in any_network.state_dict().items())
    assert torch.is_grad_enabled()


def test_inference_mode_and_frozen_weights_do_not_matter(pooled_linear, pixels):
    expected = evidence.heat_map(pooled_linear, pixels)
    with torch.inference_mode():
        np.testing.assert_array_equal(evidence.heat_map(pooled_linear, pixels), expected)
        features = pooled_linear.forward_features(pixels)
        np.testing.assert_array_equal(evidence.heat_map_of_features(pooled_linear, features), expected)
    pooled_linear.requires_grad_(False)
    try:
        np.testing.assert_array_equal(evidence.heat_map(pooled_linear, pixels), expected)
    finally:
        pooled_linear.requires_grad_(True)


def test_threads_share_a_model(flattened):
    pictures = list(torch.rand(8, 1, 3, 224, 224))
    alone = [evidence.heat_map(flattened, picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: evidence.heat_map(flattened, picture), pictures))
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_input_that_has_no_map_is_refused(pooled_linear):
    with pytest.raises(ValueError, match="one picture"):
        evidence.heat_map(pooled_linear, torch.zeros(2, 3, 224, 224))
    with pytest.raises(ValueError, match="convolutional"):
        evidence.heat_map_of_features(pooled_linear, torch.zeros(1, 197, 192))


def test_the_overlay_is_a_fixed_function_of_the_map():
    picture = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (100, 1)))
    neutral = heatmap.overlay(picture, np.full((7, 7), 0.5, np.float32))
    assert (neutral.mode, neutral.size) == ("RGB", (200, 100))
    np.testing.assert_array_equal(np.asarray(neutral), np.asarray(picture.convert("RGB")))
    for value, colour in ((1.0, heatmap.FOR), (0.0, heatmap.AGAINST)):
        tinted = np.asarray(heatmap.overlay(picture, np.full((7, 7), value, np.float32)), float)
        expected = (1 - heatmap.OPACITY) * np.asarray(picture.convert("RGB")) + heatmap.OPACITY * np.array(
            colour
        )
        np.testing.assert_allclose(tinted, expected, atol=0.51)


def test_the_overlay_of_any_map_is_what_the_formula_says_to_two_levels():
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (91, 53), dtype=np.uint8))
    heat = random.random((7, 5)).astype(np.float32)
    fine = np.asarray(Image.fromarray(heat).resize(picture.size, Image.Resampling.BILINEAR))
    exact = heatmap._tint(np.asarray(picture.convert("RGB"), np.float32), fine)
    assert np.abs(np.asarray(heatmap.overlay(picture, heat), int) - exact).max() <= 2


def test_a_row_is_tinted_alike_wherever_it_lies():
    row = np.arange(200, dtype=np.uint8)
    picture = Image.fromarray(np.tile(row, (3 * heatmap.ROWS + 1, 1)))
    tinted = np.asarray(heatmap.overlay(picture, np.tile(np.linspace(0, 1, 9, dtype=np.float32), (9, 1))))
    assert (tinted == tinted[0]).all()


def test_the_overlay_lies_where_the_map_does():
    heat = np.full((7, 7), 0.5, np.float32)
    heat[0, 6] = 1.0
    picture = Image.new("L", (70, 140), 100)
    changed = (np.asarray(heatmap.overlay(picture, heat)) != 100).any(2)
    assert changed[:20, 60:].all()
    assert not changed[60:].any()
    assert not changed[:, :40].any()


def test_the_legend_shows_the_overlays_colours():
    strip = np.asarray(heatmap.legend(width=301))
    grey = Image.new("L", (8, 8), 128)
    for column, value in ((0, 0.0), (150, 0.5), (300, 1.0)):
        shown = np.asarray(heatmap.overlay(grey, np.full((2, 2), value, np.float32)))[0, 0]
        np.testing.assert_array_equal(strip[0, column], shown)
    assert strip[20:].any()  # the words below the scale
