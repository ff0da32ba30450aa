"""Training that harmless changes cannot help: copies, the steady head, consistency, and the view cut to lungs."""

import numpy as np
import pytest
import torch
from PIL import Image

from hub_model import hub_folder, lungs
from hub_model.lung_net import LungNet
from hub_model.refused import Refused
from train.data.dataset import open_data
from train.fit import fit as fitting
from train.fit import speed
from train.fit.batches import join, read_images, read_unlabelled
from train.fit.fit import fit
from train.fit.recipes import RECIPES, Recipe
from train.fit.settings import Settings
from train.fit.steady import features_of_looks, steady_head
from train.fit.trainer import distance

SMALL = "mobilenetv3_small_050"
CFG = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Slices whose label shows in a coarse pattern that no harmless change takes away."""
    root, rng = tmp_path_factory.mktemp("archive"), np.random.default_rng(0)
    for label, stripes in (("COVID", 3), ("Non-COVID", 9)):
        (root / "CT" / label).mkdir(parents=True)
        for index in range(24):
            wave = np.sin(np.arange(80) / 80 * stripes * 2 * np.pi + rng.uniform(0, 6))
            grey = 120 + 50 * wave[:, None] + rng.normal(0, 15, (80, 80))
            Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(root / "CT" / label / f"{index}.png")
    return root


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    steady = Recipe(batch=8, epochs=1, learning_rate=1e-4, freeze_norms=99, input_size=32, copies=2, steady=1.0,
                    source_penalty=1.0, consistent=True, balance="source")  # fmt: skip
    monkeypatch.setitem(RECIPES, "tiny_steady", steady)


def images_of(archive, copies):
    from train.data.dataset import load_data

    part = load_data(str(archive), modality="ct", families="known")["train"]
    config = hub_folder.make_config(SMALL, {}, CFG, 1024)
    return read_images(
        part, hub_folder.transform_of(config), config["pretrained_cfg"], "train", copies, seed=3
    )


def network():
    import timm

    torch.manual_seed(0)
    return timm.create_model(SMALL, num_classes=2).eval()


def test_copies_are_repeatable_and_drawn_only_where_asked(archive):
    images, again = images_of(archive, 2), images_of(archive, 2)
    assert images.copies.shape == (len(images), 2, 1, 32, 32)
    assert torch.equal(images.copies, again.copies)
    assert not torch.equal(images.copies[0, 0], images.copies[0, 1])
    assert all(torch.equal(images[0]["pixels"], images.pixels[0]) for _ in range(8))
    images.any_look = True
    assert any(not torch.equal(images[0]["pixels"], images.pixels[0]) for _ in range(20))


def test_the_head_answers_as_it_was_fitted_and_targets_are_smooth(archive):
    images, net = images_of(archive, 2), network()
    steady_head(net, images, CFG, RECIPES["tiny_steady"], seed=0)
    assert images.any_look
    assert torch.allclose(images.targets.sum(1), torch.ones(len(images)))
    covid = images.targets[:, 1]
    assert covid[images.labels == 1].mean() > covid[images.labels == 0].mean() + 0.2
    features = features_of_looks(net, images, CFG)
    assert features.shape[:2] == (len(images), 3)
    pixels = images.pixels.float().div(255).sub(0.5).div(0.25).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        logits = net(pixels)
    head = net.get_classifier()
    expected = torch.from_numpy(features[:, 0]).float() @ head.weight.T + head.bias
    assert torch.allclose(logits, expected, atol=0.05)


def test_without_consistency_labels_stay_the_targets(archive):
    from dataclasses import replace

    images, net = images_of(archive, 1), network()
    before = images.targets.clone()
    steady_head(net, images, CFG, replace(RECIPES["tiny_steady"], consistent=False), seed=0)
    assert torch.equal(images.targets, before) and not images.any_look


@pytest.mark.parametrize(("recipe", "looks"), [("tiny_looks", True), ("tiny_steady", False)])
def test_copies_go_to_the_network_where_no_steady_head_learns_from_them(archive, monkeypatch, recipe, looks):
    monkeypatch.setitem(
        RECIPES, "tiny_looks", Recipe(batch=8, epochs=1, learning_rate=1e-3, input_size=32, copies=2)
    )
    settings = Settings(data=[str(archive)], modality="ct", variant=SMALL, recipe=recipe, families="known")
    splits, _ = open_data(settings.data, "ct", families="known")
    images = fitting._read(settings, splits, fitting._build(settings))
    assert images["train"].copies.shape[1] == 2 and images["train"].any_look == looks
    assert not images["validation"].any_look


def test_an_expert_speaks_to_the_teacher_alone(archive):
    images, alone = images_of(archive, 1), images_of(archive, 1)
    rng = np.random.default_rng(0)
    images.expert = (rng.normal(size=(len(images), 4)) + 3 * images.labels[:, None].numpy()).astype(
        np.float16
    )
    first, second = network(), network()
    steady_head(first, images, CFG, RECIPES["tiny_steady"], seed=0)
    steady_head(second, alone, CFG, RECIPES["tiny_steady"], seed=0)
    assert torch.equal(first.get_classifier().weight, second.get_classifier().weight)
    apart = [
        float(i.targets[i.labels == 1, 1].mean() - i.targets[i.labels == 0, 1].mean())
        for i in (images, alone)
    ]
    assert apart[0] > apart[1]


def test_the_head_stays_precise_in_bfloat16():
    head = torch.nn.Linear(512, 2)
    features = torch.randn(4, 512, generator=torch.Generator().manual_seed(0)) + 30
    exact = head(features)
    speed.keep_head_precise(head)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(features), exact)


def test_a_run_cut_to_lungs_carries_the_lung_network(archive, tmp_path):
    torch.manual_seed(0)
    lungs.save(tmp_path / "lungs", LungNet().eval(), {"modality": "ct"})
    out = fit(data=[str(archive)], modality="ct", variant=SMALL, recipe="tiny_steady", out=tmp_path / "run",
              families="known", lungs=tmp_path / "lungs")  # fmt: skip
    folder = hub_folder.open_folder(out)
    assert folder.screening["view"] == lungs.LUNGS
    assert lungs.load(out) is not None
    film = Image.fromarray((np.arange(80 * 80).reshape(80, 80) % 60 + 90).astype(np.uint8))
    expected = hub_folder.transform_of(folder.config)(lungs.load(out).view(film))
    assert torch.equal(folder.transform(film), expected)
    assert not torch.equal(folder.transform(film), hub_folder.transform_of(folder.config)(film))


def test_a_step_in_log_odds_counts_alike_where_answers_are_nearly_certain():
    def slope(target, odds, in_odds):
        logits = torch.tensor([[0.0, odds]], requires_grad=True)
        distance(logits, torch.tensor([[1 - target, target]]), in_odds).backward()
        return float(logits.grad[0, 1])

    near, far = torch.tensor(0.0), torch.tensor(-5.0)
    at = [float(torch.sigmoid(odds)) for odds in (near, far)]
    assert slope(at[0], 0.5, True) == pytest.approx(slope(at[1], -4.5, True), rel=1e-3)
    assert slope(at[0], 0.5, False) > 10 * slope(at[1], -4.5, False)
    assert (
        distance(torch.tensor([[0.0, 3.0]]), torch.tensor([[0.0, 1.0]]), True) < 6.3
    )  # a certain target is finite


def test_slices_without_a_label_are_told_by_the_teacher_and_those_without_lungs_left_out(archive, tmp_path):
    from train.fit.distillation import unlabelled_pictures

    further = tmp_path / "further"
    further.mkdir()
    for index, file in enumerate(sorted((archive / "CT" / "COVID").iterdir())[:6]):
        (further / f"{index}.png").write_bytes(file.read_bytes())
    Image.new("L", (80, 80), 7).save(further / "nothing.png")

    def outlines(seen):  # a lung wherever the picture shows anything
        return np.broadcast_to(
            (np.ptp(seen, axis=(1, 2, 3)) > 0.1).astype(np.float32)[:, None, None, None], seen.shape
        )

    finder = lungs.LungFinder(outlines, "ct")
    assert len(unlabelled_pictures([further])) == 7
    pictures = unlabelled_pictures([further], finder)
    assert len(pictures) == 6
    images = images_of(archive, 2)
    config = hub_folder.make_config(SMALL, {}, CFG, 1024)
    more = read_unlabelled(pictures, hub_folder.transform_of(config), config["pretrained_cfg"], 2, seed=3)
    both, net = join(images, more), network()
    assert len(both) == len(images) + 6 and both.labels[-6:].eq(-1).all()
    steady_head(net, both, CFG, RECIPES["tiny_steady"], seed=0)
    assert both.targets[-6:, 1].min() > 0.5  # copies of COVID slices
    with pytest.raises(Refused, match="and shows lungs"):
        unlabelled_pictures([further], lungs.LungFinder(np.zeros_like, "ct"))


def test_a_run_may_show_whole_pictures_and_carry_the_lung_network(archive, tmp_path):
    torch.manual_seed(0)
    lungs.save(tmp_path / "lungs", LungNet().eval(), {"modality": "ct"})
    out = fit(data=[str(archive)], modality="ct", variant=SMALL, recipe="tiny_steady", out=tmp_path / "run",
              families="known", lungs=tmp_path / "lungs", view="whole")  # fmt: skip
    folder = hub_folder.open_folder(out)
    assert folder.view == lungs.WHOLE and folder.finder is not None
    film = Image.fromarray((np.arange(80 * 80).reshape(80, 80) % 60 + 90).astype(np.uint8))
    assert torch.equal(folder.transform(film), hub_folder.transform_of(folder.config)(film))
