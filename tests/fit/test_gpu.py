"""Training and screening on a GPU; passed over where torch has none."""

import copy

import numpy as np
import pytest
import timm
import torch

from hub_model import Screener, hub_folder
from tests.fit.test_fit import SMALL, archive, fit  # noqa: F401 - archive is a fixture
from tests.made_run import make_run, pictures
from train.fit import experts, speed
from train.fit.batches import Batches, read_images
from train.fit.probe import features_of, probe_head
from train.fit.recipes import RECIPES, Recipe
from train.fit.steady import features_of_looks, steady_head

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]
CFG = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
TINY = {
    "average": Recipe(batch=8, epochs=2, learning_rate=3e-3, input_size=32, average=0.9, augment="strong",
                      weight_decay=0.01),
    "probe": Recipe(batch=8, epochs=1, learning_rate=1e-3, input_size=32, probe=0.01, freeze_stages=2, freeze_norms=9,
                    stop_patience=3),
    "steady": Recipe(batch=8, epochs=1, learning_rate=1e-4, freeze_norms=99, input_size=32, copies=2, steady=1.0,
                     source_penalty=1.0, consistent=True, balance="source"),
    "penalty": Recipe(batch=8, epochs=1, learning_rate=1e-3, input_size=32, l2=0.01, l2_kernels=("classifier.weight",)),
}  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_a_run_on_the_gpu_ends_in_a_folder_that_a_cpu_opens(name, archive, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(RECIPES, "tiny", TINY[name])
    start = timm.create_model(SMALL, num_classes=2)
    hub_folder.save(tmp_path / "start", start, architecture=SMALL, model_args={}, pretrained_cfg=CFG,
                    screening={"modality": "ct", "calibrated": False, "temperature": 1.0,
                               "operating_points": {"all": {"threshold": 0.5, "target": "none"}}})  # fmt: skip
    weights = tmp_path / "start" / "model.safetensors"
    out = fit(
        data=[str(archive)], modality="ct", variant=SMALL, recipe="tiny", init=weights, out=tmp_path / "run"
    )
    folder = hub_folder.open_folder(out)
    assert "cpu" not in folder.screening["provenance"]["training"]["device"].lower()
    finding = Screener.from_pretrained(out, backend="torch").screen(
        next((archive / "CT" / "COVID").iterdir())
    )
    assert finding.decision is not None


def test_frozen_features_are_those_of_the_cpu(archive):  # noqa: F811
    from train.data.dataset import load_data

    rows = load_data(str(archive), modality="ct", families="known")["train"]
    config = hub_folder.make_config(SMALL, {}, CFG, 1024)
    images = read_images(rows, hub_folder.transform_of(config), config["pretrained_cfg"], "train", 2)
    cpu = timm.create_model(SMALL, num_classes=2).eval()
    gpu = copy.deepcopy(cpu).to(speed.processes().device)
    everything, plain = torch.arange(len(images)), Batches(CFG, "ct")
    expected = features_of(cpu, images, everything, plain)
    assert torch.allclose(expected, features_of(gpu, images, everything, plain), atol=0.02)
    looks = features_of_looks(cpu, images, CFG).astype(np.float32)
    assert np.abs(looks - features_of_looks(gpu, images, CFG).astype(np.float32)).max() < 0.02
    for network in (cpu, gpu):
        probe_head(network, images, Batches(CFG, "ct", TINY["probe"]), torch.ones(len(images)))
        steady_head(network, images, CFG, TINY["steady"], seed=0)
    assert speed.device_of(gpu).type == "cuda" and images.targets.device.type == "cpu"


def test_an_expert_is_asked_on_the_gpu(monkeypatch):
    class Expert(torch.nn.Module):
        def forward(self, grey):
            assert grey.device.type == "cuda"
            return grey.mean((2, 3))

    pixels = torch.randint(0, 256, (20, 1, 32, 32), dtype=torch.uint8)
    told = experts.ask(Expert(), pixels, bf16=False)
    assert np.allclose(told, pixels.float().div(255).mean((2, 3)).numpy(), atol=1e-3)


def test_the_screener_says_the_same_on_the_gpu(tmp_path):
    folder = make_run(tmp_path / "run", "ct")
    cpu, gpu = (
        Screener.from_pretrained(folder, backend="torch", device=device) for device in ("cpu", "cuda")
    )
    for picture in pictures(8, seed=5):
        one, other = cpu.screen(picture), gpu.screen(picture)
        assert one.decision == other.decision and one.probability == pytest.approx(
            other.probability, abs=1e-3
        )
