"""How often `detect` tells an X-ray from a CT slice, on real pictures that had no part in training.

    python -m tests.benchmarks.detect ../shared/data ../shared/data2 ../shared/data3

The embedded models' own test splits are asked as the page asks: a picture may go to the right model, to the
wrong one, or be refused by both. Writes docs/measured/detect.json and detect.md; it keeps no picture and no
name.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from rich.progress import track

from hub_model import Screener
from hub_model.check.metrics import family_weights, record
from tests.benchmarks import measured
from tests.served import ROOT
from train.data.dataset import open_data

sys.path.insert(0, str(ROOT / "demo"))  # as Python does for `python demo/app.py`

from app import open_screeners
from judge import defaults, judge

OUTCOMES = {"right": "right", "wrong": "taken for the other kind", "refused": "refused"}


def test_part(data: list[Path], screener: Screener):
    """Return the pictures that the model was tested on, by the split it was trained with; stop at any other split."""
    provenance = screener.screening["provenance"]
    settings = {key: provenance[key] for key in ("seed", "split", "families")}
    parts, origin = open_data([str(place) for place in data], screener.modality, **settings)
    if origin.split_sha256 != provenance["split_sha256"]:
        sys.exit(f"The {screener.modality} model was trained on other data: give those that its card names.")
    return parts["test"]


def outcomes(screeners: dict[str, Screener], part, kind: str) -> tuple[list[str], list[bool]]:
    """For each picture what became of it, and whether both models would have taken it."""
    found, tied = [], []
    for row in track(part, kind, transient=True):
        judgement = judge(screeners, row["image"].convert("L"), "detect", "sensitivity", heat_map=False)
        refused = judgement.decision == "refused"
        right = not refused and judgement.screener.modality == kind
        found.append("refused" if refused else "right" if right else "wrong")
        tied.append(judgement.tied)
    return found, tied


def shares(found: list[str], families: list[str]) -> dict[str, dict]:
    """Share of each outcome with its interval, families resampled."""
    weights, units = family_weights(np.array(families)), len(set(families))
    hits = {name: np.array([one == name for one in found], float) for name in OUTCOMES}
    # as with recall, the open end of an interval at 0 or 1 counts families (Clopper and Pearson)
    return {
        name: {
            **record("recall", float(hit.mean()), weights @ hit / weights.sum(1), len(hit), units),
            "metric": name,
        }
        for name, hit in hits.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="How often the kind of picture is detected rightly.")
    parser.add_argument(
        "data", type=Path, nargs="+", help="the collections that the embedded models were trained on"
    )
    parser.add_argument("--out", type=Path, default=measured.FOLDER)
    chosen = parser.parse_args()
    screeners = defaults(open_screeners())
    result: dict = {"environment": measured.environment("torch", "timm"), "kinds": {}}
    rows, names = [], {"xray": "chest X-rays", "ct": "CT slices"}
    for kind, screener in screeners.items():
        part = test_part(chosen.data, screener)
        found, tied = outcomes(screeners, part, kind)
        told = shares(found, part["family"])
        result["kinds"][kind] = {**told, "counts": Counter(found), "both_took_it": sum(tied)}
        cells = [measured.interval(told[name], 1, percent=True) for name in OUTCOMES]
        rows.append([names[kind], str(len(found)), *cells, str(sum(tied))])
    text = (
        "Detecting the kind of a picture on the real test pictures of both embedded models: the model whose "
        "guard takes the picture answers, and where both do, the one it lies nearer to. Share of the "
        "pictures with 95 % interval, families resampled (`python -m tests.benchmarks.detect DATA`).\n\n"
        + measured.table(["test pictures", "n", *OUTCOMES.values(), "taken by both models"], rows)
    )
    measured.write("detect", result, text, chosen.out)


if __name__ == "__main__":
    main()
