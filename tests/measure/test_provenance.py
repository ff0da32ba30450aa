"""The data behind a run: what it was kept from in training stays out of what it is compared with."""

from types import SimpleNamespace

import datasets
import pytest

from train.data.dataset import open_data
from train.measure.provenance import data_of, kept_out
from train.phantom.phantom import phantom


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two collections of phantoms, by their folders' names."""
    places = [tmp_path_factory.mktemp("data") / name for name in ("clinic", "elsewhere")]
    for seed, place in enumerate(places):
        phantom(out=place, n=48, seed=seed)
    return [f"{place.name}={place}" for place in places]


@pytest.mark.slow
def test_sources_that_training_left_out_are_out_of_train_and_validation(drawn):
    whole, origin = open_data(drawn, "ct", families="known")
    left_out = sorted(set(whole["train"]["source"]))[0]
    provenance = {"families": "known", "without_source": [left_out], "split_sha256": origin.split_sha256}
    folder = SimpleNamespace(path="run", modality="ct", screening={"provenance": provenance})
    parts, found = data_of(folder, drawn)
    for name in ("train", "validation"):
        assert left_out not in parts[name]["source"]
        kept = [source for source in whole[name]["source"] if source != left_out]
        assert list(parts[name]["source"]) == kept
    assert list(parts["test"]["source"]) == list(whole["test"]["source"])
    assert found.split_sha256 == origin.split_sha256


def test_a_source_that_training_was_kept_from_is_whole_but_for_families_it_knows(monkeypatch):
    """Of each split come all pictures of the source; one whose family training has from elsewhere is no stranger."""
    rows = {
        "train": [("home", "a"), ("away", "a"), ("away", "b")],
        "validation": [("home", "c"), ("away", "d")],
        "test": [("home", "e"), ("away", "e"), ("away", "f")],
    }
    parts = datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                dict(zip(("source", "family"), zip(*told, strict=True), strict=True))
            )
            for name, told in rows.items()
        }
    )
    monkeypatch.setattr(
        "train.measure.provenance.open_data", lambda *_, **__: (parts, SimpleNamespace(split_sha256="x"))
    )
    screening = {"provenance": {"without_source": ["away", "nobody"], "split_sha256": "x"}}
    folder = SimpleNamespace(path="run", modality="ct", screening=screening)
    found = kept_out(folder, ["data"])
    assert list(found) == ["away"] and list(found["away"]["family"]) == ["b", "d", "e", "f"]
    assert kept_out(SimpleNamespace(path="run", modality="ct", screening={}), ["data"]) == {}
