"""How long an answer takes through HTTP, and whether memory stays flat.

    python tests/benchmarks/demo.py [--model FOLDER]... [--requests 40] [--uploads 1000]

One answer is: upload the picture, ask /heat_map (reading, network, guard, heat map, overlay), fetch the
tinted picture. Prints Markdown. Say beside the figures what else the machine was doing.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.made_run import make_run, pictures
from tests.served import Server, served

CLIENTS = (1, 4, 16)
SIDE = 1024  # pixels of the uploaded picture


def answer(url: str, content: bytes, kind: str) -> float:
    """Seconds for one answer."""
    before = time.perf_counter()
    with httpx.Client(base_url=f"{url}/gradio_api", timeout=300) as client:
        path = client.post("/upload", files={"files": ("chest.png", content)}).json()[0]
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, kind]
        event = client.post("/call/heat_map", json={"data": data}).json()["event_id"]
        stream = client.get(f"/call/heat_map/{event}").text
        kind_of_end, _, body = stream.strip().rpartition("data: ")
        if "event: complete" not in kind_of_end:
            raise RuntimeError(stream)
        client.get(json.loads(body)[0]["url"]).raise_for_status()
    return time.perf_counter() - before


def latency(
    server: Server, content: bytes, kind: str, clients: int, requests: int
) -> tuple[float, float, float]:
    """Median and 95th percentile in milliseconds, and answers per second, for so many clients at once."""
    before = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        took = list(pool.map(lambda _: answer(server.url, content, kind), range(requests)))
    wall = time.perf_counter() - before
    return statistics.median(took) * 1e3, statistics.quantiles(took, n=20)[-1] * 1e3, requests / wall


def memory(server: Server, content: bytes, kind: str, uploads: int) -> list[tuple[int, float]]:
    """(uploads so far, resident megabytes) at ten points on the way."""
    process, found = psutil.Process(server.process.pid), []
    for done in range(1, uploads + 1):
        answer(server.url, content, kind)
        if done % max(1, uploads // 10) == 0:
            found.append((done, process.memory_info().rss / 2**20))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency and memory of the web page.")
    parser.add_argument(
        "--model", type=Path, action="append", help="hub folder (default: the embedded models)"
    )
    parser.add_argument(
        "--invented", action="store_true", help="an untrained small network instead of a model"
    )
    parser.add_argument("--kind", default="xray", choices=("xray", "ct"))
    parser.add_argument("--picture", type=Path, help="picture to upload (default: a drawn chest)")
    parser.add_argument("--requests", type=int, default=40, help="answers for each number of clients")
    parser.add_argument("--uploads", type=int, default=1000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        picture = chosen.picture or Path(folder) / "chest.png"
        if not chosen.picture:
            next(pictures(1)).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(picture)
        uploads = Path(folder) / "uploads"
        uploads.mkdir()
        models = (
            [make_run(Path(folder) / chosen.kind, chosen.kind)] if chosen.invented else chosen.model or ()
        )
        with served(uploads, models=models) as server:
            report(server, picture.read_bytes(), chosen)


def report(server: Server, content: bytes, chosen: argparse.Namespace) -> None:
    first = answer(server.url, content, chosen.kind)
    print(f"Load of the machine at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.\n")
    print(f"From the start of the process to the address: {server.started:.1f} s;")
    print(f"to the first answer: {server.started + first:.1f} s.\n")
    print("| clients at once | p50, ms | p95, ms | answers a second |\n| ---: | ---: | ---: | ---: |")
    for clients in CLIENTS:
        median, late, rate = latency(server, content, chosen.kind, clients, chosen.requests)
        print(f"| {clients} | {median:.0f} | {late:.0f} | {rate:.1f} |", flush=True)
    print("\n| uploads | resident memory, MB |\n| ---: | ---: |")
    for done, size in memory(server, content, chosen.kind, chosen.uploads):
        print(f"| {done} | {size:.0f} |", flush=True)
    print(f"\nUploads that lie on the server at the end: {len(server.uploaded())}.")


if __name__ == "__main__":
    main()
