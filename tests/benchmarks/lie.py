"""What a random split of an augmented archive promises, and what it is worth: the lie, measured.

    python -m tests.benchmarks.lie ../shared/data

DATA is a folder with a `metadata.csv` (file_name, modality, label, group). Its CT originals are dealt into
two halves, whole patients each. From the first an augmented archive is made in the documented layout
(`tests/augmented.py`, no patient told). It is prepared twice, split at random and split by family, and the
documented `covid_cnn_1` is trained on each by its own recipe and evaluated, through the verbs a user types.
Then both networks, with the operating point their validation chose, meet the second half: new patients, whom
the archive does not hold, augmented in the same way.

Intervals are 95 %; they resample families, for the random split too, and on new patients the groups of DATA.
Writes docs/measured/lie.json and lie.md. A run that was stopped goes on where it was, if --work is given.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

from hub_model.hub_folder import LABELS
from tests.augmented import Original, copies_of, originals, write_archive
from tests.benchmarks.families import joined_groups
from tests.benchmarks.measured import environment, interval, table, write

VARIANT = "covid_cnn_1"
POINT = "balanced"  # operating point, chosen on validation, at which accuracy is told
SPLITS = ("random", "family")


def halves(data: Path) -> tuple[list[Original], list[Original]]:
    """CT originals for the archive, and those of other patients; slices of one patient stay together."""
    found = originals(data, "ct")
    second = [zlib.crc32(group.encode()) % 2 for group in joined_groups(found)]
    return tuple([one for one, half in zip(found, second, strict=True) if half == want] for want in (1, 0))


def verb(*words: object) -> None:
    """Run `python -m train WORDS` in this checkout; its messages pass through."""
    subprocess.run([sys.executable, "-m", "train", *map(str, words)], check=True)


def trained(archive: Path, split: str, work: Path, seed: int, epochs: int | None) -> Path:
    """Prepare, fit and evaluate; returns the run folder."""
    data, run = work / f"data-{split}", work / f"run-{split}"
    if not (run / "evaluation.json").is_file():
        allowed = ["--allow-leak"] if split == "random" else []
        verb("prepare", archive, "--out", data, "--split", split, "--seed", seed, *allowed)
        shorter = ["--epochs", epochs] if epochs else []
        told = ["--data", data, "--modality", "ct", "--variant", VARIANT, "--seed", seed]
        if not (run / "screening.json").is_file():
            verb("fit", *told, "--split", split, "--out", run, *shorter)
        verb("evaluate", run, "--data", data)
    return run


def on_new_patients(run: Path, patients: list[Original], copies: int, seed: int) -> dict:
    """Figures of a run on originals, and copies of them, of patients that it has never met."""
    from scipy.special import expit

    from hub_model import hub_folder
    from hub_model.check.metrics import figures
    from hub_model.images import read_image
    from train.measure.predict import run as predict

    folder = hub_folder.load(run)
    pictures = (
        read_image(content)
        for place, one in enumerate(patients)
        for content, _, _ in copies_of(one, copies, np.random.default_rng([seed + 1, place]))
    )
    margins, _ = predict(folder, pictures)
    labels = np.repeat([LABELS.index(one.label) for one in patients], copies + 1)
    groups = np.repeat(joined_groups(patients), copies + 1)
    points = {name: point["threshold"] for name, point in folder.screening["operating_points"].items()}
    return figures(labels, expit(margins), groups, points, seed)


def measured(data: Path, work: Path, copies: int, seed: int, epochs: int | None) -> dict:
    """Both splits of one archive: what each claims, and how each does on new patients."""
    inside, outside = halves(data)
    archive = work / "archive.zip"
    if not archive.is_file():
        write_archive(inside, work / "archive.part.zip", copies, seed)
        os.replace(work / "archive.part.zip", archive)
    result = {
        "variant": VARIANT,
        "originals": len(inside),
        "copies_per_original": copies,
        "pictures": len(inside) * (copies + 1),
        "new_patients": {"originals": len(outside), "groups": len(set(joined_groups(outside)))},
        "environment": environment("torch", "timm", "transformers", "numpy"),
        "splits": {},
    }
    for split in SPLITS:
        run = trained(archive, split, work, seed, epochs)
        told = json.loads((run / "evaluation.json").read_text("utf-8"))
        leaks = json.loads((work / f"data-{split}" / "leak_report.json").read_text("utf-8"))
        screening = json.loads((run / "screening.json").read_text("utf-8"))
        result["splits"][split] = {
            "leaking": leaks["this_split"]["leaking"],
            "families": leaks["families"],
            "families_crossing": leaks["this_split"]["families_crossing"],
            "contradictory_families_dropped": len(leaks["contradictions"]),
            "counts": told["data"]["counts"],
            "epochs": screening["provenance"]["recipe"]["epochs"],
            "history": screening["provenance"]["history"],
            "test": told["test"],
            "new_patients": on_new_patients(run, outside, copies, seed),
        }
    return result


def text(result: dict) -> str:
    """The paragraph and table for the README."""
    rows = []
    for split, found in result["splits"].items():
        cells = [f"{split} (leaks)" if found["leaking"] else split]
        for figures in (found["test"], found["new_patients"]):
            at = figures["at"][POINT]
            cells += [interval(at["accuracy"]), interval(figures["auroc"]), interval(at["sensitivity"])]
        rows.append(cells)
    one = result["splits"]["random"]
    test = {split: found["test"]["n"] for split, found in result["splits"].items()}
    known = f"{one['families_crossing']:,} of its {one['families']:,} families lie in more than one split"
    promises = "; ".join(
        f"that of the {split} split promises an AUROC of {found['test']['auroc']['value']:.2f} and reaches"
        f" {found['new_patients']['auroc']['value']:.2f} on new patients"
        for split, found in result["splits"].items()
    )
    head = ["split", "accuracy", "AUROC", "sensitivity"]
    head += [f"{name}, new patients" for name in head[1:]]
    return f"""
`python -m tests.benchmarks.lie ../shared/data` trains the documented `{VARIANT}` by its own recipe
({one["epochs"]} epochs) on one augmented CT archive of {result["pictures"]:,} pictures
({result["originals"]:,} originals, each with {result["copies_per_original"]} copies), split at random and split by
family. **The random split leaks**: {known}, so its test split
({test["random"]:,} pictures) tests memory too; that of the family split ({test["family"]:,} pictures) does
not. The last columns are the same two networks on {result["new_patients"]["originals"]:,} originals, with as many
copies each, of patients whom the archive does not hold: what the promise was worth. Accuracy and sensitivity
at the *{POINT}* operating point chosen on validation; 95 % intervals, resampled by family.

{table(head, rows)}

Of the two networks, {promises}. (A first look
scored new patients on their originals alone; as the test splits hold augmented copies, that was not like with like,
and both networks did better there than they had promised.)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with metadata.csv")
    parser.add_argument("--copies", type=int, default=5, help="augmented copies per original")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--work", type=Path, help="folder for archive, data and runs; a temporary one if none"
    )
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    result = measured(args.data, work, args.copies, args.seed, args.epochs)
    write("lie", result, text(result))
    if args.work is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
