"""The Gradio Space from nothing: its requirements in a new environment, its model from a Hub, its page used.

    python -m tests.benchmarks.fresh_space RUN --picture FILE [--python PYTHON] [--env DIR] [--shot FILE]

RUN (with its card) is published to a Hub in memory, the Space is made from there as a folder, its
requirements.txt is installed into a new environment, start.py is started in it, and the page is asked through
gradio_client and, where there is a Chromium, looked at. Times go to standard output.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from tests import static_page
from tests.hub_standin import running

MAKE = """
import sys
from train import publish, space
publish.publish(sys.argv[1], "org/model", private=False, tag="v1")
from pathlib import Path
space.space("org/page", ["org/model@v1"], out=Path(sys.argv[2]), private=False)
"""


def ask(address: str, picture: Path) -> dict:
    """The answer of the endpoint /screen."""
    from gradio_client import Client, handle_file

    return Client(address, verbose=False).predict(
        handle_file(str(picture)), "detect", "sensitivity", api_name="/screen"
    )


def look(address: str, shot: Path) -> None:
    with static_page.browser(viewport={"width": 1200, "height": 900}) as context:
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("h1")
        page.screenshot(path=shot)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable, help="makes the new environment")
    parser.add_argument("--env", type=Path, help="keep the environment here; reused when it is there")
    parser.add_argument("--shot", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, running(Path(scratch) / "hub") as hub:
        folder, env = Path(scratch) / "page", chosen.env or Path(scratch) / "env"
        command = [sys.executable, "-c", MAKE, chosen.run, folder]
        subprocess.run(command, env=os.environ | hub.env, check=True)
        began = time.monotonic()
        if not (env / "bin" / "python").is_file():
            subprocess.run([chosen.python, "-m", "venv", env], check=True)
        pip = [env / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", "requirements.txt"], cwd=folder, check=True)
        print(f"requirements installed in {time.monotonic() - began:.0f} s", flush=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        began, address = time.monotonic(), f"http://127.0.0.1:{port}"
        clean = {"PATH": os.environ["PATH"], "GRADIO_SERVER_PORT": str(port), **hub.env}
        server = subprocess.Popen([env / "bin" / "python", "start.py"], cwd=folder, env=clean)
        try:
            while server.poll() is None:
                try:
                    httpx.get(address, timeout=5).raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.5)
            print(f"page served {time.monotonic() - began:.0f} s after the start", flush=True)
            print(ask(address, chosen.picture), flush=True)
            if chosen.shot and static_page.chromium():
                look(address, chosen.shot)
        finally:
            server.terminate()
            server.wait(30)


if __name__ == "__main__":
    main()
