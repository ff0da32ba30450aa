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
SLOW = (
    "tests/data/test_dataset.py",
    "tests/data/test_explore.py",
    "tests/data/test_families.py",
    "tests/demo/test_browser.py",
    "tests/demo/test_demo.py",
    "tests/fit/test_backbones.py",
    "tests/fit/test_fit",
    "tests/fit/test_lungs.py",
    "tests/fit/test_soup.py",
    "tests/fit/test_steady.py",
    "tests/fit/test_tune.py",
    "tests/hub_model/test_contract.py",
    "tests/hub_model/test_covid_cnn.py",
    "tests/hub_model/test_heatmap.py",
    "tests/hub_model/test_hub_folder.py",
    "tests/hub_model/test_light.py",
    "tests/hub_model/test_lungs.py",
    "tests/hub_model/test_scoring",
    "tests/hub_model/test_screener.py",
    "tests/measure/test_evaluation.py",
    "tests/measure/test_faithfulness.py",
    "tests/measure/test_provenance.py",
    "tests/phantom/",
    "tests/release/",
    "tests/test_house.py::test_pages_are_as_measured",
)
"""What trains or exports a network, starts a server or a browser, or prepares data; `make test-fast` leaves it out."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import what is slow as a whole where it is left out: imports are a third of the fast tests' time."""
    name = collection_path.relative_to(ROOT).as_posix() if collection_path.is_relative_to(ROOT) else ""
    return True if config.option.markexpr == "not slow" and name.startswith(SLOW) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow as a whole; a single slow test elsewhere carries the mark itself."""
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)


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
