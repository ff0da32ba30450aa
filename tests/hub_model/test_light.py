"""Screening needs no torch: the models, the command and the page, in processes where it cannot be imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hub_model import Screener, hub_folder

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "demo" / "examples"
WITHOUT_TORCH = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "timm", "transformers", "onnx", "onnxscript", "safetensors"}:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)
sys.meta_path.insert(0, Absent())
"""  # noqa: E501


def run(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_models_answer_as_they_do_beside_torch():
    found = run(
        "import json, sys\n"
        "from hub_model import AutoScreener, FolderRefused, Screener\n"
        "auto = AutoScreener.from_pretrained()\n"
        "found = auto.screen_many(sys.argv[1:], heat_map=True)\n"
        "print(json.dumps([[one.decision, one.modality, one.probability, one.heat_map.shape] for one in found]))\n"
        "try: auto.screeners[0].model\n"
        "except FolderRefused as refusal: assert \"pip install 'covid-xct[torch]'\" in str(refusal)\n",
        *sorted(EXAMPLES.glob("phantom_*.png")),
    )
    for (decision, modality, probability, shape), file in zip(
        json.loads(found), sorted(EXAMPLES.glob("phantom_*.png")), strict=True
    ):
        beside = Screener.from_pretrained(modality, backend="torch").screen(file, heat_map=True)
        assert (decision, list(beside.heat_map.shape)) == (beside.decision, shape)
        assert probability == pytest.approx(beside.probability, abs=1e-5)


@pytest.mark.slow
def test_the_command(tmp_path):
    out = tmp_path / "o.csv"
    run(
        "sys.argv[0] = 'covid-xct'\nfrom hub_model.__main__ import main\nmain()\n",
        "score",
        EXAMPLES,
        "--out",
        out,
    )
    assert len(out.read_text(encoding="utf-8").splitlines()) == 1 + len(list(EXAMPLES.glob("*.png")))
    assert '"modality": "ct"' in run("from hub_model.__main__ import main\nmain()\n", "info", "ct")


@pytest.mark.slow
def test_the_page():
    run("sys.path.insert(0, 'demo')\nimport app\napp.build(app.open_screeners())\n")


def test_what_needs_torch_says_so(tmp_path):
    path = tmp_path / "old"
    path.mkdir()
    for file in hub_folder.embedded()["xray"].iterdir():
        if file.suffix in {".json", ".safetensors"}:
            (path / file.name).write_bytes(file.read_bytes())
    told = json.loads((path / "screening.json").read_text())
    (path / "screening.json").write_text(json.dumps(told | {"graph_sha256": None}))
    code = (
        "from hub_model import Screener, FolderRefused\n"
        "for backend in ('onnx', 'torch'):\n"
        "    try: Screener.from_pretrained(sys.argv[1], backend=backend)\n"
        "    except FolderRefused as refusal: print(refusal)\n"
    )
    without_graph, without_torch = run(code, path).splitlines()
    assert "has no model.onnx" in without_graph and "covid-xct graph" in without_graph
    assert "pip install 'covid-xct[torch]'" in without_torch


def test_a_platform_without_onnx_runtime_is_told_what_to_do():
    said = run(
        "sys.modules['onnxruntime'] = None\n"
        "from hub_model import Refused, Screener\n"
        "try: Screener.from_pretrained('xray')\n"
        "except Refused as refusal: print(refusal)\n"
    )
    assert "ONNX Runtime cannot be used here" in said and "backend='torch'" in said


def test_a_platform_without_onnx_runtime_screens_with_torch():
    """Lungs included; as the refusal above advises."""
    name, picture = "xray-covid_cnn_3", EXAMPLES / "phantom_xray_1.png"
    code = (
        "import sys\nsys.modules['onnxruntime'] = None\nfrom hub_model import Screener\n"
        "print(Screener.from_pretrained(sys.argv[1], backend='torch').screen(sys.argv[2]).to_json())\n"
    )
    given = [sys.executable, "-c", code, name, picture]
    done = subprocess.run(given, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    here = Screener.from_pretrained(name).screen(picture)
    there = json.loads(done.stdout)
    assert (there["decision"], there["codes"]) == (here.decision, list(here.codes))
    assert there["probability"] == pytest.approx(here.probability, abs=1e-5)
