"""The data behind a run: the same splits that it was trained, calibrated and tested on, or a refusal."""

from pathlib import Path
from typing import TYPE_CHECKING

from hub_model.hub_folder import HubFolder
from hub_model.refused import Refused

from ..data.dataset import Origin, is_prepared, open_data

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def data_of(folder: HubFolder, data: list[str]) -> tuple["DatasetDict", Origin]:
    """Open DATA with the very splits that a run was trained on, and say where they come from.

    Prepared data say themselves how they were split; other data are split again as the run's provenance says. What
    the run was kept from (`fit --without-source`) is left out of train and validation here too: a trivial classifier
    or a guard that knew more sources than the network would be no fair comparison.

    Raises:
        DataRefused: see `open_data`.
        Refused: the run was trained on other data, or on another split.
    """
    parts, origin = _opened(folder, data)
    left_out = _left_out(folder)
    for name in ("train", "validation"):  # of the test split, sources that had no part in training stay
        if left_out and name in parts:
            parts[name] = parts[name].filter(lambda source: source not in left_out, input_columns="source")
    return parts, origin


def parts_of(folder: HubFolder, data: list[str]) -> "DatasetDict":
    """Open DATA as `data_of` does, without saying where it comes from."""
    return data_of(folder, data)[0]


def kept_out(folder: HubFolder, data: list[str]) -> dict[str, "Dataset"]:
    """Open the sources that a run was kept from (`fit --without-source`), each whole, by name.

    Families that training or validation know from other sources are left out.

    Raises:
        see `data_of`.
    """
    import datasets

    left_out, parts = _left_out(folder), _opened(folder, data)[0]
    everything = datasets.concatenate_datasets(list(parts.values()))
    known = {
        family
        for name in ("train", "validation")
        for family, source in zip(parts[name]["family"], parts[name]["source"], strict=True)
        if source not in left_out
    }
    own = {
        name: everything.filter(
            lambda source, family, name=name: source == name and family not in known,
            input_columns=["source", "family"],
        )
        for name in left_out
    }
    return {name: pictures for name, pictures in own.items() if len(pictures)}


def _left_out(folder: HubFolder) -> list[str]:
    return folder.screening.get("provenance", {}).get("without_source") or []


def _opened(folder: HubFolder, data: list[str]) -> tuple["DatasetDict", Origin]:
    provenance = folder.screening.get("provenance", {})
    asked = {key: provenance[key] for key in ("seed", "split", "families") if key in provenance}
    prepared = len(data) == 1 and is_prepared(Path(data[0]))
    parts, origin = open_data(data, folder.modality, **({} if prepared else asked))
    if provenance.get("split_sha256") not in (None, origin.split_sha256):
        raise Refused(
            f"{folder.path} was trained on another split of the data, so images it learnt from may be in this test "
            "split. Give the data that fit was given, to the version of covid-xct that fit it where families were "
            "found by look; for new data, use `covid-xct score`, which never touches the calibration."
        )
    return parts, origin
