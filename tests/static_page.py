"""The static page in a real browser: served from its folder, asked through its file field, read from its
answer.
"""

import functools
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


NEEDED = "needs onnxruntime-web and npm: npm install --no-save --prefix . onnxruntime-web@{}".format(
    json.loads((ROOT / "train/release/static_space/package.json").read_text())["dependencies"][
        "onnxruntime-web"
    ]
)


def runtime() -> Path | None:
    """The npm package onnxruntime-web: ONNXRUNTIME_WEB, or node_modules of the checkout; None where it is
    missing.
    """
    package = Path(os.environ.get("ONNXRUNTIME_WEB", ROOT / "node_modules" / "onnxruntime-web"))
    return package if (package / "package.json").is_file() else None


def chromium() -> str | None:
    """A Chromium of the system, or playwright's own; None where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        return (
            playwright.chromium.executable_path
            if os.path.exists(playwright.chromium.executable_path)
            else None
        )


class Quiet(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[ThreadingHTTPServer]:
    """The folder on a free port of loopback; `shutdown` and `server_close` cut it off early."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def browser(**options: Any) -> Iterator[Any]:
    """A fresh browser context of playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            yield opened.new_context(**options)
        finally:
            opened.close()


def visit(page: Any, server: ThreadingHTTPServer) -> None:
    """Open the page and wait until it works without a network."""
    page.goto(f"http://127.0.0.1:{server.server_port}/")
    page.wait_for_selector("#state[data-state=offline]", timeout=120_000)


def ask(page: Any, file: Path | dict) -> dict[str, Any]:
    """Give the page a picture; returns its decision, probability (None when refused), the guard's
    out-of-distribution score, and words.
    """
    page.evaluate("delete document.getElementById('answer').dataset.decision")
    page.set_input_files("#file", file)
    return read(page)


def read(page: Any) -> dict[str, Any]:
    """The answer that the page shows, once it is there."""
    page.wait_for_selector("#answer[data-decision]", timeout=60_000)
    data = page.evaluate("({...document.getElementById('answer').dataset})")
    number = {name: float(data[name]) if data[name] else None for name in ("probability", "score")}
    return {"decision": data["decision"], **number, "words": page.inner_text("#answer")}
