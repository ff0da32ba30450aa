"""What is killed: the inputs of each verb that writes, for a second of work, its run, and what of it must be whole."""

import atexit
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from hub_model.whole import whole_file

NETWORK = "mobilenetv3_small_050"


def digest(place: Path) -> str | None:
    """Hash of a file or of all files in a folder, but for unfinished work of killed processes and for what was timed.

    None where nothing is.
    """
    if not place.exists():
        return None
    found = hashlib.sha256()
    for path in [place] if place.is_file() else sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_file() and ".partial-" not in name:
            found.update(name.encode() + b"\0" + _untimed(path))
    return found.hexdigest()


def _untimed(path: Path) -> bytes:
    if path.suffix != ".json":
        return path.read_bytes()
    return re.sub(rb'"(seconds|made|runtime|train_runtime)": [^,}\n]*', b"", path.read_bytes())


# ---- verbs on pictures


def collection(folder: Path) -> None:
    """Small pictures of both classes, as CT slices."""
    from tests.bad_files import grey_picture

    for number in range(24):
        place = folder / "set" / "CT" / ("COVID", "Non-COVID")[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        grey_picture(96, 96, seed=number).save(place)


def run_prepare(folder: Path, seed: str) -> None:
    from train.data import reading
    from train.data.prepare import prepare

    reading.CHUNK = 4
    prepare([folder / "set"], folder / "out", families="known", jobs=1, seed=int(seed))


def prepared(folder: Path) -> None:
    collection(folder)
    from train.data.prepare import prepare

    prepare([folder / "set"], folder / "data", families="known", jobs=1)


def run_explore(folder: Path, seed: str) -> None:
    from train.data.explore import explore

    explore([str(folder / "data")], folder / "out", seed=0, examples=1 + int(seed))


def run_phantom(folder: Path, seed: str) -> None:
    from train.phantom.phantom import phantom

    if (folder / "out").is_dir():  # phantoms of other settings are never replaced, so the old ones go first
        shutil.rmtree(folder / "out")
    phantom(folder / "out", n=4, patients=4, size=64, modality="ct", seed=int(seed))


def slices(folder: Path) -> None:
    """CT slices that can be outlined."""
    from PIL import Image

    from tests.data.test_outline import slice_of

    for label, level in (("COVID", 100), ("Non-COVID", 140)):
        (folder / "set" / label).mkdir(parents=True)
        for index in range(6):
            picture = slice_of(index > 1, level + 10 * index, 180 + index)[0]
            Image.fromarray(picture).save(folder / "set" / label / f"{index}.png")
    run_outline(folder, "0")  # the data are in the cache from now on
    shutil.rmtree(folder / "out")


def run_outline(folder: Path, seed: str) -> None:
    from train.data.outline import outline

    outline([str(folder / "set")], folder / "out", families="known", seed=int(seed))


class _Sizes:
    """Stands for a model: its answer is the mean of a picture, so that a run costs nothing but reading and writing."""

    modality, operating_points, screening = "ct", {"balanced": {"threshold": 0.5}}, {}
    site = prevalence = None

    def screen_many(self, sources: Any, *_: Any, **__: Any) -> Any:
        from hub_model import Finding
        from hub_model.images import read_image

        for source in sources:
            picture = read_image(source)
            yield Finding(
                "negative", picture.getpixel((9, 9)) / 256, "balanced", 0.5, "ct", (), image=picture
            )


def run_score(ending: str) -> Callable[[Path, str], None]:
    def run(folder: Path, seed: str) -> None:
        from hub_model.scoring import Options, score

        score([folder / "set"], _Sizes(), folder / f"out{ending}", Options(batch_size=2, workers=1))

    return run


def rows(place: Path) -> list[str] | None:
    """Whole lines of a file of rows, the places of the pictures left out; None where none is."""
    if not place.exists():
        return None
    if place.suffix == ".parquet":
        import pyarrow.parquet as pq

        return [str({**line, "file": Path(line["file"]).name}) for line in pq.read_table(place).to_pylist()]
    text = place.read_text("utf-8")
    assert text.endswith("\n") or "\n" not in text or not text.splitlines()[-1].endswith("\n")
    return [re.sub(r"/\S*/", "", line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


# ---- verbs that train, measure and release


def tiny() -> None:
    """Settings so small that a run takes a second, the same every time."""
    import torch

    from hub_model import hub_folder
    from train.fit import lungs, speed
    from train.fit.recipes import RECIPES, Recipe
    from train.measure import guard
    from train.release import web

    torch.set_num_threads(1)
    RECIPES["tiny"] = Recipe(batch=8, epochs=2, learning_rate=3e-3, input_size=32)
    RECIPES["tiny_steady"] = Recipe(
        batch=8, epochs=1, learning_rate=1e-4, input_size=32, copies=1, steady=1.0, source_penalty=1.0
    )
    speed.faster_in_bf16 = lambda network: False  # it is measured, and may be so or so
    guard.TEACH_A_KIND, guard.MEASURE_A_KIND = 4, 2
    lungs.MADE, web.IMAGES = 1, 3
    if hub_folder._graph_of is not _graph_of:
        made.append(hub_folder._graph_of)
        hub_folder._graph_of = _graph_of


made: list[Callable[..., bytes]] = []


@cache
def graphs() -> Path:
    """Where graphs are kept: writing one takes seconds, and it is the same for all weights of a network."""
    found = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    return found


def _graph_of(config: dict, weights: Any, place: object) -> bytes:
    file = graphs() / f"{config['architecture']}-{len(weights.content)}.onnx"
    if not file.is_file():
        with whole_file(file) as new:
            new.write_bytes(made[0](config, weights, place))
    return file.read_bytes()


def slanted(folder: Path, count: int = 24) -> None:
    """Prepare slices that are brighter on one side, so that there is something to learn."""
    import numpy as np
    from PIL import Image

    from train.data.prepare import prepare

    rng = np.random.default_rng(0)
    for label, side in (("COVID", 0), ("Non-COVID", 1)):
        place = folder / "set" / "CT" / label
        place.mkdir(parents=True)
        for index in range(count):
            grey = rng.normal(90, 40, (64, 64))
            grey[:, 32 * side : 32 * side + 32] += 60
            Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(place / f"{index}.png")
    prepare([folder / "set"], folder / "data", families="known", jobs=1)
    shutil.rmtree(folder / "set")


def edge_networks(folder: Path) -> None:
    """Two networks of random weights that can be carried over."""
    import timm
    import torch
    from safetensors.torch import save_file

    for number in range(2):
        torch.manual_seed(number)
        network = timm.create_model("mobilenet_edgetpu_100", num_classes=2)
        save_file(network.state_dict(), folder / f"weights{number}.safetensors")


def run_start(folder: Path, seed: str) -> None:
    from train.fit.starting_points import start

    start(folder / f"weights{seed}.safetensors", folder / "out.safetensors", blocks=6)


def run_fit(folder: Path, seed: str, out: str = "run", **more: Any) -> None:
    from train.fit.fit import fit

    tiny()
    fit(data=[str(folder / "data")], modality="ct", variant=NETWORK, recipe="tiny", seed=int(seed),
        out=folder / out, **more)  # fmt: skip


def trained(folder: Path) -> None:
    slanted(folder)
    run_fit(folder, "0")


def run_overwriting(folder: Path, seed: str) -> None:
    run_fit(folder, seed, overwrite=True)


def finished(place: Path) -> str | None:
    """A run whose training has ended; checkpoints of another that goes on there count for nothing."""
    if not (place / "config.json").is_file():
        return None
    found = hashlib.sha256()
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_file() and not name.startswith(("trainer/", ".")):
            found.update(name.encode() + b"\0" + _untimed(path))
    return found.hexdigest()


def two_trained(folder: Path) -> None:
    slanted(folder)
    for number in "01":
        run_fit(folder, number, out=f"run{number}")


def run_soup(folder: Path, seed: str) -> None:
    from train.fit.soup import soup

    tiny()
    soup([folder / "run0", folder / "run1"], data=[str(folder / "data")], out=folder / "out")


def run_evaluate(folder: Path, seed: str) -> None:
    from train.measure.evaluate import evaluate

    tiny()
    evaluate(folder / "run", data=[str(folder / "data")], seed=int(seed))


def evaluated(folder: Path) -> None:
    trained(folder)
    run_evaluate(folder, "0")


def run_seen(folder: Path, seed: str) -> None:
    from train.measure.seen import seen

    tiny()
    seen(folder / "run", data=[str(folder / "data")])


def with_patients(folder: Path) -> None:
    slanted(folder, 60)
    run_fit(folder, "0")
    run_evaluate(folder, "0")


def run_patients(folder: Path, seed: str) -> None:
    from train.measure import patients

    tiny()
    patients.LEAST_PATIENTS, patients.FOLDS = 4, 2
    patients.patients(folder / "run", data=[str(folder / "data")], seed=int(seed))


def run_audit(folder: Path, seed: str) -> None:
    from train.measure.audit import audit

    tiny()
    audit(folder / "run", data=[str(folder / "data")], pictures=4, seed=int(seed))


def audited(folder: Path) -> None:
    evaluated(folder)
    run_audit(folder, "0")


def run_faithfulness(folder: Path, seed: str) -> None:
    from train.measure.faithfulness import faithfulness

    tiny()
    faithfulness(folder / "run", data=[str(folder / "data")], images=3, steps=2, seed=int(seed))


def examined(folder: Path) -> None:
    evaluated(folder)
    run_faithfulness(folder, "0")


def run_export(folder: Path, seed: str) -> None:
    from train.release.web import export

    tiny()
    export(folder / "run", data=[str(folder / "data")])
    if seed == "0":
        (folder / "run" / "web" / "old.json").write_text("{}")  # the new one is without it


def exported(folder: Path) -> None:
    evaluated(folder)
    run_export(folder, "0")


def run_card(folder: Path, seed: str) -> None:
    from train.release.card import card

    card(folder / "run", dataset=f"org/data{seed}")


def lettered(folder: Path) -> None:
    from tests.made_run import make_run

    tiny()
    make_run(folder / "run")
    run_card(folder, "0")


def runs(folder: Path) -> None:
    from tests.made_run import make_run

    tiny()
    for number in range(2):
        make_run(folder / "runs" / str(number), seed=number)


def run_compare(folder: Path, seed: str) -> None:
    from train.measure import compare

    compare.CPU_RUNS = 1
    chosen = sorted((folder / "runs").iterdir())[: 1 + int(seed)]
    compare.compare(chosen, out=folder / "out" / "table")


def compared(place: Path) -> tuple[str, ...] | None:
    """The table without the milliseconds, and the hash of the picture."""
    if not (place / "table.md").is_file():
        return None
    lines = [line.split(" | ") for line in (place / "table.md").read_text("utf-8").splitlines()]
    return (*(" | ".join(cells[:5] + cells[6:]) for cells in lines), str(digest(place / "table.png")))


def striped(folder: Path) -> None:
    """Slices in which the labels differ in their stripes, and a study of two trials."""
    from tests.bad_files import striped_slices

    striped_slices(folder / "set", 14)
    run_tune(folder, "0")


def run_tune(folder: Path, seed: str) -> None:
    from train.fit.tune import tune

    tiny()
    here = os.getcwd()
    os.chdir(folder)  # a study knows the place of its data, and every kill has a place of its own
    tune(data=["set"], modality="ct", variant=NETWORK, out=Path("study"), recipe="tiny_steady", families="known",
         trials=2 + 2 * int(seed))  # fmt: skip
    os.chdir(here)


def studied(place: Path) -> tuple[int, int, bool] | None:
    """How many trials best.json and the table tell of, at most as many as asked for, and whether the picture opens."""
    from PIL import Image

    if not (place / "best.json").is_file():
        return None
    told = json.loads((place / "best.json").read_text())["trials"]
    rows = len((place / "trials.csv").read_text().splitlines()) - 1
    with Image.open(place / "trials.png") as picture:
        picture.load()
    return min(told, 4), min(rows, 4), rows == told


def outlined(folder: Path) -> None:
    """Drawn chests of both labels with the outlines of their lungs."""
    import numpy as np

    from tests.fit.test_lungs import draw

    rng, lines = np.random.default_rng(0), ["mask,film"]
    (folder / "masks").mkdir()
    for label in ("COVID", "Non-COVID"):
        (folder / "set" / label).mkdir(parents=True)
        for index in range(12):
            picture, outline = draw(rng)
            picture.save(folder / "set" / label / f"{index:03}.png")
            outline.save(folder / "masks" / f"{label}-{index}.png")
            lines.append(f"{label}-{index}.png,{label}/{index:03}.png")
    (folder / "masks" / "masks.csv").write_text("\n".join(lines) + "\n")


def run_lungs(folder: Path, seed: str) -> None:
    from train.fit.lungs import train_lungs

    tiny()
    train_lungs([str(folder / "set")], [folder / "masks"], folder / "out", families="known", steps=2, bf16=False,
                seed=int(seed))  # fmt: skip


def hospital(folder: Path) -> None:
    """A model and labelled pictures with a table."""
    from tests.made_run import make_run, patients

    tiny()
    make_run(folder / "run")
    (folder / "set").mkdir()
    lines = ["file_name,label,patient_id"]
    for number, picture in enumerate(patients(64, seed=5)):
        picture.save(folder / "set" / f"{number}.png")
        lines.append(f"{number}.png,{('COVID', 'Non-COVID')[number // 2 % 2]},p{number // 2}")
    (folder / "set" / "metadata.csv").write_text("\n".join(lines) + "\n")


def run_check(folder: Path, seed: str) -> None:
    from hub_model.check.command import check

    os.chdir(folder)
    check(["set"], model="run", out=Path("out"), changes=0, seed=int(seed))
