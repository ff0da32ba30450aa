"""One folder, every loader, one answer: with our package, without it, and without any code of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from hub_model import Screener, hub_folder, read_image

WITHOUT_OUR_PACKAGE = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"hub_model", "train", "demo"}:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Absent())
"""

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
found["pipeline, paths"] = [score(classify(file)) for file in files]
found["pipeline, PIL"] = [score(classify(picture)) for picture in pictures]
found["pipeline, list"] = [score(rows) for rows in classify(pictures)]
print("FOUND", json.dumps([found, sorted(name for name in sys.modules if name.partition(".")[0] ==
"hub_model")]))
"""


def answers(before, folder, files, tmp_path, trust=False):
    """Probabilities of COVID by loader, in a fresh process far from the checkout; and our modules it
    imported.
    """
    told = json.dumps({"folder": str(folder), "files": [str(file) for file in files], "trust": trust})
    run = subprocess.run(
        [sys.executable, "-c", before + ANSWER, told],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "custom code" not in run.stdout + run.stderr
    line = next(line for line in run.stdout.splitlines() if line.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Grey pictures of several shapes, as files."""
    random, folder = np.random.default_rng(2), tmp_path_factory.mktemp("pictures")
    for index, size in enumerate(((300, 260), (180, 240), (400, 400))):
        coarse = Image.fromarray(random.integers(0, 256, (14, 14), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
    """The folder of a documented network."""
    torch.manual_seed(4)
    model = timm.create_model("covid_cnn_3")
    return hub_folder.save(
        tmp_path_factory.mktemp("run") / "family",
        model,
        architecture="covid_cnn_3",
        model_args={},
        pretrained_cfg={
            key: model.pretrained_cfg[key] for key in ("input_size", "mean", "std", "fixed_input_size")
        },
        screening={"modality": "ct", "operating_points": {"balanced": {"threshold": 0.5}}},
    )


def ours(folder, files):
    """P(COVID) by Screener's own steps; not `screen`, which refuses pictures that are no chests."""
    screener = Screener.from_pretrained(folder)
    pixels = torch.stack([screener.preprocess(read_image(file)) for file in files])
    with torch.inference_mode():
        return screener.model(pixels).softmax(1)[:, 1].tolist()


def assert_parity(found, expected):
    for loader, probabilities in found.items():
        assert probabilities == pytest.approx(expected, abs=1e-5), loader


def test_a_stock_folder_needs_no_code_of_ours(files, tmp_path):
    """The embedded CT model, where our package cannot be imported and no remote code is allowed."""
    folder = hub_folder.resolve("ct")
    assert not list(folder.glob("*.py"))
    found, modules = answers(WITHOUT_OUR_PACKAGE, folder, files, tmp_path)
    assert modules == []
    assert_parity(found, ours(folder, files))


def test_a_documented_folder_brings_its_code_along(documented, files, tmp_path):
    found, modules = answers(WITHOUT_OUR_PACKAGE, documented, files, tmp_path, trust=True)
    assert modules == []
    assert_parity(found, ours(documented, files))


def test_a_documented_folder_opens_after_import_hub_model_without_a_question(documented, files, tmp_path):
    checkout = str(Path(hub_folder.__file__).parents[1])
    before = f"import sys; sys.path.insert(0, {checkout!r}); import hub_model"
    found, modules = answers(before, documented, files, tmp_path)
    assert "hub_model.covid_cnn" in modules
    assert_parity(found, ours(documented, files))


@pytest.mark.parametrize("modality", hub_folder.MODALITIES)
def test_the_pipeline_answers_real_pictures_as_screener_does(modality, shared_data):
    """What `pipeline` makes of an 8-bit file differs from what `read_image` makes of it by less than 1e-3."""
    from transformers import pipeline

    folder = hub_folder.resolve(modality)
    real = [
        file
        for label in ("COVID", "Non-COVID")
        for file in sorted((shared_data / modality / label).iterdir())[:4]
    ]
    classify = pipeline("image-classification", model=str(folder))
    answered = [next(row["score"] for row in classify(str(file)) if row["label"] == "COVID") for file in real]
    assert answered == pytest.approx(ours(folder, real), abs=1e-3)
