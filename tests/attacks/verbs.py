"""The verbs that are killed: every one that writes.

What a run needs is imported before it, in the process that it is forked from.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from . import uploads, work


class Verb(NamedTuple):
    """A verb on a folder: `run` writes ``out`` below it from what `inputs` has put there.

    `same` says what of ``out`` must be equal whenever it is complete, or None where nothing complete is there; `needs`
    are modules imported before any run. A verb that `resumes` is never run over an old result; one that `changes` what
    is there finds the old result among its inputs; one that is `remote` writes on the Hub alone.
    """

    inputs: Callable[[Path], Any]
    run: Callable[[Path, str], Any]
    same: Callable[[Path], Any]
    needs: tuple[str, ...]
    out: str = "out"
    resumes: bool = False
    changes: bool = False
    remote: bool = False


DATA = ("datasets", "pyarrow.parquet", "scipy.sparse.csgraph", "train.data.prepare", "tests.bad_files")
FIT = (*DATA, "train.fit.fit", "train.fit.lungs", "train.measure.guard", "train.release.web", "onnxruntime")
MEASURE = (*FIT, "train.measure.evaluate", "train.release.card", "train.release.publish", "matplotlib.pyplot")
HUB = (*MEASURE, "tests.made_run", "tests.hub_standin")
SCORE = ("hub_model.scoring", "pyarrow.parquet", "tests.bad_files")
VERBS = {
    "prepare": Verb(work.collection, work.run_prepare, work.digest, DATA, resumes=True),
    "explore": Verb(
        work.prepared, work.run_explore, work.digest, (*DATA, "train.data.explore", "matplotlib.pyplot")
    ),
    "phantom": Verb(lambda folder: None, work.run_phantom, work.digest, ("train.phantom.phantom",)),
    "outline": Verb(work.slices, work.run_outline, work.digest, (*DATA, "train.data.outline")),
    "score to .csv": Verb(work.collection, work.run_score(".csv"), work.rows, SCORE, "out.csv", True),
    "score to .jsonl": Verb(work.collection, work.run_score(".jsonl"), work.rows, SCORE, "out.jsonl", True),
    "score to .parquet": Verb(
        work.collection, work.run_score(".parquet"), work.rows, SCORE, "out.parquet", True
    ),
    "fit": Verb(work.slanted, work.run_fit, work.finished, FIT, "run", resumes=True),
    "fit --overwrite": Verb(work.trained, work.run_overwriting, work.finished, FIT, "run", changes=True),
    "soup": Verb(work.two_trained, work.run_soup, work.digest, (*FIT, "train.fit.soup"), resumes=True),
    "tune": Verb(
        work.striped, work.run_tune, work.studied, (*FIT, "train.fit.tune", "optuna"), "study", changes=True
    ),
    "start": Verb(
        work.edge_networks, work.run_start, work.digest, ("train.fit.starting_points",), "out.safetensors"
    ),
    "lungs": Verb(
        work.outlined, work.run_lungs, work.digest, (*FIT, "train.fit.lungs", "tests.fit.test_lungs")
    ),
    "evaluate": Verb(work.trained, work.run_evaluate, work.digest, MEASURE, "run", changes=True),
    "patients": Verb(
        work.with_patients,
        work.run_patients,
        work.digest,
        (*MEASURE, "train.measure.patients"),
        "run",
        changes=True,
    ),
    "seen": Verb(
        work.trained, work.run_seen, work.digest, (*MEASURE, "train.measure.seen"), "run", changes=True
    ),
    "audit": Verb(
        work.audited, work.run_audit, work.digest, (*MEASURE, "train.measure.audit"), "run", changes=True
    ),
    "faithfulness": Verb(
        work.examined,
        work.run_faithfulness,
        work.digest,
        (*MEASURE, "train.measure.faithfulness"),
        "run",
        changes=True,
    ),
    "compare": Verb(
        work.runs, work.run_compare, work.compared, (*MEASURE, "train.measure.compare", "tests.made_run")
    ),
    "export": Verb(work.exported, work.run_export, work.digest, (*MEASURE, "onnx"), "run", changes=True),
    "card": Verb(
        work.lettered, work.run_card, work.digest, (*MEASURE, "tests.made_run"), "run", changes=True
    ),
    "publish": Verb(
        uploads.lettered_runs, uploads.run_publish, uploads.on_hub("models", "config.json"), HUB, remote=True
    ),
    "publish-data": Verb(
        uploads.two_prepared,
        uploads.run_publish_data,
        uploads.on_hub("datasets", "manifest.parquet"),
        HUB,
        remote=True,
    ),
    "publish-metric": Verb(
        lambda folder: None,
        uploads.run_publish_metric,
        uploads.on_hub("spaces", "{name}.py"),
        (*HUB, "train.release.metric", "evaluate"),
        remote=True,
    ),
    "space": Verb(uploads.on_the_hub, uploads.run_space, work.digest, (*HUB, "train.release.space")),
    "check": Verb(
        work.hospital,
        work.run_check,
        work.digest,
        ("hub_model.check.command", "onnxruntime", "tests.made_run", "pyarrow.parquet"),
    ),
}
