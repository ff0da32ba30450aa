"""Put a model or a data set on the Hub: what may go out is decided here, how it goes there in `upload`.

Files go by allowlist and not by what happens to lie in the folder: no pickle, no optimizer state, no file
that names a folder of this machine, no picture of a patient that may not be passed on.
"""

from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from hub_model import hub_folder, lungs
from hub_model.backends import runtime
from hub_model.hub_folder import COVID, LABELS
from hub_model.refused import Refused

from . import card as cards
from . import origins, web
from .hub import Content, Target, check_traces, collected, show
from .metadata import SUBJECTS

MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "model.onnx",
    "screening.json",
    "guard.safetensors",
    "seen.safetensors",
    *lungs.FILES,
    "evaluation.json",
    "README.md",
    "collections.json",
    "covid_cnn.py",
    "modeling_covid_cnn.py",
    "plots/*.png",
    ".eval_results/*.yaml",
    "web/*.json",
    "web/onnx/*.onnx",
)
EARLIER_FILES = ("onnx/*.onnx", "onnx/export.json")
"""What earlier versions uploaded as well; it goes with the next upload."""
DATA_FILES = ("README.md", "split.json", "manifest.parquet", "leak_report.json", "data/*.parquet")
SAME = 1e-4
"""Largest difference of probabilities between loaders on one picture."""
PATIENTS = "plots/worst_errors.png"
"""The one plot that shows pictures of the data."""


def publish(
    run: Annotated[Path, typer.Argument(help="hub folder with its card")],
    repo_id: Annotated[str, typer.Option(help="where to, ORG/NAME")],
    private: Annotated[
        bool, typer.Option("--private/--public", help="who may see a repository made new")
    ] = True,
    revision: Annotated[str, typer.Option(help="branch; made where absent")] = "main",
    tag: Annotated[str | None, typer.Option(help="name for this state, to pin it by")] = None,
    cleared: Annotated[bool, typer.Option(help="I have the right to pass on the pictures in plots/")] = False,
    replace: Annotated[bool, typer.Option(help="delete what else the repository holds")] = False,
    dry_run: Annotated[bool, typer.Option(help="check and list, upload nothing")] = False,
) -> str | None:
    """Upload RUN as one commit, once its card, hashes, labels and every loader agree.

    Returns:
        Address of the commit; None after a dry run.

    Raises:
        FolderRefused, Refused: RUN cannot be opened, or its card cannot be written.
        Refused: the card is out of date, loaders disagree, a file names this machine or shows patients
            to whom it may not, or the repository is not ours to write or holds something else.
        Failed: the network gave up.
    """
    files = checked(Path(run), repo_id, private or cleared)
    if dry_run:
        return show(files, repo_id)
    modality = hub_folder.read_json(Path(run) / hub_folder.SCREENING)["modality"]
    title = f"covid-xct {modality}: {hub_folder.sha256(Path(run) / hub_folder.WEIGHTS)[:12]}"
    target = Target(
        repo_id, "model", private=private, revision=revision, tag=tag, owns=MODEL_FILES + EARLIER_FILES,
        marks=(hub_folder.SCREENING,), replace=replace, subject=SUBJECTS[modality],
    )  # fmt: skip
    return target.upload(files, title)


def publish_data(
    data: Annotated[Path, typer.Argument(help="folder written by prepare")],
    repo_id: Annotated[str, typer.Option(help="where to, ORG/NAME")],
    private: Annotated[
        bool, typer.Option("--private/--public", help="who may see a repository made new")
    ] = True,
    cleared: Annotated[bool, typer.Option(help="I have the right to pass on every picture")] = False,
    keep_names: Annotated[
        bool, typer.Option("--keep-names", help="also data prepared with the names of files")
    ] = False,
    revision: Annotated[str, typer.Option(help="branch; made where absent")] = "main",
    tag: Annotated[str | None, typer.Option(help="name for this state, to pin it by")] = None,
    replace: Annotated[bool, typer.Option(help="delete what else the repository holds")] = False,
    dry_run: Annotated[bool, typer.Option(help="check and list, upload nothing")] = False,
) -> str | None:
    """Upload a prepared data set with its card as one commit; `datasets.load_dataset(REPO)` opens it, streaming too.

    Raises:
        Refused: no prepared folder, names of files that may name patients, a public place for pictures that may not
            be passed on, or see `publish`.
        Failed: the network gave up.
    """
    files = checked_data(Path(data), repo_id, private or cleared, keep_names)
    if dry_run:
        return show(files, repo_id)
    target = Target(
        repo_id, "dataset", private=private, revision=revision, tag=tag, owns=DATA_FILES,
        marks=("manifest.parquet",), replace=replace,
    )  # fmt: skip
    return target.upload(files, "covid-xct data set")


# --- what may go out ------------------------------------------------------------------------------


def checked(run: Path, repo_id: str, may_pass_on: bool) -> dict[str, Content]:
    """Check a run and collect the files for the Hub, by their path there; the card gets the repository's name.

    Raises:
        see `publish`.
    """
    hub_folder.open_folder(
        run
    )  # labels, shapes, finite weights, and that they are those of the operating points
    for name, text in cards.render(run).items():
        there = run / name
        if not there.is_file() or there.read_text("utf-8") != text:
            raise Refused(
                f"{there} does not say what {hub_folder.EVALUATION} and {hub_folder.SCREENING} say. Write "
                f"it again with `python -m train card {run}`; prose is changed in {cards.TEMPLATE.name}, "
                "not in the rendered file."
            )
    check_pictures(run, may_pass_on)
    check_export(run)
    check_loaders(run)
    files: dict[str, Content] = collected(run, MODEL_FILES)
    files |= {name: text.encode() for name, text in cards.render(run, repo_id).items()}
    check_traces(files, run.parent, cards.TEMPLATE.parent)
    return files


def check_pictures(run: Path, may_pass_on: bool) -> None:
    """Refuse to show patients' pictures to everybody where their collections do not allow it."""
    sources = cards.collections_of(run, hub_folder.read_json(run / hub_folder.EVALUATION))
    closed = [name for name, source in sources.items() if not source.may_pass_on]
    if closed and not may_pass_on and (run / PATIENTS).is_file():
        raise Refused(
            f"{run / PATIENTS} shows pictures of {', '.join(closed)}, which may not be passed on. Publish "
            f"--private, or delete it and say `python -m train card {run}`, or say --cleared if you have the "
            "right."
        )


def check_export(run: Path) -> None:
    """Refuse a folder for transformers.js that was made of other weights than lie in the run."""
    report = run / web.FOLDER / web.REPORT
    weights = hub_folder.sha256(run / hub_folder.WEIGHTS)
    if report.is_file() and hub_folder.read_json(report).get("weights_sha256") != weights:
        raise Refused(
            f"{run}: its folder {web.FOLDER} is of other weights. Say `python -m train export {run}` again."
        )


def _screener(run: Path) -> Callable[[Image.Image], float]:
    import torch

    folder = hub_folder.open_folder(run)
    transform = hub_folder.transform_of(folder.config)  # every loader is shown the same picture, cut by none

    def probability(image: Image.Image) -> float:
        with torch.inference_mode():
            return float(folder.model(transform(image)[None]).softmax(1)[0, COVID])

    return probability


def _timm(run: Path) -> Callable[[Image.Image], float]:
    import timm
    import torch
    from timm.data import create_transform, resolve_model_data_config

    model = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)

    def probability(image: Image.Image) -> float:
        with torch.inference_mode():
            return float(model(transform(image.convert("RGB"))[None]).softmax(1)[0, COVID])

    return probability


def _transformers(run: Path) -> Callable[[Image.Image], float]:
    """Open with AutoModel and AutoImageProcessor, by way of the pipeline that uses both."""
    from transformers import pipeline

    classify = pipeline("image-classification", model=str(run), trust_remote_code=False)
    return lambda image: {found["label"]: found["score"] for found in classify(image)}[LABELS[COVID]]


def _onnxruntime(run: Path) -> Callable[[Image.Image], float]:
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns of constants that it could not fold ahead
    session = onnxruntime.InferenceSession(
        run / hub_folder.GRAPH, options, providers=["CPUExecutionProvider"]
    )
    transform = hub_folder.transform_of(hub_folder.read_json(run / hub_folder.CONFIG))
    name = session.get_inputs()[0].name

    def probability(image: Image.Image) -> float:
        logits = session.run(["logits"], {name: transform(image)[None].numpy()})[0][0]
        return float(1 / (1 + np.exp(logits[1 - COVID] - logits[COVID])))

    return probability


LOADERS = {"Screener": _screener, "timm": _timm, "transformers": _transformers, "ONNX Runtime": _onnxruntime}
"""By whom a published folder can be opened: loader -> folder -> picture -> P(COVID)."""


def check_loaders(run: Path) -> None:
    """Open the folder with every loader and compare their answers on drawn pictures.

    Raises:
        Refused: one does not open it, or answers otherwise.
    """
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 256, (9, 7)), rng.integers(0, 256, (40, 60)))
    pictures = [Image.fromarray(n.astype(np.uint8)).resize((310, 290)) for n in noise]
    answers: dict[str, list[float]] = {}
    for name, opened in LOADERS.items():
        if name == "ONNX Runtime" and not (run / hub_folder.GRAPH).is_file():
            continue
        try:
            answers[name] = [opened(run)(picture) for picture in pictures]
        except Exception as error:  # whatever a loader raises, its users would meet it
            raise Refused(
                f"{name} does not open {run}: {type(error).__name__}: {error} Nothing was uploaded."
            ) from error
        difference = float(np.abs(np.subtract(answers[name], answers["Screener"])).max())
        if not difference <= SAME:
            raise Refused(
                f"{name} opens {run} but gives other probabilities than this package, {difference:.2g} "
                f"apart (allowed {SAME:g}). Export or save it again; nothing was uploaded."
            )


def checked_data(
    folder: Path, repo_id: str, may_pass_on: bool, keep_names: bool = False
) -> dict[str, Content]:
    """Collect the files of a prepared data set, its card with provenance and licences.

    Raises:
        Refused: see `publish_data`.
    """
    from ..data.dataset import is_prepared, verify
    from ..data.manifest import read_manifest
    from ..data.prepared import HASHED

    if not is_prepared(folder):
        raise Refused(f"{folder} was not written by `python -m train prepare`. Prepare the pictures first.")
    told = verify(folder)
    if told.get("names") != HASHED and not keep_names:
        raise Refused(
            f"{folder}: its manifest and its column `path` hold the names of files, which may name patients. Prepare "
            "the pictures again without --keep-names, or say --keep-names here if none of them does."
        )
    entries = read_manifest(folder / "manifest.parquet")
    placed = [entry for entry in entries if entry.split]
    astray = [entry.path for entry in entries if _leads_outside(entry.path)]
    if astray:
        raise Refused(
            f"{folder}: the manifest names {len(astray)} files by their place on this machine. Prepare it "
            "again."
        )
    closed = [
        name for name in sorted({entry.source for entry in placed}) if not _collection(name).may_pass_on
    ]
    if closed and not may_pass_on:
        raise Refused(
            f"The pictures of {', '.join(closed)} may not be passed on, or nobody has said that they may "
            f"(licence: {'; '.join(_collection(name).licence for name in closed)}). Publish --private, "
            "leave these sources out, or say --cleared if you have the right."
        )
    files = collected(folder, DATA_FILES)
    files["README.md"] = _data_card((folder / "README.md").read_text("utf-8"), repo_id, placed, told).encode()
    check_traces(files, folder.parent)
    return files


def _leads_outside(path: str) -> bool:
    absolute = PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()
    return absolute or ".." in PurePosixPath(path).parts


def _collection(name: str) -> origins.Collection:
    return origins.COLLECTIONS.get(name) or origins.Collection(
        "not described", "not stated", "Ask whoever published this."
    )


def _data_card(readme: str, repo_id: str, placed: list, told: dict) -> str:
    """Add to the card that `prepare` wrote where the pictures come from and what may be done with them."""
    from huggingface_hub import DatasetCard

    card = DatasetCard(readme)
    names = sorted({entry.source for entry in placed})
    card.data.license = "other"
    card.data.license_name = "as-stated-by-each-collection"
    card.data.pretty_name = "Chest pictures, COVID against Non-COVID"
    rows = "\n".join(
        f"| {name} | {sum(entry.source == name for entry in placed):,} | {source.title} | {source.licence} "
        f"| {source.leak} |"
        for name, source in ((name, _collection(name)) for name in names)
    )
    return (
        f"{str(card).rstrip()}\n\n## Where the pictures come from\n\n"
        "| source | pictures | collection | licence | what to know about it |\n| --- | ---: | --- | --- | "
        f"--- |\n{rows}\n\nThe whole may be used only as its strictest part allows. `COVID` means that the "
        "collection says the patient had COVID-19, not that the picture shows it.\n\n## Parts\n\nSplit "
        f"`{told['split']}`, seed {told['seed']}, hash `{told['hash']}`. A family (one patient, or copies "
        "of one original) lies whole in one "
        f"part{' - **not here: this split leaks**' if told['leaking'] else ''}. Keep `family` together when "
        "you split anew.\n\n```python\nimport datasets\n\nparts = "
        f'datasets.load_dataset("{repo_id}")\n```\n'
    )
