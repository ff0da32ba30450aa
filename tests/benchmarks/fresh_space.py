"""The Gradio Space from nothing: its requirements in a new environment, its models from a Hub, its page used.

    python -m tests.benchmarks.fresh_space [--data DATA] [--python PYTHON] [--env DIR] [--shot FILE]

The embedded models are published to a Hub in memory and the Space is made from there, as a folder. Its own
requirements.txt is installed into a new environment and the files it preloads are fetched, as a Space does
when it is built. Then the Hub is taken away, start.py is started in the new environment, and the page is
asked through gradio_client and in Chromium. Each answer is compared with that of `Screener` here. Writes
docs/measured/fresh_space.json and fresh_space.md.
"""

import argparse
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import yaml

from hub_model import Screener, hub_folder
from hub_model.hub_folder import MODALITIES, embedded
from tests import static_page
from tests.benchmarks.measured import environment, table, write
from tests.hub_standin import Hub, running
from train.release import space

STARTS, A_CLASS = 3, 10
EXAMPLES = space.ROOT / "demo" / "examples"
MAKE = """
import sys
from pathlib import Path
from train.release import card, publish, space
out, *runs = map(Path, sys.argv[1:])
for run in runs:
    card.card(run)
    publish.publish(run, f"org/{run.name}", private=False, tag="v1")
space.space("org/page", [f"org/{run.name}@v1" for run in runs], out=out, private=False)
"""
PRELOAD = """
import sys
from huggingface_hub import hf_hub_download
repo, names, revision = sys.argv[1:]
for name in names.split(","):
    hf_hub_download(repo, name, revision=revision)
"""


def make(folder: Path, scratch: Path, hub: Hub) -> None:
    """Publish copies of the default models and make the Space of them; both as a user does."""
    runs = [shutil.copytree(embedded()[name], scratch / "runs" / name) for name in MODALITIES]
    subprocess.run([sys.executable, "-c", MAKE, folder, *runs], env=os.environ | hub.env, check=True)


def install(folder: Path, env: Path, python: str) -> dict:
    """A new environment with what requirements.txt names; its seconds and megabytes."""
    wanted = (folder / "requirements.txt").read_text().splitlines()
    began, new = time.monotonic(), not (env / "bin" / "python").is_file()
    if new:
        subprocess.run([python, "-m", "venv", env], check=True)
    pip = [env / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", folder / "requirements.txt"], check=True)
    size = subprocess.run(["du", "-sm", env], capture_output=True, text=True, check=True).stdout.split()[0]
    seconds = round(time.monotonic() - began) if new else None
    return {"seconds": seconds, "megabytes": int(size), "requirements": wanted}


def preload(folder: Path, env: Path, hub: Hub) -> None:
    """Fetch what the front matter says, into the cache of the Space."""
    head = yaml.safe_load((folder / "README.md").read_text("utf-8").split("---\n")[1])
    for line in head["preload_from_hub"]:
        subprocess.run(
            [env / "bin" / "python", "-c", PRELOAD, *line.split(" ")], env=_clean(hub), cwd=folder, check=True
        )


def _clean(hub: Hub, **more: str) -> dict[str, str]:
    """Variables of the Space's process: nothing of this environment, so neither our package nor our cache."""
    return {"PATH": os.environ["PATH"], "HOME": hub.env["HF_HOME"], **hub.env, **more}


def start(folder: Path, env: Path, variables: dict[str, str], port: int) -> tuple[subprocess.Popen, float]:
    """The page as a process, and the seconds until it answers."""
    began, address = time.monotonic(), f"http://127.0.0.1:{port}"
    server = subprocess.Popen([env / "bin" / "python", "start.py"], cwd=folder, env=variables)
    while server.poll() is None:
        try:
            httpx.get(address, timeout=5).raise_for_status()
            return server, time.monotonic() - began
        except httpx.HTTPError:
            time.sleep(0.2)
    raise SystemExit(f"The Space ended with code {server.returncode} before it answered.")


def pictures(data: Path | None) -> list[Path]:
    """The Space's own examples, and real pictures of both modalities and classes."""
    found, draw = sorted(EXAMPLES.glob("*.png")), random.Random(0)
    for modality in MODALITIES if data else ():
        for label in hub_folder.LABELS:
            found += draw.sample(sorted((data / modality / label).glob("*.jpg")), A_CLASS)
    return found


def compare(address: str, asked: list[Path]) -> dict:
    """What the page answers through its API, against `Screener` of this checkout on the same files."""
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    screeners = {name: Screener.from_pretrained(name) for name in MODALITIES}
    same, differences, seconds = 0, [], []
    for file in asked:
        kind = next((name for name in MODALITIES if name in file.parts or f"_{name}_" in file.name), "xray")
        began = time.monotonic()
        said = client.predict(handle_file(str(file)), kind, "sensitivity", api_name="/screen")
        seconds.append(time.monotonic() - began)
        ours = screeners[kind].screen(file)
        same += said["decision"] == ours.decision
        if ours.probability is not None and said["probability"] is not None:
            differences.append(abs(ours.probability - said["probability"]))
    return {
        "pictures": len(asked), "same_decision": same, "judged": len(differences),
        "largest_difference": max(differences, default=None),
        "seconds_median": round(statistics.median(seconds), 3),
    }  # fmt: skip


def look(address: str, shot: Path | None) -> dict:
    """A visit in Chromium: an example is tried and answered; what was asked of anybody else."""
    asked: list[str] = []
    with static_page.browser(viewport={"width": 1280, "height": 1000}) as context:
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.locator('[data-example="phantom_ct_1"]').click()
        page.wait_for_selector("#answer [data-answer]")
        page.wait_for_timeout(600)  # the fade
        if shot:
            page.screenshot(path=shot, full_page=True)
        answer = page.inner_text("#answer h2").strip()
    elsewhere = sorted({url for url in asked if not url.startswith((address, "data:", "blob:"))})
    return {"answer": answer, "requests_elsewhere": elsewhere}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with xray|ct / COVID|Non-COVID: also real pictures")
    parser.add_argument("--python", default=sys.executable, help="makes the new environment")
    parser.add_argument("--env", type=Path, help="keep the environment here; reused when it is there")
    parser.add_argument("--shot", type=Path, help="save a picture of the page here")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running(Path(name) / "cache") as hub:
        scratch = Path(name)
        folder, env = scratch / "page", chosen.env or scratch / "env"
        make(folder, scratch, hub)
        installed = install(folder, env, chosen.python)
        shutil.rmtree(hub.env["HF_HOME"])  # what publishing cached is not the Space's
        preload(folder, env, hub)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # from here on no Hub: what was preloaded has to do
        alone = _clean(
            hub, GRADIO_SERVER_PORT=str(port), HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9"
        )
        seconds = []
        for turn in range(STARTS):
            server, took = start(folder, env, alone, port)
            seconds.append(round(took, 1))
            try:
                if turn == STARTS - 1:
                    result = use(f"http://127.0.0.1:{port}", server, chosen)
            finally:
                server.terminate()
                server.wait(60)
        report({"installed": installed, "start_seconds": seconds, **result})


def use(address: str, server: subprocess.Popen, chosen: argparse.Namespace) -> dict:
    """Everything that is asked of the running page."""
    found = {"answers": compare(address, pictures(chosen.data))}
    if static_page.chromium():
        found["browser"] = look(address, chosen.shot)
    status = Path(f"/proc/{server.pid}/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        found["peak_megabytes"] = int(lines["VmHWM"].split()[0]) // 1024
    return found


def report(result: dict) -> None:
    """Write the figures and the table of them."""
    installed, answers = result["installed"], result["answers"]
    result["environment"] = environment("torch", "transformers", "timm", "gradio", "gradio_client")
    rows = [
        ["requirements installed", f"{installed['seconds']} s" if installed["seconds"] else "reused",
         f"{installed['megabytes']:,} MB"],
        ["start to first page", f"{statistics.median(result['start_seconds']):.0f} s",
         f"median of {STARTS}; models from the preloaded cache, no Hub in reach"],
        ["same decision as `Screener`", f"{answers['same_decision']} of {answers['pictures']}",
         f"probabilities within {answers['largest_difference']:.1e} ({answers['judged']} judged)"],
        ["one answer by gradio_client", f"{answers['seconds_median'] * 1000:.0f} ms",
         "median, upload included"],
        ["peak memory", f"{result.get('peak_megabytes', 0):,} MB", "both models"],
    ]  # fmt: skip
    if browser := result.get("browser"):
        asked = f"{len(browser['requests_elsewhere'])} requests"
        rows.append(
            ["asked of others in Chromium", asked, f'a synthetic slice was answered "{browser["answer"]}"']
        )
    text = (
        "The Gradio Space as `python -m train space` writes it, started from its own requirements in a new "
        "environment (`python -m tests.benchmarks.fresh_space --data DATA`).\n\n"
    )
    text += table(["what", "measured", "how"], rows)
    write("fresh_space", result, text)


if __name__ == "__main__":
    main()
