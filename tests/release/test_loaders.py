"""One folder, every loader, one answer: with our package, without it, and without any code of ours."""

import numpy as np
import pytest
import torch
from PIL import Image

from hub_model import Screener, hub_folder, lungs, read_image
from tests.conftest import ROOT
from tests.loaders import WITH_OUR_PACKAGE, WITHOUT_OUR_PACKAGE, answers, ours
from train.fit import backbones
from train.fit.batches import Batches, read_images


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Grey pictures of several shapes, as files."""
    random, folder = np.random.default_rng(2), tmp_path_factory.mktemp("pictures")
    for index, size in enumerate(((300, 260), (180, 240), (400, 400))):
        coarse = Image.fromarray(random.integers(0, 256, (14, 14), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def documented():
    """The folder of the documented CT network that ships with the package."""
    return hub_folder.resolve("ct-covid_cnn_3")


def chests(modality):
    """Synthetic pictures in which an embedded model finds lungs."""
    return sorted((ROOT / "demo" / "examples").glob(f"phantom_{modality}_*.png"))


def assert_parity(found, expected):
    for loader, probabilities in found.items():
        assert probabilities == pytest.approx(expected, abs=1e-5), loader


def test_a_stock_folder_needs_no_code_of_ours(tmp_path):
    """The embedded CT model, where our package cannot be imported and no remote code is allowed."""
    folder, files = hub_folder.resolve("ct"), chests("ct")
    assert not list(folder.glob("*.py"))
    found, modules = answers(WITHOUT_OUR_PACKAGE, folder, files, tmp_path)
    assert modules == []
    assert_parity(found, ours(folder, files))


def test_a_documented_folder_brings_its_code_along(documented, tmp_path):
    files = chests("ct")
    found, modules = answers(WITHOUT_OUR_PACKAGE, documented, files, tmp_path, trust=True)
    assert modules == []
    assert_parity(found, ours(documented, files))


def test_a_documented_folder_opens_after_import_hub_model_without_a_question(documented, tmp_path):
    files = chests("ct")
    found, modules = answers(WITH_OUR_PACKAGE, documented, files, tmp_path)
    assert "hub_model.covid_cnn" in modules
    assert_parity(found, ours(documented, files))


class Part(list):
    """As much of a `datasets.Dataset` as training reads."""

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


@pytest.mark.parametrize("folder", [*hub_folder.embedded(), "imagenet"])
def test_screener_feeds_the_network_what_training_fed_it(folder, files, tmp_path):
    """To the last bit, from file to tensor, whatever mean and deviation a network was given."""
    if folder == "imagenet":
        built = backbones.build("mobilenetv3_small_050", input_size=96)
        assert len(set(built.pretrained_cfg["mean"])) == 3
        screening = {"modality": "ct", "operating_points": {"balanced": {"threshold": 0.5}}}
        folder = hub_folder.save(
            tmp_path / "f", built.model, architecture=built.architecture, model_args={},
            pretrained_cfg=built.pretrained_cfg, screening=screening,
        )  # fmt: skip
    screener = Screener.from_pretrained(folder)
    files = chests(screener.modality) if folder in hub_folder.embedded() else files
    cfg = screener.config["pretrained_cfg"]
    rows = Part(
        {"image": Image.open(file), "label": 1, "source": "s", "path": file.name, "family": file.name}
        for file in files
    )
    images = read_images(rows, hub_folder.load(folder).transform, cfg, "train")
    fed = Batches(cfg, screener.modality)([images[index] for index in range(len(images))])
    screened = torch.stack([torch.from_numpy(screener.preprocess(read_image(file))) for file in files])
    assert torch.equal(fed["pixel_values"], screened)


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
    classify, opened = pipeline("image-classification", model=str(folder)), hub_folder.load(modality)
    given = [str(file) for file in real]
    if opened.view == lungs.LUNGS:  # as the card says: cut to the lungs before a stock loader
        given = [opened.finder.view(read_image(file)) for file in real]
    answered = [next(row["score"] for row in classify(one) if row["label"] == "COVID") for one in given]
    assert answered == pytest.approx(ours(folder, real), abs=1e-3)
