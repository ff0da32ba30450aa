"""A finished run made in a second: an untrained network, a guard fitted on drawn pictures, figures of
invented scores.

Everything that reads a hub folder can be tried on it; nobody should believe its figures.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image, ImageDraw, ImageFilter

from hub_model import evidence, guard, hub_folder
from hub_model.check import calibration, comparing, metrics

ARCHITECTURE, SIDE = "mobilenetv2_035", 96


def pictures(number: int, seed: int = 0) -> Iterator[Image.Image]:
    """Dark ovals on a bright ground, of many sizes: drawn chests."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        width, height = (int(side) for side in rng.integers(90, 420, 2))
        picture = Image.new("L", (width, height), int(rng.integers(90, 230)))
        pen = ImageDraw.Draw(picture)
        for left in (0.1, 0.55):
            box = [left * width, 0.15 * height, (left + 0.35) * width, 0.85 * height]
            pen.ellipse(box, fill=int(rng.integers(0, 90)))
        yield picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 3))))


def patients(number: int, seed: int = 0) -> Iterator[Image.Image]:
    """Drawn chests with shadows, so that no two pass for copies of one picture, as those of `pictures` do."""
    rng = np.random.default_rng(seed)
    for picture in pictures(number, seed):
        shadows = Image.fromarray(rng.integers(0, 13, (9, 9), dtype=np.uint8))
        wide = shadows.resize(picture.size, Image.Resampling.BICUBIC)
        yield Image.fromarray(
            np.clip(np.asarray(picture, int) + np.asarray(wide) - 6, 0, 255).astype(np.uint8)
        )


def make_run(path: Path, modality: str = "ct", seed: int = 0) -> Path:
    """Write a hub folder with everything but a card."""
    torch.manual_seed(seed)
    model = timm.create_model(ARCHITECTURE, num_classes=2, pretrained=False).eval()
    cfg = {"input_size": [3, SIDE, SIDE], "mean": [0.5] * 3, "std": [0.25] * 3}
    config = hub_folder.make_config(ARCHITECTURE, {}, cfg, model.num_features)
    transform = hub_folder.transform_of(config)
    pixels = torch.stack([transform(picture) for picture in pictures(40, seed)])
    with torch.inference_mode():
        logits, _, features = evidence.view(model, pixels)
        log_odds = (logits[:, 1] - logits[:, 0]).double().numpy()
    head, stretch = model.get_classifier(), 2 / float(log_odds.std())
    with (
        torch.no_grad()
    ):  # so that both answers are given: an untrained head says nearly the same of every picture
        head.weight.mul_(stretch)
        head.bias.mul_(stretch).sub_(torch.tensor([-0.5, 0.5]) * stretch * float(np.median(log_odds)))
    tensors = _guard(features)
    limits = {
        name: 1.5 * float(value.max())
        for name, value in guard.Statistics(**{name: tensor.numpy() for name, tensor in tensors.items()})
        .scores(features.numpy())
        .items()
    }
    evaluation, points = _evaluation(modality, seed)
    screening = {
        "modality": modality, "calibrated": True, "temperature": 1.25, "bias": -0.1, "operating_points": points,
        "guard": {"limits": limits},
        "provenance": {
            **{name: evaluation["data"][name] for name in ("data_sha256", "split_sha256", "seed", "split")},
            "recipe": {"name": "scratch", "epochs": 3, "learning_rate": 0.001},
            "settings": {"variant": ARCHITECTURE, "init": None, "pretrained": False, "teacher": []},
            "training": {"seconds": 90.0, "device": "cpu", "cores": 2},
        },
    }  # fmt: skip
    hub_folder.save(
        path,
        model,
        architecture=ARCHITECTURE,
        model_args={},
        pretrained_cfg=cfg,
        screening=screening,
        guard=tensors,
    )
    evaluation["weights_sha256"] = hub_folder.read_json(path / hub_folder.SCREENING)["weights_sha256"]
    evaluation["parameters"] = sum(p.numel() for p in model.parameters())
    hub_folder.write_json(path / hub_folder.EVALUATION, evaluation)
    (path / "plots").mkdir()
    for name in ("roc", "reliability", "confusion", "worst_errors"):
        Image.new("RGB", (40, 30), "white").save(path / "plots" / f"{name}.png")
    return path


def _guard(features: torch.Tensor) -> dict[str, torch.Tensor]:
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-4)
    z = (features - mean) / scale
    _, singular, basis = torch.linalg.svd(z, full_matrices=False)
    generator = torch.Generator().manual_seed(0)
    return {
        "mean": mean, "scale": scale, "basis": basis[:12], "deviation": singular[:12] / len(z) ** 0.5,
        "foreign": torch.randn(z.shape[1], generator=generator) / 200, "bias": torch.tensor(-1.5),
    }  # fmt: skip


def _evaluation(modality: str, seed: int) -> tuple[dict, dict]:
    """evaluation.json and operating points of invented log-odds, in the very form that `evaluate` writes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(120) % 2
    log_odds, families = rng.normal(1.6 * (2 * labels - 1), 1.5), (np.arange(120) // 2 // 2).astype(str)
    points = calibration.operating_points(log_odds, labels, families, seed)
    thresholds = {name: point["threshold"] for name, point in points.items()}
    probabilities = 1 / (1 + np.exp(-log_odds))
    part = metrics.figures(labels, probabilities, families, thresholds, seed)
    chance = comparing.chance_of_calibration(probabilities, part["ece"]["value"], metrics.ECE_BINS, seed)
    for name, point in points.items():
        point["validation"] = {key: part["at"][name][key] for key in ("sensitivity", "specificity")}
    hits = np.r_[np.ones(55), np.zeros(5)]
    share = metrics.mean("refused", hits, np.arange(60))
    counts = {"Non-COVID": 60, "COVID": 60, "families": 30}
    evaluation = {
        "format": 1,
        "modality": modality,
        "architecture": ARCHITECTURE,
        "parameters": 0,
        "test_scored": 1,
        "data": {
            "data_sha256": "d" * 64,
            "split_sha256": "5" * 64,
            "seed": 0,
            "split": "family",
            "counts": {name: counts for name in ("train", "validation", "test")},
        },
        "temperature": 1.25,
        "validation": part,
        "bias": -0.1,
        "test": {**part, "abstained": dict.fromkeys(points, 7), "unanswered": 0, "calibration": chance},
        "test_by_source": {"phantom": part},
        "test_by_finding": {
            "pneumonia": {
                "n": 60,
                "families": 30,
                "at": {name: {"specificity": part["at"][name]["specificity"]} for name in points},
            }
        },
        "guard": {
            "false_refusals": share,
            "false_refusals_by_source": {"phantom": share},
            "unseen_source": {"phantom": share},
            "caught": {"noise": share},
        },
        "environment": {"python": "3.11"},
        "seconds": 1.0,
    }
    return evaluation, points
