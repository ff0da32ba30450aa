"""Networks to train: by name, from a file, from the Hub; and what is said when that cannot be."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from hub_model import covid_cnn, hub_folder
from hub_model.refused import Refused
from train.fit import backbones, starting_points

NAME = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Safetensors under timm's names, classifier and all."""
    torch.manual_seed(5)
    file = tmp_path_factory.mktemp("weights") / "start.safetensors"
    save_file(backbones.build(NAME).model.state_dict(), file)
    return file


@pytest.fixture
def damaged(weights, tmp_path):
    def save(change):
        state = load_file(weights)
        change(state)
        save_file(state, tmp_path / "damaged.safetensors")
        return tmp_path / "damaged.safetensors"

    return save


def test_weights_from_a_file_are_taken_but_for_the_head(weights):
    given, built = load_file(weights), backbones.build(NAME, init=weights)
    own = built.model.state_dict()
    same = {name for name in own if torch.equal(own[name], given[name])}
    assert own.keys() - same == {"classifier.weight"}  # the bias starts at zero in both
    assert (built.architecture, built.model_args) == (NAME, {})


def test_weights_from_a_hub_folder(tmp_path):
    built = backbones.build(NAME, input_size=64)
    folder = hub_folder.save(
        tmp_path / "run", built.model, architecture=NAME, model_args={}, pretrained_cfg=built.pretrained_cfg,
        screening={"modality": "ct", "operating_points": {"balanced": {"threshold": 0.5}}}, half=True,
    )  # fmt: skip
    own = backbones.build(NAME, init=folder).model.conv_stem.weight
    torch.testing.assert_close(own, built.model.conv_stem.weight.half().float())


def drop(state):
    del state["conv_stem.weight"]


def add(state):
    state["conv_stem.extra"] = torch.zeros(2)


def rename(state):
    state["stem.weight"] = state.pop("conv_stem.weight")


def reshape(state):
    state["conv_stem.weight"] = torch.zeros(16, 1, 3, 3)


def spoil(state):
    state["bn1.bias"] = torch.full_like(state["bn1.bias"], torch.nan)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop, r"1 missing \(conv_stem.weight"),
        (add, r"1 unexpected \(conv_stem.extra"),
        (rename, r"1 missing \(conv_stem.weight \.\.\.\), 1 unexpected \(stem.weight"),
        (reshape, r"1 of another shape \(conv_stem.weight"),
        (spoil, r"1 not finite \(bn1.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_whole(damaged, change, told):
    with pytest.raises(Refused, match=told) as refusal:
        backbones.build(NAME, init=damaged(change))
    assert "Nothing was loaded" in str(refusal.value)


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(Refused, match=r"does not fit ResNet: .* Is it another architecture"):
        backbones.build("resnet18", init=weights)


def test_a_pickle_is_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    torch.save(Trap(), tmp_path / "weights.pth")
    with pytest.raises(Refused, match=r"Pickles .* are never opened"):
        backbones.build(NAME, init=tmp_path / "weights.pth")
    assert not (tmp_path / "sprung").exists()


def test_the_hub_out_of_reach_says_what_to_do():
    with pytest.raises(Refused, match=r"Hub cannot be reached .*HF_HOME.* --init FILE"):
        backbones.build("resnet18.a1_in1k", pretrained=True)


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("resnet81", {}, "Did you mean resnet"),
        ("covid_cnn_1", {"pretrained": True}, "no pretrained weights for covid_cnn_1"),
        ("vit_tiny_patch16_224", {}, "no feature map .* Choose a convolutional network"),
        (NAME, {"model_args": {"depth_of_thought": 3}}, "Check --model-args"),
        (NAME, {"pretrained": True, "init": "a"}, "give one of them"),
        ("covid_cnn_3", {"input_size": 256}, "reads 224 x 224"),
    ],
)
def test_what_cannot_be_built_is_said(name, settings, told):
    with pytest.raises(Refused, match=told):
        backbones.build(name, **settings)


def test_grey_pictures_go_through_a_stem_of_three_channels():
    built = backbones.build("resnet18", input_size=64, mean=0.4, std=0.2)
    assert built.model.conv1.weight.shape[1] == 3
    assert built.pretrained_cfg["input_size"] == [3, 64, 64]
    assert (built.pretrained_cfg["mean"], built.pretrained_cfg["std"]) == ([0.4] * 3, [0.2] * 3)


def test_the_tested_list_and_the_family_are_timms(shared_backbones):
    """ImageNet weights under timm's names are taken as they lie."""
    file = shared_backbones / "mobilenetv2_100.imagenet_tf.safetensors"
    own = backbones.build("mobilenetv2_100", init=file, model_args={"pad_type": "same"}).model.state_dict()
    given = load_file(file)
    assert torch.equal(own["conv_stem.weight"], given["conv_stem.weight"].float())
    assert set(covid_cnn.VARIANTS).isdisjoint(backbones.TESTED)


def test_a_starting_point_keeps_its_function(shared_backbones, tmp_path):
    """A ResNet50-v2 with a norm in its stem, carried over to a stock one, computes what it computed."""
    file = shared_backbones / "resnetv2_50.imagenet_gluon_stages1to3.safetensors"
    state = {name: tensor.float() for name, tensor in load_file(file).items()}
    model = starting_points.stock_resnetv2(dict(state), 1).eval()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    relu, conv = torch.relu, torch.nn.functional.conv2d

    def norm(x, name):
        slope, intercept = starting_points.affine(state, name)
        return x * slope[:, None, None] + intercept[:, None, None]

    with torch.no_grad():
        x = relu(norm(conv(pixels, state["stem.conv.weight"], stride=2, padding=3), "stem.norm"))
        x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
        first = "stages.0.blocks.0."
        opened = relu(norm(x, f"{first}norm1"))
        y = relu(norm(conv(opened, state[f"{first}conv1.weight"]), f"{first}norm2"))
        y = relu(norm(conv(y, state[f"{first}conv2.weight"], padding=1), f"{first}norm3"))
        y = conv(y, state[f"{first}conv3.weight"]) + conv(opened, state[f"{first}downsample.conv.weight"])
        block = model.stages[0].blocks[0]
        ours = block(model.stem(pixels))
        reader = norm(y, "stages.0.blocks.1.norm1")
        shifted = model.stages[0].blocks[1].norm1
        slope = shifted.weight / torch.sqrt(shifted.running_var + 1e-5)
        got = (ours - shifted.running_mean[:, None, None]) * slope[:, None, None] + shifted.bias[
            :, None, None
        ]
    torch.testing.assert_close(got, reader, atol=1e-3, rtol=1e-3)
