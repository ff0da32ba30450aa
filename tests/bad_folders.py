"""Hub folders as strangers might make them, each with a word of its refusal: for the tests, and for the campaign."""

import json

import timm
import torch
from safetensors.torch import load_file, save_file

from hub_model import hub_folder

ARCHITECTURE = "mobilenetv3_small_050"
CFG = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.25] * 3}

SCREENING = {"modality": "ct", "operating_points": {"sensitivity": {"threshold": 0.3, "target": "t"}}}
LIMITS = {"distance": 1.0, "residual": 1.0, "foreign": 0.5}
GUARD = {"mean": torch.arange(3.0), "scale": torch.ones(3), "basis": torch.eye(3)[:2], "deviation": torch.ones(2),
         "foreign": torch.zeros(3), "bias": torch.tensor(0.0)}  # fmt: skip


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(ARCHITECTURE, num_classes=2).eval()


def save(path, model=None, **changes):
    arguments = {
        "architecture": ARCHITECTURE,
        "model_args": {},
        "pretrained_cfg": CFG,
        "screening": SCREENING,
        "graph": False,
    }
    return hub_folder.save(path, model or network(), **(arguments | changes))


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def damage_missing(folder):
    state = load_file(folder / hub_folder.WEIGHTS)
    state.pop("classifier.weight")
    save_file(state, folder / hub_folder.WEIGHTS)
    edit(folder / hub_folder.SCREENING, weights_sha256=None)


def damage_renamed(folder):
    state = load_file(folder / hub_folder.WEIGHTS)
    state["head.weight"] = state.pop("classifier.weight")
    save_file(state, folder / hub_folder.WEIGHTS)
    edit(folder / hub_folder.SCREENING, weights_sha256=None)


def damage_extra(folder):
    state = load_file(folder / hub_folder.WEIGHTS)
    state["classifier.scale"] = torch.ones(2)
    save_file(state, folder / hub_folder.WEIGHTS)
    edit(folder / hub_folder.SCREENING, weights_sha256=None)


def damage_sizes(folder):
    edit(folder / hub_folder.CONFIG, model_args={"channel_multiplier": 1e9})


def damage_deep(folder):
    (folder / hub_folder.SCREENING).write_text('{"a":' * 100_000)


def damage_link(folder):
    (folder / hub_folder.SCREENING).unlink()
    (folder / hub_folder.SCREENING).symlink_to("/etc/passwd")


def damage_guard_gone(folder):
    edit(folder / hub_folder.SCREENING, guard={"limits": LIMITS})


def figures(**told):
    return lambda f: (f / hub_folder.EVALUATION).write_text(json.dumps(told))


def points(**changes):
    return lambda f: edit(f / hub_folder.SCREENING, operating_points={"a": {"threshold": 0.3} | changes})


def preprocess(**changes):
    def change(folder):
        cfg = json.loads((folder / hub_folder.CONFIG).read_text())["pretrained_cfg"]
        edit(folder / hub_folder.CONFIG, pretrained_cfg=cfg | changes)

    return change


def header(change):
    """Rewrite the header of the weights, the tensors as they are."""

    def damage(folder):
        content = (folder / hub_folder.WEIGHTS).read_bytes()
        length = int.from_bytes(content[:8], "little")
        told = json.loads(content[8 : 8 + length])
        change(told)
        new = json.dumps(told).encode()
        (folder / hub_folder.WEIGHTS).write_bytes(
            len(new).to_bytes(8, "little") + new + content[8 + length :]
        )

    return damage


def damage_shape(folder):
    state = load_file(folder / hub_folder.WEIGHTS)
    state["classifier.weight"] = torch.zeros(3, 7)
    save_file(state, folder / hub_folder.WEIGHTS)
    edit(folder / hub_folder.SCREENING, weights_sha256=None)


def damage_nan(folder):
    state = load_file(folder / hub_folder.WEIGHTS)
    state["classifier.bias"][0] = float("nan")
    save_file(state, folder / hub_folder.WEIGHTS)


def damage_other_weights(folder):
    state = load_file(folder / hub_folder.WEIGHTS)
    state["classifier.bias"] += 1
    save_file(state, folder / hub_folder.WEIGHTS)


def damage_pickle(folder):
    (folder / hub_folder.WEIGHTS).rename(folder / "pytorch_model.bin")


DAMAGES = {
    "missing tensors": (damage_missing, "1 tensors missing"),
    "renamed tensors": (damage_renamed, r"missing .*classifier.weight.* unexpected .*head.weight"),
    "extra tensors": (damage_extra, r"0 tensors missing \[\], 1 unexpected \['classifier.scale'\]"),
    "another shape": (damage_shape, r"\(3, 7\), expected"),
    "not a number": (damage_nan, "NaN or infinite values in .*classifier.bias"),
    "weights changed behind the thresholds": (damage_other_weights, "SHA-256 differs"),
    "a pickle instead": (damage_pickle, "pytorch_model.bin, but pickles can run code and are never opened"),
    "truncated": (
        lambda f: (f / hub_folder.WEIGHTS).write_bytes((f / hub_folder.WEIGHTS).read_bytes()[:999]),
        "no readable safetensors",
    ),
    "no weights": (lambda f: (f / hub_folder.WEIGHTS).unlink(), "has no model.safetensors"),
    "no config": (lambda f: (f / hub_folder.CONFIG).unlink(), "has no config.json"),
    "broken config": (lambda f: (f / hub_folder.CONFIG).write_text("{"), "cannot be read"),
    "config of a list": (lambda f: (f / hub_folder.CONFIG).write_text("[]"), "not an object"),
    "labels the other way round": (
        lambda f: edit(f / hub_folder.CONFIG, label_names=["COVID", "Non-COVID"]),
        "COVID being class 1",
    ),
    "unknown architecture": (
        lambda f: edit(f / hub_folder.CONFIG, architecture="covnet"),
        "unknown architecture",
    ),
    "asks for code": (
        lambda f: edit(f / hub_folder.CONFIG, architecture="evil", auto_map={"AutoConfig": "evil.Config"}),
        "asks for remote code, which this package never runs",
    ),
    "another Hub behind the name": (
        lambda f: edit(f / hub_folder.CONFIG, architecture="hf-hub:evil/model"),
        "unknown architecture",
    ),
    "asks to unpickle": (
        lambda f: edit(f / hub_folder.CONFIG, model_args={"checkpoint_path": "evil.pth"}),
        "may not set checkpoint_path",
    ),
    "arguments timm does not know": (
        lambda f: edit(f / hub_folder.CONFIG, model_args={"depth_of_thought": 3}),
        "cannot build",
    ),
    "no screening": (lambda f: (f / hub_folder.SCREENING).unlink(), "has no screening.json"),
    "another modality": (lambda f: edit(f / hub_folder.SCREENING, modality="mri"), "modality 'mri'"),
    "asks for more than the weights hold": (damage_sizes, "model_args ask for 1e"),
    "figures that are a list": (
        lambda f: (f / hub_folder.EVALUATION).write_text("[]"),
        "evaluation.json holds a list",
    ),
    "a test part without figures": (figures(test={"at": {}}), "evaluation.json has no 'test.auroc'"),
    "a figure that is a word": (
        figures(audits={"x": [{"metric": "flips", "value": "few", "n": 3}]}),
        r"audits.x\[0\] .*; expected a measure",
    ),
    "nested without end": (damage_deep, "nested too deeply"),
    "a link out of the folder": (damage_link, "leads out of the model's folder"),
    "limits without a guard": (damage_guard_gone, "but no guard.safetensors"),
    "no operating point": (
        lambda f: edit(f / hub_folder.SCREENING, operating_points={}),
        "at least one operating",
    ),
    "points of a list": (
        lambda f: edit(f / hub_folder.SCREENING, operating_points=[]),
        "at least one operating",
    ),
    "a point that is no object": (
        lambda f: edit(f / hub_folder.SCREENING, operating_points={"a": 0.5}),
        "operating_points.a 0.5; expected an object",
    ),
    "a point without threshold": (
        lambda f: edit(f / hub_folder.SCREENING, operating_points={"a": {}}),
        "no 'operating_points.a.threshold'",
    ),
    "threshold of a text": (points(threshold="0.5"), "finite number from 0 to 1"),
    "threshold NaN": (points(threshold=float("nan")), "NaN, which is no number"),
    "threshold beyond 1": (points(threshold=1.5), "finite number from 0 to 1"),
    "threshold true": (points(threshold=True), "finite number from 0 to 1"),
    "band the wrong way": (points(abstain=[0.5, 0.2]), r"\[low, high\] within 0 to 1"),
    "band of one": (points(abstain=[0.5]), r"\[low, high\] within 0 to 1"),
    "limits that are no numbers": (
        lambda f: edit(f / hub_folder.SCREENING, guard={"limits": {"distance": None}}),
        "positive finite numbers for distance",
    ),
    "guard that is no object": (
        lambda f: edit(f / hub_folder.SCREENING, guard=[]),
        "guard .*expected an object",
    ),
    "a hash that is none": (
        lambda f: edit(f / hub_folder.SCREENING, weights_sha256=5),
        "64 hexadecimal digits",
    ),
    "a picture of 30,000 pixels": (preprocess(input_size=[3, 30000, 30000]), "32 to 1024 pixels"),
    "a tiny crop": (preprocess(crop_pct=1e-9), "crop_pct"),
    "another crop": (preprocess(crop_mode="center"), "crop_mode"),
    "a deviation of 0": (preprocess(std=[0, 0, 0]), "three numbers"),
    "an interpolation nobody has": (preprocess(interpolation="magic"), "one of 'nearest'"),
    "no size": (preprocess(input_size=None), "input_size None"),
    "arguments of a list": (lambda f: edit(f / hub_folder.CONFIG, model_args=[1]), "expected an object"),
    "an architecture of a list": (
        lambda f: edit(f / hub_folder.CONFIG, architecture=["x"]),
        "expected a text",
    ),
    "a header of a list": (
        lambda f: (f / hub_folder.WEIGHTS).write_bytes(b"\2\0\0\0\0\0\0\0[]"),
        "no object",
    ),
    "a header longer than the file": (
        lambda f: (f / hub_folder.WEIGHTS).write_bytes(b"\xff" * 8 + b"{}"),
        "longer than the file",
    ),
    "a tensor larger than the file": (
        header(lambda told: told["classifier.weight"].update(shape=[10**9, 10**9])),
        "does not lie where",
    ),
    "tensors that overlap": (
        header(lambda told: told["classifier.bias"].update(data_offsets=[0, 8])),
        "does not lie where",
    ),
    "a type nobody has": (
        header(lambda told: told["classifier.bias"].update(dtype="F8_E4M3")),
        "has the type F8",
    ),
    "a later format": (lambda f: edit(f / hub_folder.SCREENING, format=99), "newer covid-xct"),
}
