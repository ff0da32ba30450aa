"""The web page in a process of its own, for the tests, the benchmarks and the screenshots."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START_LIMIT = 180  # seconds; a cold disk reads torch slowly, and the machine may be busy
STOP_LIMIT = 90


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Server:
    """A running page.

    Attributes:
        url: its address, without a slash at the end.
        process: the server.
        uploads: folder that holds the folder of uploads.
        models: hub folders that it serves; none for the embedded ones.
        said: all it has printed so far, line by line.
        started: seconds from the start of the process to the line that names the address.
    """

    url: str
    process: subprocess.Popen
    uploads: Path
    models: Sequence[Path]
    said: list[str] = field(default_factory=list)
    started: float = 0.0

    def uploaded(self) -> list[Path]:
        """Every uploaded file that lies on the server."""
        return [path for path in self.uploads.rglob("*") if path.is_file()]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(STOP_LIMIT)


@contextlib.contextmanager
def served(
    uploads: Path,
    *,
    models: Sequence[Path] = (),
    port: int | None = None,
    python: str | Path = sys.executable,
    checkout: Path = ROOT,
    **environment: str,
) -> Iterator[Server]:
    """Start the page and stop it again.

    Args:
        uploads: an empty folder for its uploads.
        models: hub folders; by default the embedded models.
        port: by default a free one.
        python: that runs it.
        checkout: whose page it is.
        environment: further variables.
    """
    port = port or free_port()
    command = [str(python), str(checkout / "demo" / "app.py"), "--port", str(port)]
    command += [f"--model={model}" for model in models]
    if environment.pop("mcp", None):
        command.append("--mcp")
    variables = {**os.environ, "GRADIO_TEMP_DIR": str(uploads), "PYTHONUNBUFFERED": "1", **environment}
    before = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables, cwd=checkout
    ) as process:
        server = Server(f"http://127.0.0.1:{port}", process, uploads, models)
        ready = threading.Event()

        def listen() -> None:
            for line in process.stdout:
                server.said.append(line)
                if server.url in line:
                    server.started = time.monotonic() - before
                    ready.set()
            ready.set()

        threading.Thread(target=listen, daemon=True).start()
        try:
            if not ready.wait(START_LIMIT) or process.poll() is not None or not server.started:
                raise RuntimeError("the page did not start:\n" + "".join(server.said))
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_LIMIT)
                except subprocess.TimeoutExpired:
                    process.kill()
