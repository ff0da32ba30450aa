"""Size and speed of the documented networks and of the tested stock backbones.

    python -m tests.benchmarks.backbones [--runs 30]

Parameters with a head of two classes; multiply-accumulates of one picture at the architecture's own size, counted by
torch; milliseconds of processor time for one picture on one thread in float32, the median of RUNS after three to
warm up. Processor time leaves out what other processes take, and the networks take turns, so that whatever else the
machine does meets all of them. Writes docs/measured/backbones.json and backbones.md.
"""

import argparse
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from hub_model.covid_cnn import VARIANTS
from tests.benchmarks import measured
from train.fit import backbones

WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each network")
    args = parser.parse_args()
    torch.set_num_threads(1)
    networks = {name: backbones.build(name) for name in (*VARIANTS, *backbones.TESTED)}
    rows = {name: size(network) for name, network in networks.items()}
    for name, milliseconds in times(networks, args.runs).items():
        rows[name]["milliseconds"] = milliseconds
    result = {
        "environment": measured.environment("torch", "timm"),
        "threads": 1,
        "runs": args.runs,
        "networks": rows,
    }
    cells = [
        [f"`{name}`", str(row["side"]), f"{row['parameters']:,}", f"{row['macs'] / 1e6:,.0f}",
         f"{statistics.median(row['milliseconds']):.0f}"]
        for name, row in rows.items()
    ]  # fmt: skip
    text = (
        "What the contract test asks its questions of: parameters with two classes, multiply-accumulates (millions) "
        "and milliseconds of processor time (median, one thread, float32) for one picture of the architecture's own "
        f"size, on {result['environment']['cpu']} with torch {result['environment']['torch']} "
        "(`python -m tests.benchmarks.backbones`).\n\n"
        + measured.table(["network", "pixels a side", "parameters", "MMACs", "ms"], cells)
    )
    measured.write("backbones", result, text)


def size(network: backbones.Network) -> dict:
    """Side in pixels, parameters and multiply-accumulates of one picture."""
    shape = network.pretrained_cfg["input_size"]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.model.eval()(torch.zeros(1, *shape))
    parameters = sum(p.numel() for p in network.model.parameters())
    return {"side": shape[1], "parameters": parameters, "macs": counter.get_total_flops() // 2}


@torch.inference_mode()
def times(networks: dict[str, backbones.Network], runs: int) -> dict[str, list[float]]:
    """Milliseconds of each run of each network."""
    pictures = {
        name: torch.rand(1, *network.pretrained_cfg["input_size"]) for name, network in networks.items()
    }
    found = {name: [] for name in networks}
    for turn in range(WARM_UP + runs):
        for name, network in networks.items():
            started = time.process_time()
            network.model(pictures[name])
            if turn >= WARM_UP:
                found[name].append(1e3 * (time.process_time() - started))
    return found


if __name__ == "__main__":
    main()
