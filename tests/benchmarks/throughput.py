"""Training speed of the documented networks, here and in Keras, in one run on one machine.

    python -m tests.benchmarks.throughput --keras PYTHON [--images 512] [--epochs 5] [--variants covid_cnn_1 ...]

PYTHON is an interpreter that can import keras and tensorflow-cpu (they are not needed otherwise and are best kept in
an environment of their own). Both sides get the same phantoms as PNG files, the same split sizes, the documented batch
and recipe, validation after each epoch and a checkpoint of each epoch. Ours is `python -m train fit`; Keras is fed as
its guide says is fastest: `image_dataset_from_directory`, then `cache()`, `shuffle`, `prefetch(AUTOTUNE)`
(https://www.tensorflow.org/guide/data_performance). Figures of CPUs with other instructions stay in the table.

Whole processes are timed, once with one epoch and once with `--epochs` more, in turns, `--rounds` times over. An
epoch's time is the difference: starting, reading files and building networks cancel out, what an epoch needs, its
batches being put together included, does not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from hub_model.covid_cnn import VARIANTS
from tests.benchmarks import measured
from train.data.dataset import load_data
from train.fit.recipes import RECIPES
from train.fit.speed import multiplies_bf16
from train.phantom.phantom import phantom

SIDES = {"ours": [], "float32": ["--no-bf16"], "keras": []}
"""What takes turns, with the flags `fit` gets; float32 only where the CPU does bfloat16 and `fit` would take that."""
KERAS = """
import sys, keras, tensorflow as tf
from keras import layers, regularizers
folder, name, epochs, batch, rate, l2 = sys.argv[1], sys.argv[2], *map(float, sys.argv[3:6]), float(sys.argv[6])
def data(part):
    pictures = keras.utils.image_dataset_from_directory(
        f"{folder}/{part}", class_names=["Non-COVID", "COVID"], color_mode="grayscale", batch_size=None,
        image_size=(224, 224), shuffle=False, label_mode="binary", verbose=False).cache()
    if part == "train":
        pictures = pictures.shuffle(10_000)
    return pictures.batch(int(batch)).prefetch(tf.data.AUTOTUNE)
def conv(filters, penalised=False):
    return layers.Conv2D(filters, 3, activation="relu", kernel_regularizer=penalty if penalised else None)
def dense(units, penalised=False):
    return layers.Dense(units, activation="relu", kernel_regularizer=penalty if penalised else None)
penalty = regularizers.L2(l2) if l2 else None
pool, flat = layers.MaxPool2D, layers.Flatten
first = 64 if name == "covid_cnn_5" else 32
body = {
    "covid_cnn_baseline": lambda: [conv(32), pool(), conv(64), flat(), dense(16)],
    "covid_cnn_3": lambda: [conv(32), pool(), conv(32), pool(), conv(64), pool(), conv(64), pool(), flat(),
                            dense(256), dense(256)],
}.get(name, lambda: [conv(first), pool(), conv(64, True), pool(), conv(64, True), flat(), dense(64, True)])
ends = [keras.Input((224, 224, 1)), layers.Rescaling(1 / 255)], [layers.Dense(1, activation="sigmoid")]
network = keras.Sequential([*ends[0], *body(), *ends[1]])
network.compile(keras.optimizers.Adam(rate), "binary_crossentropy", metrics=["accuracy"])
keep = keras.callbacks.ModelCheckpoint(f"{folder}/keras.keras")
network.fit(data("train"), validation_data=data("validation"), epochs=int(epochs), callbacks=[keep], verbose=0)
print("parameters", network.count_params())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keras", required=True, help="interpreter with keras and tensorflow-cpu")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        counts = make_data(folder, settings.images)
        rows = [row(folder, variant, counts, settings) for variant in settings.variants]
    versions = subprocess.run(
        [settings.keras, "-c", "import keras, tensorflow; print(keras.__version__, tensorflow.__version__)"],
        capture_output=True, text=True, check=True, env=quiet(),
    ).stdout.split()  # fmt: skip
    machine = {
        "settings": {**counts, "epochs": settings.epochs, "rounds": settings.rounds},
        "environment": measured.environment("torch", "timm", "transformers")
        | {"keras": versions[-2], "tensorflow": versions[-1], "instructions": instructions()},
        "rows": rows,
    }
    earlier = json.loads((measured.FOLDER / "throughput.json").read_text())["machines"]
    others = [one for one in earlier if one["environment"]["instructions"] != instructions()]
    write([*others, machine])


def write(machines: list[dict]) -> None:
    lines = [
        [
            f"`{row['variant']}`",
            machine["environment"]["instructions"],
            f"{machine['settings']['train']} x {machine['settings']['rounds']}",
            f"{row['ours']:.0f}",
            f"{row['float32']:.0f}" if "float32" in row else "the same",
            f"{row['keras']:.0f}",
            f"{row['ours'] / row['keras']:.2f}",
        ]
        for machine in machines
        for row in machine["rows"]
    ]
    head = [
        "network",
        "processor has",
        "pictures x rounds",
        "ours, images/s",
        "in float32",
        "Keras, images/s",
        "ours : Keras",
    ]
    versions = machines[-1]["environment"]
    text = (
        "Training speed over whole epochs, reading of batches, validation and checkpoints included, with pictures of "
        f"224 x 224 pixels on {versions['cores']} cores of shared machines ({versions['cpu']}); Keras "
        f"{versions['keras']} on TensorFlow {versions['tensorflow']} (CPU) is fed from its cached `tf.data` pipeline "
        "and computes in float32. `fit` computes in bfloat16 where the processor has it. Both took turns in one run "
        f"(`python -m tests.benchmarks.throughput --keras PYTHON`).\n\n{measured.table(head, lines)}"
    )
    measured.write("throughput", {"machines": machines}, text)


def instructions() -> str:
    """What decides the speed of arithmetic on this CPU."""
    told = torch.cpu.get_capabilities()
    widest = next(
        (name for key, name in (("avx512_f", "AVX-512"), ("avx2", "AVX2")) if told.get(key)), "no AVX2"
    )
    return f"{widest}, bfloat16" if multiplies_bf16() else widest


def make_data(folder: Path, images: int) -> dict[str, int]:
    """Phantoms as an archive, and the same pictures as one folder a part for Keras. Returns the size of each part."""
    phantom(folder / "phantoms", n=images, modality="ct", size=224)
    counts = {}
    for name, part in load_data([str(folder / "phantoms")], modality="ct", families="known").items():
        counts[name] = len(part)
        for number, row in enumerate(part):
            place = folder / "parts" / name / ("COVID" if row["label"] else "Non-COVID")
            place.mkdir(parents=True, exist_ok=True)
            row["image"].save(place / f"{number}.png")
    return counts


def row(folder: Path, variant: str, counts: dict, settings) -> dict:
    """Seconds an epoch of every side, in turns."""
    recipe = RECIPES[variant]
    sides = [side for side in SIDES if side != "float32" or multiplies_bf16()]
    seconds = {side: [] for side in sides}
    for _ in range(settings.rounds):
        for side in seconds:
            one, many = (
                timed(command(side, folder, variant, recipe, epochs, settings))
                for epochs in (1, 1 + settings.epochs)
            )
            seconds[side].append((many - one) / settings.epochs)
            print(
                f"{variant} {side}: {counts['train'] / seconds[side][-1]:.1f} images/s",
                file=sys.stderr,
                flush=True,
            )
    rates = {side: counts["train"] / statistics.median(values) for side, values in seconds.items()}
    return {"variant": variant, **rates, "epoch_seconds": seconds}


def command(side: str, folder: Path, variant: str, recipe, epochs: int, settings) -> list[str]:
    if side == "keras":
        numbers = map(str, (epochs, recipe.batch, recipe.learning_rate, recipe.l2))
        return [settings.keras, "-c", KERAS, str(folder / "parts"), variant, *numbers]
    flags = {"--data": folder / "phantoms", "--modality": "ct", "--families": "known", "--variant": variant,
             "--epochs": epochs, "--out": folder / "run"}  # fmt: skip
    given = [str(word) for flag in flags.items() for word in flag]
    return [sys.executable, "-m", "train", "fit", *given, *SIDES[side], "--overwrite"]


def timed(arguments: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(arguments, capture_output=True, text=True, env=quiet(), check=False)
    if done.returncode:
        sys.exit(f"{arguments[:4]} failed:\n{done.stderr[-3000:]}")
    return time.perf_counter() - started


def quiet() -> dict[str, str]:
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}


if __name__ == "__main__":
    main()
