"""One folder, every loader: the largest difference in P(COVID) from Screener on the same pictures.

    python -m tests.benchmarks.parity [RUN ...] [--data ../shared/data] [--images 20]

Asks the embedded models, a documented network and two stock backbones; a RUN takes the place of the model of the same
name or architecture. Pictures are real ones of DATA, half of them COVID, or phantoms where it is absent. Loaders answer
in a process that cannot import this package, except where the table says otherwise. Writes docs/measured/parity.json
and parity.md.
"""

import argparse
import csv
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from hub_model import hub_folder, lungs
from hub_model.backends import runtime
from hub_model.covid_cnn import VARIANTS
from tests import loaders
from tests.benchmarks import measured
from train.fit import backbones
from train.phantom.phantom import phantom
from train.release import web

EMBEDDED = hub_folder.MODALITIES
UNCUT = "pipeline, path, of the whole film"
MADE = ("covid_cnn_1", "mobilenetv2_100", "mobilenetv4_conv_small")  # the documented one first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="hub folders")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--images", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        files = {kind: pictures(args.data, kind, args.images, scratch) for kind in EMBEDDED}
        real = (args.data / "metadata.csv").is_file()
        result = {"environment": measured.environment("torch", "transformers", "timm", "onnxruntime"),
                  "pictures": "real" if real else "phantoms", "images": args.images, "models": {}}  # fmt: skip
        for name, folder in folders(args.runs, files["ct"], scratch).items():
            kind = hub_folder.load(folder).modality
            result["models"][name] = {"modality": kind, **differences(folder, files[kind], scratch)}
            print(name, result["models"][name], flush=True)
    measured.write("parity", result, text(result))


def pictures(data: Path, modality: str, images: int, scratch: Path) -> list[Path]:
    """Files of one modality, half of them COVID, evenly spread over the collection."""
    if not (data / "metadata.csv").is_file():
        data = phantom(scratch / "phantoms" / modality, n=max(images, 12), modality=modality)
    with open(data / "metadata.csv", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("modality", modality) == modality]
    chosen = []
    for label in hub_folder.LABELS:
        named = [(data / row["file_name"]).resolve() for row in rows if row["label"] == label]
        chosen += [named[i] for i in np.linspace(0, len(named) - 1, images // 2, dtype=int)]
    return chosen


def folders(runs: list[Path], files: list[Path], scratch: Path) -> dict[str, Path]:
    """Name -> hub folder with its folder for transformers.js, in the order of the table's columns."""
    runs = [run.resolve() for run in runs]  # loaders are asked elsewhere
    given = {run.name: run for run in runs}
    given |= {hub_folder.load(run).config["architecture"]: run for run in runs if run.name not in EMBEDDED}
    found = {}
    for name in EMBEDDED:
        found[name] = with_web(given.get(name) or hub_folder.resolve(name), scratch / "with web")
    documented = next((name for name in VARIANTS if name in given), MADE[0])
    for name in (documented, *MADE[1:]):
        found[name] = with_web(given.get(name) or made(name, files, scratch), scratch / "with web")
    return found


def made(name: str, files: list[Path], scratch: Path) -> Path:
    """The folder of an untrained network that answers differently to different pictures."""
    torch.manual_seed(0)
    built = backbones.build(name)
    transform = hub_folder.transform_of(
        hub_folder.make_config(built.architecture, built.model_args, built.pretrained_cfg, 1)
    )
    pixels = torch.stack([transform(loaders.read_image(file)) for file in files])
    return hub_folder.save(
        scratch / name,
        loaders.with_some_training(built.model, pixels),
        architecture=built.architecture,
        model_args=built.model_args,
        pretrained_cfg=built.pretrained_cfg,
        screening={"modality": "ct", "operating_points": {"balanced": {"threshold": 0.5}}},
    )


def with_web(path: Path, scratch: Path) -> Path:
    """A copy of a hub folder with its folder for transformers.js."""
    copy = Path(shutil.copytree(path, scratch / path.name))
    web.write_web(hub_folder.open_folder(copy), copy / web.FOLDER)
    return copy


def differences(folder: Path, files: list[Path], scratch: Path) -> dict:
    """Largest difference of each loader from Screener, and how far Screener's answers lie apart."""
    expected, found = np.array(loaders.ours(folder, files)), {}
    opened = hub_folder.load(folder)
    whole, finder = files, lungs.load(folder) if opened.screening.get("view") == lungs.LUNGS else None
    if finder is not None:  # what the card tells users of stock loaders to do first
        files = [scratch / f"{opened.path.name}-{number}.png" for number in range(len(whole))]
        for file, cut in zip(whole, files, strict=True):
            finder.view(loaders.read_image(file)).save(cut)
    documented = opened.config["architecture"] in VARIANTS
    answered, modules = loaders.answers(loaders.WITHOUT_OUR_PACKAGE, folder, files, scratch, trust=documented)
    assert modules == []
    names = {"auto classes": "AutoModelForImageClassification", "timm": "timm, local-dir:"}
    found |= {names.get(loader, loader): answer for loader, answer in answered.items()}
    if documented:
        answered, _ = loaders.answers(loaders.WITH_OUR_PACKAGE, folder, files, scratch)
        found["pipeline, after import hub_model"] = answered["pipeline, path"]
    pixels = torch.stack([opened.transform(loaders.read_image(file)) for file in whole])
    session = runtime().InferenceSession(folder / hub_folder.GRAPH, providers=["CPUExecutionProvider"])
    logits = [session.run(["logits"], {"pixel_values": one[None].numpy()})[0] for one in pixels]
    found["ONNX Runtime"] = web.probability(np.concatenate(logits))
    if loaders.node_is_ready():
        found["transformers.js"] = loaders.transformers_js(folder / web.FOLDER, "fp32", files)
    if finder is not None:
        answered, _ = loaders.answers(loaders.WITHOUT_OUR_PACKAGE, folder, whole, scratch)
        found[UNCUT] = answered["pipeline, path"]
    return {
        "remote_code": documented,
        "trained": bool(opened.screening.get("provenance")),
        "screener": {"lowest": float(expected.min()), "highest": float(expected.max())},
        "largest_difference": {
            name: float(np.abs(np.array(answer) - expected).max()) for name, answer in found.items()
        },
    }


def text(result: dict) -> str:
    models = result["models"]
    rows = dict.fromkeys(name for model in models.values() for name in model["largest_difference"])
    cells = [
        [name, *(shown(model["largest_difference"].get(name)) for model in models.values())] for name in rows
    ]
    ranges = [
        f"{model['screener']['lowest']:.2f} to {model['screener']['highest']:.2f}"
        for model in models.values()
    ]
    untrained = [f"`{name}`" for name in models if not models[name]["trained"]]
    caveat = (
        f"Random weights exaggerate rounding; those of {', '.join(untrained)} are random. "
        if untrained
        else ""
    )
    return (
        f"The largest difference in P(COVID) from `Screener` over {result['images']} {result['pictures']} "
        "pictures a model, by loader (`python -m tests.benchmarks.parity`). The loaders ran where this package "
        "cannot be imported, the documented network with `trust_remote_code=True`, unless a row says otherwise. "
        f"{caveat}A network that wants pictures cut to the lungs was given them so, but for the row that says "
        "otherwise.\n\n"
        + measured.table(
            ["loader", *(f"`{name}`" for name in models)],
            [*cells, ["*answers of Screener*", *ranges]],
        )
    )


def shown(difference: float | None) -> str:
    if difference is None:
        return "-"
    return "< 1e-6" if difference < 1e-6 else f"{difference:.0e}".replace("e-0", "e-")


if __name__ == "__main__":
    main()
