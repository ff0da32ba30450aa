"""Training through its door: a run on phantoms ends in a hub folder, resumes exactly, and says what is wrong."""

import copy
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

import train.fit.fit as fitting
from hub_model import Screener, hub_folder
from hub_model.refused import Refused
from train.fit import speed
from train.fit import trainer as training
from train.fit.batches import BalancedSampler, Batches, read_images, standardise
from train.fit.fit import fit
from train.fit.recipes import RECIPES, Recipe
from train.fit.settings import Settings, choose_recipe
from train.fit.trainer import parameter_groups

ROOT = Path(__file__).resolve().parents[2]
SMALL = "mobilenetv3_small_050"


@pytest.fixture(scope="session")
def archive(tmp_path_factory) -> Path:
    """A folder in the documented layout: COVID slices are brighter on one side, so there is something to learn."""
    root = tmp_path_factory.mktemp("archive") / "COVID-19 Dataset"
    rng = np.random.default_rng(0)
    for label, side in (("COVID", 0), ("Non-COVID", 1)):
        folder = root / "CT" / label
        folder.mkdir(parents=True)
        for index in range(24):
            grey = rng.normal(90, 40, (64, 64))
            grey[:, 32 * side : 32 * side + 32] += 60
            Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    return root


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A recipe small enough for a test: two epochs at 32 pixels."""
    row = Recipe(batch=8, epochs=2, learning_rate=3e-3, input_size=32, average=0.9, augment="light", balance="class",
                 weight_decay=0.01)  # fmt: skip
    monkeypatch.setitem(RECIPES, "tiny", row)


def run(archive, out, **changes):
    arguments = {"data": [str(archive)], "modality": "ct", "variant": SMALL, "recipe": "tiny", "out": out}
    return fit(**(arguments | changes))


@pytest.fixture(scope="module")
def finished(archive, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "tiny", Recipe(batch=8, epochs=2, learning_rate=3e-3, input_size=32))
        return run(archive, tmp_path_factory.mktemp("runs") / "ct")


def test_a_run_ends_in_a_hub_folder_that_stock_loaders_open(finished):
    screener = Screener.from_pretrained(finished)
    provenance = screener.screening["provenance"]
    assert not screener.screening["calibrated"] and len(provenance["history"]) == 2
    assert provenance["recipe"]["name"] == "tiny" and len(provenance["split_sha256"]) == 64
    stock = timm.create_model(f"local-dir:{finished}", pretrained=True).eval()
    pixels = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(stock(pixels), screener.model(pixels))
    assert {p.suffix for p in finished.rglob("*") if p.is_file()} == {".json", ".safetensors", ".onnx"}
    assert str(Path.home()) not in (finished / "screening.json").read_text()


def test_what_training_feeds_is_what_the_screener_feeds(finished, archive):
    """Bit for bit: the bytes kept for training, standardised, are the one preprocessing's output."""
    from train.data.dataset import load_data

    folder = hub_folder.load(finished)
    part = load_data([str(archive)], modality="ct")["validation"]
    images = read_images(part, folder.transform, folder.config["pretrained_cfg"], "validation")
    batch = Batches(folder.config["pretrained_cfg"], "ct")([images[i] for i in range(len(images))])
    for row, pixels in zip(part, batch["pixel_values"], strict=True):
        assert torch.equal(pixels, folder.transform(row["image"].convert("L")))


def test_a_killed_run_resumes_to_the_same_weights(archive, tmp_path, monkeypatch):
    unbroken = run(archive, tmp_path / "unbroken", epochs=3)
    saves = []

    class Killed(Exception):
        pass

    def die(self, args, state, control, **kwargs):
        saves.append(state.global_step)
        if len(saves) == 2:
            raise Killed  # after the second checkpoint was written, before it was marked as whole

    with monkeypatch.context() as patch:
        whole = training.Complete.on_save

        def on_save(self, *args, **kwargs):
            die(self, *args, **kwargs)
            whole(self, *args, **kwargs)

        patch.setattr(training.Complete, "on_save", on_save)
        with pytest.raises(Killed):
            run(archive, tmp_path / "broken", epochs=3)
    assert (tmp_path / "broken" / "trainer").is_dir()
    resumed = run(archive, tmp_path / "broken", epochs=3)
    first, second = (load_file(path / hub_folder.WEIGHTS) for path in (unbroken, resumed))
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_other_settings_do_not_resume_and_nothing_is_overwritten(archive, finished, tmp_path):
    with pytest.raises(Refused, match="holds a finished run"):
        run(archive, finished)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(Refused, match="is no run folder"):
        run(archive, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()
    given = {"data": ["pictures"], "modality": "ct", "variant": SMALL}
    fitting._open_run(tmp_path / "half", Settings(**given))
    fitting._check_run(tmp_path / "half", Settings(**given), overwrite=False)
    with pytest.raises(Refused, match=r"other settings \(seed\)"):
        fitting._check_run(tmp_path / "half", Settings(**given, seed=1), overwrite=False)


def test_bad_settings_are_refused_before_any_work(archive, tmp_path):
    with pytest.raises(Refused, match="Known are covid_cnn_baseline"):
        run(archive, tmp_path / "x", recipe="magic")
    with pytest.raises(ValueError, match="Unknown network 'covid_cnn_9'"):
        run(archive, tmp_path / "x", variant="covid_cnn_9")
    with pytest.raises(Refused, match="is no JSON"):
        run(archive, tmp_path / "x", model_args="pad_type=same")
    with pytest.raises(Refused, match="--without-source nih: the data has no such source"):
        run(archive, tmp_path / "x", without_source=["nih"])
    assert not (tmp_path / "x" / hub_folder.CONFIG).exists()


def test_a_loss_that_is_no_number_stops_and_names_the_batch(archive, tmp_path):
    with pytest.raises(training.TrainingFailed, match=r"became (nan|inf) at step \d+ .*batch with .*\.png"):
        run(archive, tmp_path / "x", learning_rate=1e30)


def test_a_full_disk_keeps_the_checkpoint_before_it(archive, tmp_path, monkeypatch):
    unbroken = run(archive, tmp_path / "unbroken", epochs=3)
    out, limits = tmp_path / "full", resource.getrlimit(resource.RLIMIT_FSIZE)
    whole = training.Complete.on_save

    def fill(self, args, state, control, **kwargs):
        whole(self, args, state, control, **kwargs)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the next checkpoint is larger

    with monkeypatch.context() as patch:
        patch.setattr(training.Complete, "on_save", fill)
        try:
            with pytest.raises(training.TrainingFailed, match=r"could not be saved .* before it are whole"):
                run(archive, out, epochs=3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (kept,) = (out / "trainer").glob("checkpoint-*")
    assert training.last_complete(out / "trainer") == kept and not (out / hub_folder.CONFIG).exists()
    resumed = run(archive, out, epochs=3)
    first, second = (load_file(path / hub_folder.WEIGHTS) for path in (unbroken, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_disk_that_fills_with_the_moving_average_is_said_too(archive, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(training, "save_file", full)
    with pytest.raises(training.TrainingFailed, match=r"could not be saved .*No space left"):
        run(archive, tmp_path / "full")
    assert not list((tmp_path / "full" / "trainer").glob("checkpoint-*"))


def test_teachers_of_other_pictures_or_labels_are_refused(archive, finished, tmp_path):
    with pytest.raises(Refused, match="reads xray pictures, and these are ct"):
        run(archive, tmp_path / "x", teacher=[str(hub_folder.embedded()["xray"])])
    other = shutil.copytree(finished, tmp_path / "other")
    config = json.loads((other / hub_folder.CONFIG).read_text())
    (other / hub_folder.CONFIG).write_text(json.dumps({**config, "label_names": ["COVID", "Non-COVID"]}))
    with pytest.raises(hub_folder.FolderRefused, match="label_names"):
        run(archive, tmp_path / "y", teacher=[str(other)])


def test_every_variant_has_a_recipe_and_chooses_it():
    from hub_model.covid_cnn import VARIANTS

    assert VARIANTS.keys() <= RECIPES.keys()
    assert all(choose_recipe(None, name, transfer=False) == RECIPES[name] for name in VARIANTS)
    assert choose_recipe(None, "resnet18", transfer=True) == RECIPES["transfer"]
    assert choose_recipe(None, "resnet18", transfer=False, epochs=7).epochs == 7


def test_balanced_sampler_draws_classes_and_sources_alike():
    labels = torch.tensor([0] * 900 + [1] * 100)
    sources = np.array(["a"] * 800 + ["b"] * 100 + ["c"] * 100)
    sampler = BalancedSampler(labels, sources, by_source=True, seed=0)
    drawn = np.concatenate([list(sampler) for _ in range(20)])
    assert np.mean(labels.numpy()[drawn]) == pytest.approx(0.5, abs=0.02)
    share = np.mean(sources[drawn] == "a") / np.mean(sources[drawn] == "b")
    assert share == pytest.approx(8**0.5, rel=0.1)
    first = list(sampler)
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler)


def test_parameter_groups_by_stage():
    network = timm.create_model("resnet18", num_classes=2)
    row = Recipe(
        batch=1,
        epochs=1,
        learning_rate=1.0,
        backbone_lr=0.5,
        layer_decay=0.1,
        freeze_stages=2,
        weight_decay=0.3,
    )
    groups = parameter_groups(network, row)
    rate = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert rate[id(network.fc.weight)] == (1.0, 0.3) and rate[id(network.fc.bias)] == (1.0, 0.0)
    assert id(network.conv1.weight) not in rate and not network.conv1.weight.requires_grad
    deep, shallow = rate[id(network.layer4[0].conv1.weight)][0], rate[id(network.layer2[0].conv1.weight)][0]
    assert shallow == pytest.approx(deep / 100)


def test_keras_penalty_is_the_sum_of_squares(archive):
    row = replace(RECIPES["covid_cnn_2"])
    network = timm.create_model("covid_cnn_2", num_classes=2)
    named = dict(network.named_parameters())
    expected = 0.01 * sum(float(named[name].detach().square().sum()) for name in row.l2_kernels)

    class Holder(training.RecipeTrainer):
        def __init__(self):
            self.recipe = row

        network = property(lambda self: network)

    assert float(Holder()._penalty()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("has", "variant", "asked", "expected"),
    [
        ("avx512_bf16", "resnet10t", None, True),
        ("avx512_bf16", "resnet10t", False, False),
        ("avx512_bf16", SMALL, None, False),  # depthwise convolutions are slower so
        ("avx2", "resnet10t", None, False),
        ("avx2", "resnet10t", True, True),
    ],
)
def test_bfloat16_is_taken_where_the_cpu_is_faster_so(
    archive, tmp_path, monkeypatch, has, variant, asked, expected
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {has: True})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = run(archive, tmp_path / "run", variant=variant, bf16=asked, epochs=1, batch=24)
    assert hub_folder.load(out).screening["provenance"]["training"]["bf16"] is expected


def test_kernels_get_the_gradient_that_torch_gives_them(monkeypatch):
    """With strides, padding, dilation, without bias, with a frozen kernel; some convolutions stay as they are."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.manual_seed(0)
    conv = torch.nn.Conv2d
    plain = torch.nn.Sequential(
        conv(3, 8, 3), conv(8, 16, 3, stride=2, padding=1, bias=False), conv(16, 16, 3, padding=1, groups=16),
        conv(16, 8, (1, 3), dilation=2), conv(8, 8, 1), conv(8, 8, 3, padding="same"), conv(8, 4, 3),
    )  # fmt: skip
    plain[3].weight.requires_grad_(False)
    arranged = speed.arrange(copy.deepcopy(plain), bf16=False)
    swapped = [index for index, module in enumerate(arranged) if type(module) is not conv]
    assert swapped == [1, 3, 6] and arranged.state_dict().keys() == plain.state_dict().keys()
    pixels, results = torch.rand(2, 3, 24, 24), []
    for network in (plain, arranged):
        x = pixels.clone().requires_grad_()
        output = network(x)
        output.square().sum().backward()
        results.append([output, x.grad, *(p.grad for p in network.parameters() if p.requires_grad)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert arranged[3].weight.grad is None and arranged[3].bias.grad is not None


@pytest.mark.parametrize("has", [{"avx2": True, "avx512_f": True}, {"neon": True}])
def test_other_processors_keep_torchs_own_convolutions(monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    network = speed.arrange(torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3)), bf16=False)
    assert type(network[0]) is torch.nn.Conv2d


def test_standardise_is_torchvisions_arithmetic():
    from torchvision.transforms.functional import normalize

    pixels, cfg = torch.rand(2, 1, 5, 5), {"mean": [0.3, 0.4, 0.5], "std": [0.1, 0.2, 0.7]}
    assert torch.equal(
        standardise(pixels, cfg), normalize(pixels.expand(-1, 3, -1, -1), cfg["mean"], cfg["std"])
    )


def test_two_processes_train_as_one(archive, tmp_path):
    """torchrun with two processes and the same global batch: the same weights but for the order of float additions."""
    one, two = tmp_path / "one", tmp_path / "two"
    run(archive, one, variant="covid_cnn_3", recipe=None, epochs=1, batch=8, bf16=False)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "train",
               "fit", "--data", str(archive), "--modality", "ct", "--variant", "covid_cnn_3", "--epochs", "1",
               "--batch", "8", "--no-bf16", "--out", str(two)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (load_file(path / hub_folder.WEIGHTS) for path in (one, two))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=2e-3)
    rows = [
        json.loads((path / "screening.json").read_text())["provenance"]["history"][-1] for path in (one, two)
    ]
    assert rows[0]["validation_loss"] == pytest.approx(rows[1]["validation_loss"], abs=0.02)


def test_a_process_killed_for_real_resumes(archive, tmp_path):
    """SIGKILL in the middle of training; the same settings finish the run."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "train", "fit", "--data", str(archive), "--modality", "ct", "--variant", SMALL,
               "--recipe", "scratch", "--epochs", "3", "--batch", "8", "--out", str(out)]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not list(out.glob("trainer/checkpoint-*/complete.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (out / hub_folder.CONFIG).exists()
    run(archive, out, recipe="scratch", epochs=3, batch=8)
    assert len(json.loads((out / "screening.json").read_text())["provenance"]["history"]) == 3
    shutil.rmtree(out)
