"""The documented family: exact layers, counts and arithmetic, and what timm asks of a model."""

import importlib.util
import math
import os
import sys
import warnings

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.optim import param_groups_layer_decay

from hub_model import covid_cnn
from hub_model.covid_cnn import VARIANTS, luminance

PARAMETERS = {
    "covid_cnn_baseline": 12_184_993,
    "covid_cnn_1": 11_131_457,
    "covid_cnn_2": 11_131_457,
    "covid_cnn_3": 2_490_593,
    "covid_cnn_4": 11_131_457,
    "covid_cnn_5": 11_150_209,
}
KERNELS = {  # of every layer, first to last, by hand: (filters, channels, 3, 3) and (units, inputs)
    "covid_cnn_baseline": [(32, 1, 3, 3), (64, 32, 3, 3), (16, 64 * 109 * 109), (1, 16)],
    "covid_cnn_1": [(32, 1, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (64, 64 * 52 * 52), (1, 64)],
    "covid_cnn_3": [
        *[(32, 1, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3)],
        *[(256, 64 * 12 * 12), (256, 256), (1, 256)],
    ],
    "covid_cnn_5": [(64, 1, 3, 3), (64, 64, 3, 3), (64, 64, 3, 3), (64, 64 * 52 * 52), (1, 64)],
}
DISTINCT = sorted(KERNELS)  # covid_cnn_2 and _4 are the network of _1 under other recipes


@pytest.fixture(params=DISTINCT)
def network(request):
    torch.manual_seed(7)
    return timm.create_model(request.param).eval()


def test_the_family_is_in_timms_registry():
    assert timm.list_models("covid_cnn*") == sorted(PARAMETERS) == sorted(VARIANTS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_documented_ones(name):
    with torch.device("meta"):
        assert sum(p.numel() for p in timm.create_model(name).parameters()) == PARAMETERS[name]


def test_layers_are_the_documented_ones(network):
    kernels = [tuple(p.shape) for p in network.parameters() if p.ndim > 1]
    assert kernels == KERNELS[network.pretrained_cfg["architecture"]]


def test_models_2_and_4_are_the_network_of_model_1():
    for name in ("covid_cnn_2", "covid_cnn_4"):
        assert (VARIANTS[name].convs, VARIANTS[name].dense) == ((32, 64, 64), (64,))


def test_weights_start_as_in_keras(network):
    """Glorot-uniform: flat between plus and minus sqrt(6 / (fan_in + fan_out)); biases zero."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
            continue
        field = math.prod(parameter.shape[2:])
        limit = math.sqrt(6 / (field * (parameter.shape[0] + parameter.shape[1])))
        assert parameter.abs().max() <= limit, name
        if parameter.numel() > 1000:
            assert parameter.abs().max() > 0.99 * limit, name
            assert parameter.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05), name
            assert abs(parameter.mean().item()) < 0.05 * limit, name


def test_three_equal_channels_are_one_channel_to_the_last_bit(network):
    grey = torch.rand(2, 1, 224, 224)
    with torch.no_grad():
        assert torch.equal(network(grey), network(grey.expand(-1, 3, -1, -1)))


def test_luminance_of_colours_is_pillows():
    colour = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    pillow = np.asarray(Image.fromarray(colour.permute(1, 2, 0).numpy()).convert("L"), np.float32)
    ours = luminance(colour[None].float())[0, 0].numpy()
    assert np.abs(ours - pillow).max() <= 0.51  # Pillow rounds to a byte


def test_two_logits_are_the_documented_sigmoid_unit(network):
    pixels = torch.rand(2, 1, 224, 224)
    with torch.no_grad():
        logits = network(pixels)
        unit = network.get_classifier()(
            network.forward_head(network.forward_features(pixels), pre_logits=True)
        )
    assert not logits[:, 0].any()
    torch.testing.assert_close(logits.softmax(1)[:, 1:], torch.sigmoid(unit))


def test_a_network_of_averages_gives_the_number_worked_out_by_hand(network):
    """Kernels that average, fed a constant picture v, hand v on through every layer; the last one makes 3
    v - 1.
    """
    kernels = [p for p in network.double().parameters() if p.ndim > 1]
    with torch.no_grad():
        for kernel in kernels[:-1]:
            kernel.fill_(1 / kernel[0].numel())
        kernels[-1].fill_(3 / kernels[-1].numel())
        network.classifier.bias.fill_(-1)
        logits = network(torch.tensor([0.0, 0.25, 1.0]).double()[:, None, None, None].expand(3, 1, 224, 224))
    torch.testing.assert_close(
        logits, torch.tensor([[0, -1], [0, -0.25], [0, 2]]).double(), atol=1e-10, rtol=0
    )


def test_every_layer_agrees_with_an_independent_reckoning(network):
    """The same weights in float64 by NumPy, written from the description: conv, ReLU, pool, flatten,
    dense, sigmoid.
    """
    pixels = torch.rand(1, 1, 224, 224)
    weights = iter([p.detach().double().numpy() for p in network.parameters()])
    variant = VARIANTS[network.pretrained_cfg["architecture"]]
    x = pixels[0].double().numpy()
    for index in range(len(variant.convs)):
        kernel, bias = next(weights), next(weights)
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
        x = np.maximum(np.tensordot(kernel, windows, ([1, 2, 3], [0, 3, 4])) + bias[:, None, None], 0)
        if index in variant.pools_after:
            x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
            x = x.reshape(len(x), x.shape[1] // 2, 2, -1, 2).max((2, 4))
    x = x.ravel()
    for _ in variant.dense:
        x = np.maximum(next(weights) @ x + next(weights), 0)
    probability = 1 / (1 + np.exp(-(next(weights) @ x + next(weights))[0]))
    with torch.no_grad():
        assert network(pixels).softmax(1)[0, 1].item() == pytest.approx(probability, abs=1e-5)


def test_outputs_agree_with_the_same_networks_in_keras(network):
    """Needs Keras (test-only; on its own it computes with torch); the tests above check the same without
    it.
    """
    if importlib.util.find_spec("tensorflow") is None:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip(
        "keras", reason="Keras is not installed; it is no dependency, only this check's"
    )
    from keras import layers

    variant = VARIANTS[network.pretrained_cfg["architecture"]]
    stack = [layers.Input((224, 224, 1))]
    for index, filters in enumerate(variant.convs):
        stack.append(layers.Conv2D(filters, 3, activation="relu"))
        stack += [layers.MaxPooling2D(2)] * (index in variant.pools_after)
    stack += [layers.Flatten(), *[layers.Dense(units, activation="relu") for units in variant.dense]]
    twin = keras.Sequential([*stack, layers.Dense(1, activation="sigmoid")])
    assert twin.count_params() == PARAMETERS[network.pretrained_cfg["architecture"]]

    channels = variant.convs[-1]
    ours, theirs = iter(list(network.parameters())), []
    for layer in twin.layers:
        if not layer.weights:
            continue
        kernel, bias = next(ours).detach(), next(ours).detach()
        if kernel.ndim == 4:
            kernel = kernel.permute(2, 3, 1, 0)
        else:
            if layer.name == next(
                x.name for x in twin.layers if isinstance(x, layers.Dense)
            ):  # flattened H, W, C
                side = math.isqrt(kernel.shape[1] // channels)
                kernel = kernel.reshape(-1, channels, side, side).permute(0, 2, 3, 1).flatten(1)
            kernel = kernel.T
        theirs += [kernel.numpy(), bias.numpy()]
    twin.set_weights(theirs)
    pixels = torch.rand(4, 1, 224, 224)
    with torch.no_grad():
        probability = network(pixels).softmax(1)[:, 1].numpy()
    np.testing.assert_allclose(
        probability, twin.predict(pixels.permute(0, 2, 3, 1).numpy(), verbose=0)[:, 0], atol=1e-4
    )


@pytest.mark.parametrize(
    ("shape", "told"),
    [((1, 3, 256, 256), "224 x 224"), ((1, 1, 224, 100), "224 x 224"), ((1, 2, 224, 224), "1 or 3 channels"),
     ((3, 224, 224), "batch dimension")],
)  # fmt: skip
def test_pixels_that_do_not_fit_are_refused_with_what_does(shape, told):
    with pytest.raises(ValueError, match=told):
        timm.create_model("covid_cnn_3")(torch.zeros(shape))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"in_chans": 4}, "1 or 3"), ({"img_size": 256}, "224 x 224"), ({"global_pool": "avg"}, "flattens")],
)
def test_arguments_that_do_not_fit_are_refused_with_what_does(wrong, told):
    with pytest.raises(ValueError, match=told):
        timm.create_model("covid_cnn_3", **wrong)


def test_heads_of_other_sizes():
    pixels = torch.rand(2, 3, 224, 224)
    network = timm.create_model("covid_cnn_3", num_classes=0, in_chans=1).eval()
    assert network(pixels).shape == (2, network.head_hidden_size)
    network.reset_classifier(4)
    assert network(pixels).shape == (2, 4)
    network.reset_classifier(1)
    assert network(pixels).shape == (2, 1)


def test_feature_pyramids_in_timms_way():
    pyramid = timm.create_model("covid_cnn_3", features_only=True, out_indices=(0, -1))
    small, large = pyramid(torch.rand(1, 3, 224, 224))
    assert small.shape == (1, 32, 111, 111)
    assert large.shape == (1, 64, 12, 12)
    assert pyramid.feature_info.channels() == [32, 64]
    assert pyramid.feature_info.reduction() == [2, 16]


def test_intermediates_stop_where_they_are_told():
    network = timm.create_model("covid_cnn_3").eval()
    pixels = torch.rand(1, 3, 224, 224)
    last, every = network.forward_intermediates(pixels)
    assert torch.equal(last, network.forward_features(pixels))
    only = network.forward_intermediates(pixels, indices=[1], stop_early=True, intermediates_only=True)
    assert len(only) == 1
    assert torch.equal(only[0], every[1])


def test_layers_are_ordered_for_discriminative_learning_rates():
    network = timm.create_model("covid_cnn_3")
    groups = param_groups_layer_decay(network, layer_decay=0.5, weight_decay=0.0)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    order = [scale[id(p)] for name, p in network.named_parameters() if name.endswith("weight")]
    assert order == [0.5**depth for depth in (6, 5, 4, 3, 2, 1, 0)]


def test_a_copy_that_travelled_does_not_disturb_the_registry(tmp_path):
    """As when a hub folder's remote code is imported beside the package."""
    before = timm.model_entrypoint("covid_cnn_1")
    spec = importlib.util.spec_from_file_location("travelled_covid_cnn", covid_cnn.__file__)
    copy = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            spec.loader.exec_module(copy)
    finally:
        del sys.modules[spec.name]
    assert timm.model_entrypoint("covid_cnn_1") is before


def test_only_the_family_travels_with_code():
    assert [file.name for file in covid_cnn.remote_code_files("covid_cnn_2")] == [
        "covid_cnn.py",
        "modeling_covid_cnn.py",
    ]
    assert covid_cnn.config_extras("covid_cnn_2")["auto_map"].keys() == {"AutoModelForImageClassification"}
    assert covid_cnn.remote_code_files("resnet18") == ()
    assert covid_cnn.config_extras("resnet18") == {}
