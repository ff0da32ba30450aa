"""One folder, every loader: the largest difference in P(COVID) from Screener on the same pictures.

    python -m tests.benchmarks.parity [RUN ...] [--data ../shared/data] [--images 20]

Asks the embedded models, a documented network and two stock backbones; a RUN that `python -m train export` has been
through takes the place of the model of the same name or architecture, with its own ONNX files. Models that are not
exported yet are exported here, their weights rounded to int8 without the export's acceptance test. Pictures are real
ones of DATA, half of them COVID, or phantoms where it is absent. Loaders answer in a process that cannot import this
package, except where the table says otherwise. Writes docs/measured/parity.json and parity.md.
"""

import argparse
import csv
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from hub_model import hub_folder
from hub_model.covid_cnn import VARIANTS
from tests import loaders
from tests.benchmarks import measured
from train.fit import backbones
from train.phantom.phantom import phantom
from train.release import export

EMBEDDED = hub_folder.MODALITIES
MADE = ("covid_cnn_1", "mobilenetv2_100", "mobilenetv4_conv_small")  # the documented one first
INT8 = "ONNX Runtime, int8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="exported hub folders")
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
    """Name -> exported hub folder, in the order of the table's columns."""
    runs = [run.resolve() for run in runs]  # loaders are asked elsewhere
    given = {run.name: run for run in runs}
    given |= {hub_folder.load(run).config["architecture"]: run for run in runs if run.name not in EMBEDDED}
    found = {}
    for name in EMBEDDED:
        found[name] = given.get(name) or exported(
            Path(shutil.copytree(hub_folder.resolve(name), scratch / name)), files
        )
    documented = next((name for name in VARIANTS if name in given), MADE[0])
    for name in (documented, *MADE[1:]):
        found[name] = given.get(name) or exported(made(name, files, scratch), files)
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


def exported(path: Path, files: list[Path]) -> Path:
    """Adds ONNX files and the folder for transformers.js; int8 rounds weights alone."""
    folder = hub_folder.load(path)
    pixels = torch.stack([folder.transform(loaders.read_image(file)) for file in files[:2]])
    (path / export.FP32).parent.mkdir()
    export.write_fp32(folder.model, pixels, path / export.FP32)
    export._weights_only(path / export.FP32, path / export.INT8)
    export.write_web(path, folder.config["pretrained_cfg"])
    return path


def differences(folder: Path, files: list[Path], scratch: Path) -> dict:
    """Largest difference of each loader from Screener, and how far Screener's answers lie apart."""
    expected, found = np.array(loaders.ours(folder, files)), {}
    opened = hub_folder.load(folder)
    documented = opened.config["architecture"] in VARIANTS
    answered, modules = loaders.answers(loaders.WITHOUT_OUR_PACKAGE, folder, files, scratch, trust=documented)
    assert modules == []
    names = {"auto classes": "AutoModelForImageClassification", "timm": "timm, local-dir:"}
    found |= {names.get(loader, loader): answer for loader, answer in answered.items()}
    if documented:
        answered, _ = loaders.answers(loaders.WITH_OUR_PACKAGE, folder, files, scratch)
        found["pipeline, after import hub_model"] = answered["pipeline, path"]
    pixels = torch.stack([opened.transform(loaders.read_image(file)) for file in files])
    for name, file in (("ONNX Runtime, fp32", export.FP32), (INT8, export.INT8)):
        found[name] = export.probability(export.run_onnx(folder / file, pixels)[0])
    if loaders.node_is_ready():
        for name, dtype in (("transformers.js, fp32", "fp32"), ("transformers.js, q8", "q8")):
            found[name] = loaders.transformers_js(folder / "web", dtype, files)
    return {
        "remote_code": documented,
        "int8": hub_folder.read_json(folder / export.REPORT)["int8"]["quantized"]
        if (folder / export.REPORT).is_file()
        else "rounded",
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
    int8 = [model["int8"] for model in models.values()]
    untrained = [f"`{name}`" for name in models if name not in EMBEDDED and models[name]["int8"] == "rounded"]
    caveat = (
        f"Random weights exaggerate rounding; those of {', '.join(untrained)} are random. "
        if untrained
        else ""
    )
    return (
        f"The largest difference in P(COVID) from `Screener` over {result['images']} {result['pictures']} "
        "pictures a model, by loader (`python -m tests.benchmarks.parity`). The loaders ran where this package "
        "cannot be imported, the documented network with `trust_remote_code=True`, unless a row says otherwise. "
        f"{caveat}int8 files called 'rounded' did not go through `python -m train export`, which refuses those that "
        "change decisions.\n\n"
        + measured.table(
            ["loader", *(f"`{name}`" for name in models)],
            [*cells, ["*int8 file*", *int8], ["*answers of Screener*", *ranges]],
        )
    )


def shown(difference: float | None) -> str:
    if difference is None:
        return "-"
    return "< 1e-6" if difference < 1e-6 else f"{difference:.0e}".replace("e-0", "e-")


if __name__ == "__main__":
    main()
