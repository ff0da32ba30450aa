"""How far frozen ImageNet features get, by depth, pooling and size, and on collections that were not learnt from.

    python -m tests.benchmarks.frozen DATA RESNET

DATA is the collection, RESNET the safetensors of ImageNet's ResNet50-v2 that `python -m train start` carries over.
Logistic regressions, five folds over families, inside the train and validation splits; the test split is not opened.
Writes docs/measured/frozen_ct.* and frozen_xray.*.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import concatenate_datasets
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from hub_model import hub_folder
from tests.benchmarks import measured
from train.data.dataset import load_data
from train.fit import backbones
from train.fit.batches import BalancedSampler, Batches, read_images
from train.fit.probe import features_of, fit_probe
from train.fit.speed import keep_memory
from train.fit.starting_points import resnetv2_args, start

FOLDS, REPEATS = 5, 2
STRENGTH = 0.02
"""What C = 0.01 on two copies of each picture, as the probe recipes have it, amounts to on one."""
POOL = "fastcatavgmax"  # averages first, then maxima
UNSEEN = ("hannover", "cxnet", "ieee8023")
BOTH = "ieee8023"


class Part:
    """Rows of train and validation with the features of one network: averages (N, D), then maxima too (N, 2 D)."""

    def __init__(self, data: str, init: Path, modality: str, blocks: int, size: int) -> None:
        split = "official" if modality == "ct" else "family"
        parts = load_data([data], modality=modality, split=split, families="known")
        rows = concatenate_datasets([parts["train"], parts["validation"]])
        args = resnetv2_args(blocks) | {"global_pool": POOL}
        build = backbones.build(
            "resnetv2_50", init=init, model_args=args, input_size=size, mean=0.4185, std=0.2822
        )
        config = hub_folder.make_config("resnetv2_50", args, build.pretrained_cfg, build.model.num_features)
        cfg = config["pretrained_cfg"]
        images = read_images(rows, hub_folder.transform_of(config), cfg, f"{modality} at {size}")
        network = build.model.to(memory_format=torch.channels_last)
        everything = torch.arange(len(images))
        both = features_of(network, images, everything, Batches(cfg, modality)).numpy()
        self.pooled = {"avg": both[:, : both.shape[1] // 2], "avg and max": both}
        self.labels, self.sources = images.labels.numpy(), images.sources
        self.families = np.array(rows["family"])

    def scores(self, pool: str, learn: np.ndarray, judge: np.ndarray) -> np.ndarray:
        """Log-odds of the rows ``judge`` by a regression on the rows ``learn``."""
        features = self.pooled[pool]
        weights = BalancedSampler(
            torch.from_numpy(self.labels[learn]), self.sources[learn], True, 0
        ).weights.numpy()
        slope, intercept = fit_probe(features[learn], self.labels[learn], weights, STRENGTH)
        return features[judge] @ slope + intercept

    def folds(self, seed: int):
        kinds = np.char.add(self.sources.astype(str), self.labels.astype(str))
        return StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(kinds, kinds, self.families)

    def crossed(self, pool: str, seed: int = 0, without: str | None = None) -> np.ndarray:
        """Each row's log-odds by the fold that did not learn it, nor anything of the source ``without``."""
        found = np.zeros(len(self.labels))
        for learn, judge in self.folds(seed):
            found[judge] = self.scores(pool, learn[self.sources[learn] != without], judge)
        return found


def ct(data: str, inits: dict[int, Path]) -> None:
    rows = []
    for size in (224, 320):
        for blocks, init in inits.items():
            part = Part(data, init, "ct", blocks, size)
            for pool in part.pooled:
                aurocs = [
                    roc_auc_score(part.labels, part.crossed(pool, seed=seed)) for seed in range(REPEATS)
                ]
                rows.append(
                    {"size": size, "blocks": blocks, "pool": pool, "n": len(part.labels), "auroc": aurocs}
                )
    cells = [
        [f"{r['size']} px", str(r["blocks"]), r["pool"], f"{np.mean(r['auroc']):.3f}",
         f"{min(r['auroc']):.3f} to {max(r['auroc']):.3f}"] for r in rows
    ]  # fmt: skip
    text = (
        f"Frozen ImageNet features of {rows[0]['n']} CT slices (train and validation splits; test is not opened): "
        f"AUROC of a logistic regression, {FOLDS} folds over families, mean and range of {REPEATS} ways of folding "
        "(`python -m tests.benchmarks.frozen DATA RESNET`).\n\n"
        + measured.table(["picture", "blocks in stage 3", "pooling", "AUROC", "range"], cells)
    )
    measured.write("frozen_ct", {"rows": rows, "environment": measured.environment("torch", "timm")}, text)


def xray(data: str, inits: dict[int, Path]) -> None:
    rows = []
    for blocks, init in inits.items():
        part = Part(data, init, "xray", blocks, 224)
        both, positive = part.sources == BOTH, part.labels == 1
        all_seen = part.crossed("avg")
        row = {"blocks": blocks, "n": len(part.labels), "all": roc_auc_score(part.labels, all_seen)}
        row[f"inside {BOTH}"] = roc_auc_score(part.labels[both], all_seen[both])
        for source in UNSEEN:
            found = part.crossed("avg", without=source)
            mask = both if source == BOTH else (part.sources == source) | (both & ~positive)
            row[f"{source} unseen"] = roc_auc_score(part.labels[mask], found[mask])
        rows.append(row)
    measured.write(
        "frozen_xray", {"rows": rows, "environment": measured.environment("torch", "timm")}, told(rows)
    )


def told(rows: list[dict]) -> str:
    """The table of X-rays, from its rows."""
    figures = [key for key in rows[0] if key not in ("blocks", "n")]
    cells = [[str(row["blocks"]), *(f"{row[key]:.3f}" for key in figures)] for row in rows]
    return (
        f"Frozen ImageNet features of {rows[0]['n']:,} X-rays (train and validation splits; test is not opened): "
        f"AUROC of a logistic regression, {FOLDS} folds over families. *Unseen*: nothing of that source was learnt "
        f"from; hannover and cxnet, which hold COVID only, stand against the Non-COVID films of {BOTH} "
        "(`python -m tests.benchmarks.frozen DATA RESNET`).\n\n"
        + measured.table(["blocks in stage 3", *figures], cells)
    )


def main() -> None:
    data, resnet = sys.argv[1], Path(sys.argv[2])
    keep_memory()
    with tempfile.TemporaryDirectory() as scratch:
        inits = {blocks: start(resnet, Path(scratch) / f"{blocks}.safetensors", blocks) for blocks in (1, 4)}
        ct(data, inits)
        xray(data, inits)


if __name__ == "__main__":
    main()
