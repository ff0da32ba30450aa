"""What strangers may try on the page over HTTP, against a server in a process of its own that tells whom it asks."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx

from tests.served import ROOT, free_port

ADDRESS = "http://canary.example:8080/CANARY.png"
SECRETS = ("/etc/passwd", "/proc/self/environ", str(ROOT / "pyproject.toml"))
TAG = {"meta": {"_type": "gradio.FileData"}}
KEPT, IDLE, PATIENCE = 6, 2, 4  # seconds; of the page itself minutes, half a minute, half a minute
START = """
import os, sys
sys.modules["uvloop"] = None  # it resolves names in C, past the audit hook
sys.path.insert(0, sys.argv[1])
told = open(sys.argv[3], "a", buffering=1)

def hear(event, given):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        place = given[0] if event.startswith("socket.get") else given[1]
        name = str(place[0] if isinstance(place, tuple) else place)
        if name not in ("127.0.0.1", "127.0.0.2", "localhost", "::1", "None", "0.0.0.0"):
            told.write(f"{event} {name}\\n")

sys.addaudithook(hear)
import app, gate, listeners
app.KEPT_MINUTES, app.SWEEP_SECONDS = float(sys.argv[4]) / 60 + 1 / 60, 1
gate.IDLE_SECONDS, listeners.PATIENCE = float(sys.argv[5]), float(sys.argv[6])
demo, options = app.prepare(["--port", sys.argv[2]])
output = app.keep_quiet()
demo.launch(prevent_thread_lock=True, **options)
print("ready", file=output)
demo.block_thread()
"""
HOOK = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
static void tell(const char *what, const char *name) {
  if (!name || !strncmp(name, "127.", 4) || !strcmp(name, "localhost") || !strcmp(name, "::1") ||
      !strcmp(name, "0.0.0.0")) return;
  FILE *file = fopen(getenv("ASKED"), "a");
  if (file) { fprintf(file, "%s %s\n", what, name); fclose(file); }
}
static void met(const char *what, const struct sockaddr *to) {
  char text[64] = "";
  if (to && to->sa_family == AF_INET) inet_ntop(AF_INET, &((struct sockaddr_in *)to)->sin_addr, text, 64);
  else if (to && to->sa_family == AF_INET6) inet_ntop(AF_INET6, &((struct sockaddr_in6 *)to)->sin6_addr, text, 64);
  else return;
  tell(what, text);
}
int connect(int s, const struct sockaddr *to, socklen_t n) {
  met("connect", to);
  return ((int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "connect"))(s, to, n);
}
ssize_t sendto(int s, const void *b, size_t l, int f, const struct sockaddr *to, socklen_t n) {
  met("sendto", to);
  return ((ssize_t (*)(int, const void *, size_t, int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "sendto"))(
      s, b, l, f, to, n);
}
int getaddrinfo(const char *n, const char *v, const struct addrinfo *h, struct addrinfo **r) {
  tell("getaddrinfo", n);
  return ((int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))dlsym(
      RTLD_NEXT, "getaddrinfo"))(n, v, h, r);
}
struct hostent *gethostbyname(const char *n) {
  tell("gethostbyname", n);
  return ((struct hostent * (*)(const char *)) dlsym(RTLD_NEXT, "gethostbyname"))(n);
}
"""


class Page(NamedTuple):
    """A server under attack: its address, its process, its folder of uploads, whom it asked, what it printed."""

    url: str
    process: subprocess.Popen
    uploads: Path
    asked: Path
    said: Path
    hooked: bool

    def files(self) -> list[Path]:
        """What visitors have left on the disk."""
        return [path for path in self.uploads.rglob("*") if path.is_file() and path.suffix != ".lock"]


@contextlib.contextmanager
def attacked(folder: Path, limit: float = 240) -> Iterator[Page]:
    """Start the page with hooks on connections and look-ups, in Python and, where there is a C compiler, in C."""
    uploads, asked, said, port = folder / "uploads", folder / "asked.txt", folder / "said.txt", free_port()
    uploads.mkdir()
    asked.touch()
    variables = {**os.environ, "GRADIO_TEMP_DIR": str(uploads), "ASKED": str(asked), "OMP_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = str(ROOT)
    variables |= hooked(folder)
    command = [sys.executable, "-c", START, str(ROOT / "demo"), str(port), str(asked), str(KEPT), str(IDLE)]
    with (
        open(said, "wb") as log,
        subprocess.Popen(
            [*command, str(PATIENCE)], stdout=log, stderr=log, env=variables, cwd=ROOT
        ) as process,
    ):
        try:
            until = time.monotonic() + limit
            while b"ready" not in said.read_bytes():
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"the page did not start:\n{said.read_text(errors='replace')}")
                time.sleep(0.2)
            yield Page(f"http://127.0.0.1:{port}", process, uploads, asked, said, "LD_PRELOAD" in variables)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def hooked(folder: Path) -> dict[str, str]:
    """Environment of a process that tells a file ``asked.txt`` whom its C code asks; empty without a C compiler."""
    compiler, hook = shutil.which("cc"), folder / "hook.so"
    if compiler is None:
        return {}
    (folder / "hook.c").write_text(HOOK)
    command = [compiler, "-shared", "-fPIC", "-o", hook, folder / "hook.c", "-ldl"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return {}
    return {"LD_PRELOAD": str(hook), "ASKED": str(folder / "asked.txt")}


def matrix(url: str, picture: Path) -> tuple[int, list[str]]:
    """Ask for addresses and for the server's own files by every route and field; by other names and origins.

    Args:
        url: of the page.
        picture: a file of the server that nobody uploaded.

    Returns:
        Requests, and what should not have happened.
    """
    wrong, count = [], 0
    files = [
        {"path": ADDRESS, **TAG},
        {"path": ADDRESS, "url": ADDRESS, **TAG},
        {"path": str(picture), "url": ADDRESS, **TAG},
    ]
    files += [{"path": secret, **TAG} for secret in (*SECRETS, str(picture), "../../../etc/passwd")]
    with httpx.Client(base_url=f"{url}/gradio_api", timeout=120) as client:
        for file in files:
            given = {
                "screen": [file, "ct", "sensitivity"],
                "heat_map": [file, "ct"],
                "batch": [[file, file], "ct", "sensitivity"],
                "series": [[file], "sensitivity"],
                "model": [file],
            }
            for name, data in given.items():
                asked = client.post(f"/call/{name}", json={"data": data})
                answer = (
                    client.get(f"/call/{name}/{asked.json()['event_id']}").text if asked.is_success else ""
                )
                direct = client.post(f"/run/{name}", json={"data": data})
                count += 3
                if "event: complete" in answer or direct.is_success:
                    wrong.append(f"{name} took {file}")
        for route in ("file=", "proxy=", "file/", "stream/", "deep_link?session_hash=", "component_server/"):
            for target in (
                ADDRESS,
                ADDRESS.replace(":", "%3A"),
                *SECRETS,
                "../../../../etc/passwd",
                "%2e%2e/x",
            ):
                answer = client.get(f"/{route}{target}")
                count += 1
                if answer.is_success:
                    wrong.append(f"GET {route}{target} gave {answer.status_code}")
        for headers in (
            {"host": "rebound.example"},
            {"origin": "https://stranger.example"},
            {"origin": "null"},
        ):
            for route in ("/call/screen", "/upload", "/queue/join", "/run/screen"):
                answer = client.post(route, json={"data": []}, headers=headers)
                count += 1
                if answer.status_code != 403:
                    wrong.append(f"POST {route} with {headers} gave {answer.status_code}")
    return count, wrong


def uploaded(url: str, name: str, content: bytes, client: httpx.Client | None = None) -> str:
    """Upload a file; returns its path on the server."""
    answer = (client or httpx).post(f"{url}/gradio_api/upload", files={"files": (name, content)}, timeout=240)
    answer.raise_for_status()
    return answer.json()[0]


def races(page: Page, count: int) -> list[str]:
    """Upload many files at once while the sweeper goes round; all must be gone in the end."""
    with httpx.Client() as client, ThreadPoolExecutor(8) as pool:
        content = b"CANARY" * 100
        list(
            pool.map(
                lambda n: uploaded(page.url, f"CANARY_{n}.png", content + bytes([n % 256]), client),
                range(count),
            )
        )
    return _swept(page, f"{count} parallel uploads")


def half_open(page: Page, count: int = 20) -> list[str]:
    """Uploads that stand still: they must end, and what came of them must go."""
    place, wrong = urlsplit(page.url), []
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="CANARY_half.png"\r\n\r\n'
        + b"CANARY" * 50_000
    )
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Length: 9000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    sockets = [socket.create_connection((place.hostname, place.port)) for _ in range(count)]
    for one in sockets:
        one.sendall(head.encode() + body)
        one.settimeout(60)
    for one in sockets:
        with contextlib.suppress(ConnectionError):
            try:
                one.recv(100)
            except TimeoutError:
                wrong.append("a half-open upload is not ended")
        one.close()
    return wrong + _swept(page, f"{count} half-open uploads")


def fairness(page: Page, archive: bytes, picture: bytes) -> tuple[float, list[str]]:
    """One visitor asks for 110 batches and listens to none; another one wants an answer meanwhile.

    Returns:
        Seconds that the other one waits, and what should not have happened.
    """
    wrong: list[str] = []
    path = uploaded(page.url, "many.zip", archive)
    with httpx.Client(base_url=f"{page.url}/gradio_api", timeout=240) as greedy:
        data = {"data": [[{"path": path, **TAG}], "ct", "balanced"]}
        statuses = [greedy.post("/call/batch", json=data).status_code for _ in range(110)]
    if set(statuses) - {200, 429}:
        wrong.append(f"one visitor's batches got {sorted(set(statuses))}")
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=f"{page.url}/gradio_api", timeout=240, transport=transport) as other:
        began = time.monotonic()
        own = uploaded(page.url, "own.png", picture, other)
        for name, data in (
            ("screen", [{"path": own, **TAG}, "ct", "balanced"]),
            ("batch", [[{"path": own, **TAG}], "ct", "balanced"]),
        ):
            asked = other.post(f"/call/{name}", json={"data": data})
            if not asked.is_success:
                wrong.append(f"another visitor's {name} got {asked.status_code}")
                continue
            answer = other.get(f"/call/{name}/{asked.json()['event_id']}").text
            if "event: complete" not in answer:
                wrong.append(f"another visitor's {name} got no answer")
        return time.monotonic() - began, wrong


def quiet(page: Page) -> list[str]:
    """Names and addresses in what the server asked and printed."""
    wrong = [f"it asked {line}" for line in sorted(set(page.asked.read_text().splitlines()))]
    said = page.said.read_bytes()
    wrong += [f"it printed {word}" for word in ("CANARY", "canary", "Doe_Jane") if word.encode() in said]
    if page.process.poll() is not None:
        wrong.append(f"it ended with {page.process.returncode}")
    return wrong


def _swept(page: Page, what: str) -> list[str]:
    until = time.monotonic() + 10 * KEPT + 60
    while files := page.files():
        if time.monotonic() > until:
            return [f"{len(files)} files of {what} stay"]
        time.sleep(0.5)
    return []
