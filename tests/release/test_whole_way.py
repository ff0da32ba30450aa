"""From prepared data to the card: what the card says of the data is what the data say, whatever the flags."""

import json

import numpy as np
import pytest
from PIL import Image

from hub_model.refused import Refused
from train.data.prepare import prepare
from train.fit.fit import fit
from train.fit.recipes import RECIPES, Recipe
from train.measure.evaluate import evaluate
from train.release import card as cards

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Slices of sixty named patients; brightness of a half gives the label away."""
    root = tmp_path_factory.mktemp("archive") / "phantom"
    rng = np.random.default_rng(0)
    root.mkdir()
    lines = ["file_name,modality,label,source,patient_id"]
    for index in range(120):
        covid = index // 2 % 2
        grey = rng.normal(90, 40, (64, 64))
        grey[:, 32 * covid : 32 * covid + 32] += 60
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(root / f"{index}.png")
        lines.append(f"{index}.png,ct,{('Non-COVID', 'COVID')[covid]},phantom,p{index // 2}")
    (root / "metadata.csv").write_text("\n".join(lines))
    return root


def test_the_card_names_the_seed_and_the_families_of_the_prepared_data(archive, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "tiny", Recipe(batch=8, epochs=1, learning_rate=3e-3, input_size=32))
    monkeypatch.setattr("train.measure.guard.TEACH_A_KIND", 12)
    monkeypatch.setattr("train.measure.guard.MEASURE_A_KIND", 6)
    data = prepare([str(archive)], tmp_path / "data", families="known", seed=7)
    given = {
        "data": [str(data)],
        "modality": "ct",
        "variant": "mobilenetv3_small_050",
        "recipe": "tiny",
        "seed": 3,
    }
    for flags, said in (({"split_seed": 0}, "seed 7"), ({"families": "found"}, "families 'known'")):
        with pytest.raises(Refused, match=said):
            fit(**given, **flags, out=tmp_path / "run")
    run = fit(**given, out=tmp_path / "run")
    provenance = json.loads((run / "screening.json").read_text())["provenance"]
    assert (provenance["seed"], provenance["families"], provenance["split"]) == (7, "known", "family")
    assert provenance["settings"]["seed"] == 3 and provenance["settings"]["split_seed"] is None
    evaluate(run, data=[str(data)])
    text = cards.card(run).read_text("utf-8")
    assert "(SHA-256, beginnings), seed 7, families known." in text and "seed 0" not in text
    assert "Copies that nobody listed would not have been found" in text
    assert "copies of one another (rotated" not in text, "nobody looked for copies"
