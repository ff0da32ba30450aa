"""What each stock loader says of pictures, asked in a process of its own; and networks that answer differently
to different pictures, to ask about."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from hub_model import Screener, evidence, hub_folder, read_image

NODE = Path(__file__).parent / "node"
WITHOUT_OUR_PACKAGE = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"hub_model", "train", "demo"}:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Absent())
"""
OURS = str(Path(hub_folder.__file__).parents[1])
WITH_OUR_PACKAGE = f"import sys; sys.path.insert(0, {OURS!r}); import hub_model.covid_cnn"

ANSWER = """
import json, sys
import timm, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from transformers.utils import logging
logging.disable_progress_bar()
told = json.loads(sys.argv[1])
folder, files, trust = told["folder"], told["files"], {"trust_remote_code": True} if told["trust"] else {}
pictures = [Image.open(file) for file in files]
score = lambda rows: next(row["score"] for row in rows if row["label"] == "COVID")
found = {}
model = AutoModelForImageClassification.from_pretrained(folder, **trust).eval()
processor = AutoImageProcessor.from_pretrained(folder)
pixels = processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt")
with torch.no_grad():
    found["auto classes"] = model(**pixels).logits.softmax(1)[:, 1].tolist()
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    found["timm"] = network(pixels["pixel_values"]).softmax(1)[:, 1].tolist()
classify = pipeline("image-classification", model=folder, **trust)
found["pipeline, path"] = [score(classify(file)) for file in files]
found["pipeline, PIL"] = [score(classify(picture)) for picture in pictures]
found["pipeline, list"] = [score(rows) for rows in classify(pictures)]
print("FOUND", json.dumps([found, sorted(name for name in sys.modules if name.partition(".")[0] ==
"hub_model")]))
"""


def answers(before: str, folder: Path, files: list[Path], scratch: Path, trust: bool = False):
    """Probabilities of COVID by loader, in a fresh process far from the checkout; and our modules it imported."""
    told = json.dumps({"folder": str(folder), "files": [str(file) for file in files], "trust": trust})
    run = subprocess.run(
        [sys.executable, "-c", before + ANSWER, told],
        cwd=scratch,
        env={**os.environ, "HF_HOME": str(scratch / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "custom code" not in run.stdout + run.stderr
    line = next(line for line in run.stdout.splitlines() if line.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))


def ours(folder: Path, files: list[Path]) -> list[float]:
    """P(COVID) by Screener's own steps; not `screen`, which refuses pictures that are no chests."""
    screener = Screener.from_pretrained(folder)
    with torch.inference_mode():
        return [
            float(
                screener.model(torch.from_numpy(screener.preprocess(read_image(file)))[None]).softmax(1)[0, 1]
            )
            for file in files
        ]


def node_is_ready() -> bool:
    return shutil.which("node") is not None and (NODE / "node_modules").is_dir()


def transformers_js(web: Path, dtype: str, files: list[Path]) -> list[float]:
    """P(COVID) by transformers.js in Node, of the dtype "fp32"."""
    command = ["node", NODE / "classify.mjs", web, dtype, *files]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = json.loads(run.stdout.splitlines()[-1])
    return [next(row["score"] for row in picture if row["label"] == "COVID") for picture in rows]


def with_some_training(model: nn.Module, pixels: torch.Tensor) -> nn.Module:
    """As after training: norms know their statistics, and the answers differ between pictures."""
    torch.manual_seed(1)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(pixels)
        for name, scale in model.named_parameters():
            if name.endswith(("gamma", "weight")) and scale.ndim == 1 and scale.abs().max() < 1e-3:
                scale.fill_(0.5)  # layer scale and last norms start near 0, where a block does nothing yet
        model(pixels)
        head, odds = model.get_classifier(), evidence.log_odds(model.eval()(pixels))
        head.weight.mul_(0.4 / odds.std())
        middle = evidence.log_odds(model(pixels)).mean()
        head.bias.sub_(middle * (torch.tensor([-0.5, 0.5]) if len(head.bias) == 2 else 1))
    for norm in norms:
        norm.momentum = 0.1
    return model
