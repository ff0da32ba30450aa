"""How long an answer of the page takes through HTTP, and whether memory stays flat.

    python -m tests.benchmarks.demo [--requests 60] [--uploads 1000]

One answer is: upload a picture of 1024 x 1024 pixels, ask /heat_map (reading, network, guard, heat map,
overlay), fetch the tinted picture. Writes docs/measured/demo.json and demo.md, and says there how busy the machine was
with other work.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
from PIL import Image

from tests.benchmarks import measured
from tests.served import ROOT, Server, served

CLIENTS = (1, 4, 16)
SIDE = 1024  # pixels of the uploaded picture
KINDS = ("xray", "ct", "detect")
POINTS = 10
"""Of the memory curve; growth is told from its second half, when every cache has been filled."""


def picture(kind: str) -> bytes:
    """A synthetic film or slice at a size as hospitals export it."""
    source = Image.open(ROOT / "demo" / "examples" / f"phantom_{'ct' if kind == 'ct' else 'xray'}_1.png")
    stream = io.BytesIO()
    source.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def answer(url: str, content: bytes, kind: str) -> float:
    """Seconds for one answer."""
    before = time.perf_counter()
    # nothing is encrypted here; by default httpx reads the certificates of all authorities for each client, which takes
    # a core 50 ms, a third as long as the page takes to answer, and takes it from the page on a machine of few cores
    with httpx.Client(base_url=f"{url}/gradio_api", timeout=300, verify=False) as client:
        path = client.post("/upload", files={"files": ("chest.png", content)}).json()[0]
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, kind]
        event = client.post("/call/heat_map", json={"data": data}).json()["event_id"]
        stream = client.get(f"/call/heat_map/{event}").text
        kind_of_end, _, body = stream.strip().rpartition("data: ")
        if "event: complete" not in kind_of_end:
            raise RuntimeError(stream)
        client.get(json.loads(body)[0]["url"]).raise_for_status()
    return time.perf_counter() - before


def timed(server: Server, kind: str, clients: int, requests: int) -> tuple[list[float], float]:
    """Seconds of each answer, and of all together, for so many clients at once."""
    content, before = picture(kind), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        took = list(pool.map(lambda _: answer(server.url, content, kind), range(requests)))
    return took, time.perf_counter() - before


def latency(kind: str, clients: int, took: list[float], wall: float) -> dict:
    """Percentiles in milliseconds, and answers a second, of what `timed` measured."""
    return {
        "kind": kind,
        "clients": clients,
        "n": len(took),
        "p50_ms": round(statistics.median(took) * 1e3),
        "p95_ms": round(statistics.quantiles(took, n=20)[-1] * 1e3),
        "per_second": round(len(took) / wall, 2),
    }


def memory(server: Server, uploads: int, clients: int = 2) -> list[dict]:
    """Resident megabytes at POINTS points on the way through so many uploads."""
    process, content, found = psutil.Process(server.process.pid), picture("xray"), []
    step = max(1, uploads // POINTS)
    with ThreadPoolExecutor(clients) as pool:
        for done in range(step, uploads + 1, step):
            list(pool.map(lambda _: answer(server.url, content, "xray"), range(step)))
            found.append({"uploads": done, "mb": round(process.memory_info().rss / 2**20)})
    return found


def measure(server: Server, requests: int, uploads: int, load: float) -> dict:
    """All figures; `load` is that of the machine before the server was started."""
    first = answer(server.url, picture("xray"), "xray")
    result = {
        "environment": measured.environment("gradio", "torch", "timm"),
        "load_before": round(load, 1),
        "start_s": round(server.started, 1),
        "first_answer_s": round(server.started + first, 1),
    }
    for kind in KINDS:
        answer(server.url, picture(kind), kind)  # warm
    asked = [("xray", clients) for clients in CLIENTS] + [(kind, 1) for kind in KINDS[1:]]
    result["latency"] = [latency(*one, *timed(server, *one, requests)) for one in asked]
    result["memory"] = memory(server, uploads)
    result["left_behind"] = len(server.uploaded())
    return result


def text(result: dict) -> str:
    """The figures as Markdown."""
    words = {"xray": "X-ray", "ct": "CT slice", "detect": "X-ray, kind detected (both models asked)"}
    rows = [
        [
            f"{words[one['kind']]}, {one['clients']} client{'s' if one['clients'] > 1 else ''} at once",
            f"{one['p50_ms']:,} ms",
            f"{one['p95_ms']:,} ms",
            f"{one['per_second']:.1f}",
        ]
        for one in result["latency"]
    ]
    n, cores = result["latency"][0]["n"], result["environment"]["cores"]
    curve = result["memory"]
    half = curve[len(curve) // 2 - 1]
    busy = f", with other work at a load of {result['load_before']}" if result["load_before"] > 0.5 else ""
    return "\n\n".join(
        [
            f"One answer of the page, heat map included: upload of a picture of {SIDE} × {SIDE} pixels, "
            f"judgement, tinted picture fetched, through HTTP on {cores} cores without a GPU{busy} (n = {n} each; "
            "`python -m tests.benchmarks.demo`).",
            measured.table(["warm answers", "p50", "p95", "answers a second"], rows),
            f"From the start of the process to the page {result['start_s']} s, to the first answer "
            f"{result['first_answer_s']} s. Memory after {half['uploads']:,} uploads {half['mb']:,} MB, "
            f"after {curve[-1]['uploads']:,} uploads {curve[-1]['mb']:,} MB.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency and memory of the web page.")
    parser.add_argument(
        "--model", type=Path, action="append", help="hub folder (default: the embedded models)"
    )
    parser.add_argument("--requests", type=int, default=60, help="answers for each row")
    parser.add_argument("--uploads", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=measured.FOLDER)
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory() as uploads,
        served(Path(uploads), models=chosen.model or ()) as server,
    ):
        result = measure(server, chosen.requests, chosen.uploads, load)
    measured.write("demo", result, text(result), chosen.out)


if __name__ == "__main__":
    main()
