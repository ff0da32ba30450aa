"""The data behind a run: the same parts that it was trained, calibrated and tested on, or a refusal."""

import hashlib

from hub_model.hub_folder import HubFolder
from hub_model.refused import Refused

from ..data.dataset import load_data


class WrongData(Refused):
    """Data that this run must not be evaluated on."""


def split_of(folder: HubFolder) -> dict:
    """What decided a run's split: ``seed``, ``split`` and ``families``, as `load_data` takes them."""
    provenance = folder.screening.get("provenance", {})
    usual = {"seed": 0, "split": "family", "families": "found"}
    return usual | {key: provenance[key] for key in usual if key in provenance}


def parts_of(folder: HubFolder, data: list[str]):
    """DATA as a `DatasetDict` with the very parts that `folder` was trained on.

    Raises:
        WrongData: It was trained on other data, or on another split.
    """
    parts = load_data(data, modality=folder.modality, **split_of(folder))
    known = folder.screening.get("provenance", {}).get("split_sha256")
    if known not in (None, fingerprint(parts)["split_sha256"]):
        raise WrongData(
            f"{folder.path} was trained on another split of the data, so images it learnt from may be in this test "
            "part. Give the data that fit was given, to the version of covid-xct that fit it where families were found "
            "by look; for new data, use `covid-xct score`, which never touches the calibration."
        )
    return parts


def fingerprint(parts) -> dict[str, str]:
    """SHA-256 of the pictures and of the split: which picture, label and family lies in which part."""
    content, split = hashlib.sha256(), hashlib.sha256()
    for name in sorted(parts):
        columns = parts[name].select_columns(["path", "source", "label", "family"]).to_dict()
        lines = sorted(zip(*(columns[key] for key in ("source", "path", "label", "family")), strict=True))
        split.update(repr((name, lines)).encode())
    for name in sorted(parts):
        for row in parts[name].select_columns(["image"]).cast_column("image", _raw_image()):
            content.update(hashlib.sha256(row["image"]["bytes"] or b"").digest())
    return {"data_sha256": content.hexdigest(), "split_sha256": split.hexdigest()}


def _raw_image():
    import datasets

    return datasets.Image(decode=False)
