"""A web page on the Hub: the Gradio demo as a Space, or a static page that computes in the visitor's browser.

Both are first written as a folder that can be looked at, started and tested here, and then uploaded as they
are. The model is pinned to a commit, so that the page keeps giving the answers that were measured.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from importlib.metadata import requires, version
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
import safetensors.numpy
import typer
import yaml

from hub_model import grey, heatmap, hub_folder, lungs
from hub_model.guard import BLANK_DEVIATION
from hub_model.refused import Refused
from hub_model.whole import whole_folder

from . import card
from .hub import Content, Target, check_traces, collected, show
from .metadata import LICENCE

ROOT = Path(__file__).resolve().parents[2]
PAGE, START = (Path(__file__).with_name(name) for name in ("static_space", "start.py"))
RUNTIME = ROOT / "node_modules" / "onnxruntime-web"
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PYTHON = "3.11"
"""Version of Python that the Gradio Space runs on."""
PRELOADED = (
    hub_folder.CONFIG,
    hub_folder.WEIGHTS,
    hub_folder.GRAPH,
    hub_folder.SCREENING,
    hub_folder.GUARD,
    hub_folder.SEEN,
    *lungs.FILES,
    hub_folder.EVALUATION,
    card.README,
    "plots/*.png",
)
MARKS = ("start.py", "space.json")
"""A folder with one of these files is a page that this verb wrote: a Gradio one, a static one."""
LUNG_RULES = {
    "side": lungs.SIDE,
    "likely": lungs.LIKELY,
    "faint": lungs.FAINT,
    "tail": lungs.TAIL,
    "smallest": lungs.SMALLEST,
    "certain": lungs.CERTAIN,
}
"""How the static page reads an outline of lungs: the package's own constants."""


@dataclass(frozen=True)
class Pinned:
    """A model of a page.

    Attributes:
        name: Hub id, or the name of a local folder.
        commit: on the Hub; None for a local folder.
        folder: its files here.
    """

    name: str
    commit: str | None
    folder: Path

    @property
    def screening(self) -> dict[str, Any]:
        return hub_folder.read_json(self.folder / hub_folder.SCREENING)

    @property
    def modality(self) -> str:
        return self.screening["modality"]

    def __str__(self) -> str:
        return f"{self.name}@{self.commit}" if self.commit else self.name


def space(
    repo_id: Annotated[str, typer.Option(help="where to, ORG/NAME")],
    model: Annotated[list[str], typer.Option(help="ORG/NAME@REVISION; one for each modality")],
    static: Annotated[bool, typer.Option(help="a page that computes in the browser, free to host")] = False,
    out: Annotated[Path | None, typer.Option(help="folder to write; by default build/space/NAME")] = None,
    runtime: Annotated[Path, typer.Option(help="npm package onnxruntime-web, for --static")] = RUNTIME,
    private: Annotated[bool, typer.Option("--private/--public", help="who may see a Space made new")] = True,
    replace: Annotated[bool, typer.Option(help="delete what else the Space holds")] = False,
    dry_run: Annotated[bool, typer.Option(help="write the folder and list it, upload nothing")] = False,
) -> Path:
    """Write the page as a folder and upload it as a Space, in one commit.

    Returns:
        The folder.

    Raises:
        Refused: two models of one modality, a model without what the page needs, or no onnxruntime-web.
        FolderRefused: a model that is not there or cannot be opened.
        Refused, Failed: see `publish`.
    """
    models = [pin(name, local=static) for name in model]
    modalities = [found.modality for found in models]
    if len(set(modalities)) < len(modalities):
        raise Refused(f"Two models read {modalities[0]} pictures; give one for each modality.")
    out = out or ROOT / "build" / "space" / repo_id.rpartition("/")[2]
    files = write_static(repo_id, models, out, runtime) if static else write_gradio(repo_id, models, out)
    check_traces(files, out.parent, ROOT)
    if dry_run:
        show(files, repo_id)
        return out
    target = Target(
        repo_id, "space", private=private, revision="main", tag=None, owns=_ours(files), marks=MARKS,
        replace=replace, sdk="static" if static else "gradio",
    )  # fmt: skip
    target.upload(files, "covid-xct page for " + ", ".join(map(str, models)))
    return out


def _ours(files: dict[str, Content]) -> tuple[str, ...]:
    """List patterns of what an earlier upload may have left: files of the same folders and suffixes."""
    paths = [PurePosixPath(name) for name in files]
    return tuple({str(path.parent / f"*{path.suffix}") if path.suffix else str(path) for path in paths})


def pin(name: str, local: bool = False) -> Pinned:
    """Find the commit behind ``ORG/NAME@REVISION``, and its files here.

    Raises:
        FolderRefused: no such model or revision.
        Refused: a folder of this machine, where a Space could not find it.
    """
    if Path(name).is_dir():
        if not local:
            raise Refused(
                f"{name} is a folder of this machine, where a Space does not find it. Publish it first."
            )
        return Pinned(Path(name).resolve().name, None, hub_folder.open_folder(name).path)
    repo_id, _, revision = name.partition("@")
    folder = hub_folder.load(repo_id, revision or None).path
    if not re.fullmatch(r"[0-9a-f]{40}", folder.name):
        raise Refused(f"{name} is not a model on the Hub. Give ORG/NAME@REVISION.")
    return Pinned(repo_id, folder.name, folder)


# --- Gradio ---------------------------------------------------------------------------------------


def write_gradio(repo_id: str, models: list[Pinned], out: Path) -> dict[str, Content]:
    """Write the Gradio Space: the demo as it is, the package beside it, start file, requirements, front matter."""
    pinned = {f"COVID_XCT_{model.modality.upper()}": str(model) for model in models}
    front = {
        "sdk": "gradio", "sdk_version": version("gradio"), "python_version": PYTHON, "app_file": "start.py",
        "suggested_hardware": "cpu-basic", "preload_from_hub": [_preload(model) for model in models],
    }  # fmt: skip
    text = (
        "The page runs on the Space's server: a picture is uploaded to it, judged, and deleted within "
        "minutes. No file\nname and no patient tag is logged. For pictures that must not leave your device "
        "there is a static page\n(`python -m train space --static`)."
    )
    files: dict[str, Content] = {}
    for folder, names in ((ROOT / "demo", ("*", "*/*", "*/*/*")), (ROOT / "hub_model", ("*.py", "check/*"))):
        prefix = "" if folder.name == "demo" else f"{folder.name}/"
        kept = {name: f for name, f in collected(folder, names).items() if "__pycache__" not in name}
        files |= {prefix + name: file for name, file in kept.items()}
    files |= {
        "start.py": START,
        "models.json": json.dumps(pinned, indent=1).encode(),
        "requirements.txt": requirements().encode(),
        "README.md": _readme(repo_id, models, front, text),
        "LICENSE": ROOT / "LICENSE",
    }
    return _write(out, files)


def _preload(model: Pinned) -> str:
    return f"{model.name} {','.join(collected(model.folder, PRELOADED, links=True))} {model.commit}"


def requirements() -> str:
    """List what the page imports, at the versions it was tested with here."""
    wanted = []
    for line in requires("covid-xct") or ():
        needed, _, condition = line.partition(";")
        if not condition or re.search(r"extra == ['\"]demo['\"]", condition):
            wanted.append(re.match(r"[\w.-]+", needed)[0])
    pins = [f"{name}=={version(name).partition('+')[0]}" for name in sorted(wanted, key=str.lower)]
    return "\n".join(pins) + "\n"


def _readme(repo_id: str, models: list[Pinned], front: dict, text: str) -> bytes:
    """Write README.md of a Space: front matter, and what the page is in plain sentences."""
    on_hub = [model.name for model in models if model.commit]
    head = {
        "title": repo_id.rpartition("/")[2],
        "emoji": "🫁",
        "colorFrom": "gray",
        "colorTo": "green",
        **front,
        "models": on_hub,
        "license": "apache-2.0",
        "tags": ["covid-19", "radiology", "medical"],
        "pinned": False,
        "short_description": "Chest COVID-19 screening, for research only",
    }
    lines = "\n".join(f"- {model.modality}: `{model}`, weights {LICENCE}" for model in models)
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n# Chest COVID-19 "
        "screening\n\n**For research and teaching. Not a medical device: never decide about a patient on "
        "this alone.** What the models\nwere made from, what was measured and where they fail is in their "
        f"cards:\n\n{lines}\n\n{text}\n"
    ).encode()


# --- static ---------------------------------------------------------------------------------------


def write_static(
    repo_id: str, models: list[Pinned], out: Path, runtime: Path = RUNTIME
) -> dict[str, Content]:
    """Write the static page: the model's own files, the runtime, and a list of all files for offline use.

    Raises:
        Refused: no onnxruntime-web, or a model the page cannot run.
    """
    files: dict[str, Content] = {
        name: PAGE / name for name in ("index.html", "style.css", "app.js", "judge.js", "worker.js")
    }
    files |= {"LICENSE": ROOT / "LICENSE", **_runtime(runtime)}
    for model in models:
        files |= {f"models/{model.modality}/{name}": file for name, file in _browser_files(model).items()}
    own = json.loads((PAGE / "texts.json").read_text("utf-8"))
    languages = {
        file.stem: file for file in sorted((ROOT / "demo" / "languages").glob("*.json")) if file.stem in own
    }
    files |= {f"languages/{code}.json": file for code, file in languages.items()}
    about = {
        "models": [
            {"modality": m.modality, "source": str(m), "weights": m.screening["weights_sha256"][:12]}
            for m in models
        ],
        "languages": sorted(languages, key=lambda code: (code != "en", code)),
        "texts": own,
        "limits": {
            "max_bytes": grey.MAX_BYTES,
            "max_pixels": grey.MAX_PIXELS,
            "max_side": grey.MAX_SIDE,
            "min_side": grey.MIN_SIDE,
            "colour_step": grey.COLOUR_STEP,
            "colour_share": grey.COLOUR_SHARE,
            "blank_deviation": BLANK_DEVIATION,
        },
        "heat": {"for": heatmap.FOR, "against": heatmap.AGAINST, "opacity": heatmap.OPACITY},
        "files": sorted(files),
    }
    mark = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(files):
        mark.update(files[name] if isinstance(files[name], bytes) else files[name].read_bytes())
    about["version"] = f"covid-xct-{mark.hexdigest()[:16]}"
    files["space.json"] = json.dumps(about, ensure_ascii=False, indent=1).encode()
    size = sum(len(c) if isinstance(c, bytes) else c.stat().st_size for c in files.values()) / 2**20
    text = (
        "The page computes in your browser: **the picture never leaves your device**, and nothing is "
        f"fetched from anywhere\nbut this folder. The first visit loads about {size:.0f} MB and keeps them; "
        "after that it works without a network.\nIt reads PNG, JPEG, WebP and BMP with 8 bits; DICOM, TIFF "
        "and 16-bit pictures need the Python package. Resize,\nsearch for lungs, refusals, threshold and guard "
        "are those of the Python package.\n\nRuns on ONNX Runtime Web (MIT licence, Microsoft), copied into `runtime/`."
    )
    files["README.md"] = _readme(repo_id, models, {"sdk": "static", "app_file": "index.html"}, text)
    return _write(out, files)


def _runtime(package: Path) -> dict[str, Content]:
    wanted = json.loads((PAGE / "package.json").read_text())["dependencies"]["onnxruntime-web"]
    file = package / "package.json"
    found = json.loads(file.read_text())["version"] if file.is_file() else None
    if found != wanted:
        raise Refused(
            f"{'onnxruntime-web ' + found if found else 'No onnxruntime-web'} is in {package}; the page is "
            f"tested with {wanted}. Say `npm install --no-save --prefix . onnxruntime-web@{wanted}` in the "
            "checkout; without a network, copy node_modules/onnxruntime-web from a machine that has one, and "
            "give its folder by --runtime."
        )
    return {
        **{f"runtime/{name}": package / "dist" / name for name in RUNTIME_FILES},
        "runtime/LICENSE": PAGE / "LICENSE.onnxruntime",
    }


def _browser_files(model: Pinned) -> dict[str, Content]:
    """Name the files of a model that the page reads: its graph and weights as they are, and what judges its answers.

    Raises:
        Refused: no guard, or steps before the network that the page does not know.
    """
    folder = hub_folder.open_folder(model.folder)
    cfg = folder.config["pretrained_cfg"]
    how = tuple(cfg.get(key) for key in ("interpolation", "crop_mode", "crop_pct"))
    if how != ("bicubic", "squash", 1.0):
        raise Refused(
            f"{model}: the page resizes bicubic, squashed and whole, and this model wants {how}. Choose another model."
        )
    if folder.guard is None:
        raise Refused(f"{model}: it has no guard, so the page could not refuse. Evaluate the run first.")
    guard = {  # JavaScript has no halves
        name: np.ascontiguousarray(array, np.float32) for name, array in folder.guard.items()
    }
    at = hub_folder.read_json(model.folder / hub_folder.EVALUATION)["test"]["at"]
    tested = {name: {key: found[key] for key in ("sensitivity", "specificity")} for name, found in at.items()}
    # whatever is not needed to judge stays away from the page: provenance is in the card
    kept = {
        key: model.screening[key]
        for key in ("format", "labels", "modality", "operating_points", "guard", "weights_sha256")
    }
    finder: dict[str, Content] = {}
    if folder.finder:
        finder = {name: model.folder / name for name in (lungs.GRAPH, lungs.WEIGHTS)}
        kept |= {"view": model.screening.get("view", lungs.WHOLE), "lungs": LUNG_RULES}
    return {
        **finder,
        "config.json": model.folder / hub_folder.CONFIG,
        "screening.json": json.dumps({**kept, "tested": tested}).encode(),
        "guard.safetensors": safetensors.numpy.save(guard),
        hub_folder.GRAPH: folder.graph(),
        hub_folder.WEIGHTS: model.folder / hub_folder.WEIGHTS,
    }


def _write(out: Path, files: dict[str, Content]) -> dict[str, Content]:
    """Write the files as a folder, whole or not at all; returns them as they lie there.

    Raises:
        Refused: `out` holds something that is not a page.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()) and not _is_page(out):
        raise Refused(f"{out} holds other files. Give another --out, or empty it.")
    with whole_folder(out) as new:
        for name, content in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return {name: out / name for name in files}


def _is_page(folder: Path) -> bool:
    return any((folder / name).is_file() for name in MARKS)
