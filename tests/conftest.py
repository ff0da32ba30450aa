"""Fixtures shared by the rooms' tests. No test reaches the network: a Hub call fails at once."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, hence before everything else
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest runs one process a core

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real labelled chest pictures with metadata.csv; they are not part of the repository."""
    if not (SHARED / "data" / "metadata.csv").is_file():
        pytest.skip("needs the real images in ../shared/data")
    return SHARED / "data"


@pytest.fixture(scope="session")
def shared_backbones() -> Path:
    """ImageNet weights; they are not part of the repository."""
    if not (SHARED / "backbones").is_dir():
        pytest.skip("needs the ImageNet weights in ../shared/backbones")
    return SHARED / "backbones"
