"""Who is let through: hosts, origins, routes, room on the disk, places in the queue, log-ins."""

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.served import ROOT

sys.path.insert(0, str(ROOT / "demo"))  # as Python does for `python demo/app.py`

import gate
from gate import Gate
from uploads import Uploads

HERE = "http://127.0.0.1:7860"


async def anything(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.headers.get("x-forwarded-for", "nobody"))


async def login(request: Request) -> JSONResponse:
    return JSONResponse({}, 200 if (await request.body()) == b"right" else 400)


async def upload(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def behind(**settings: Any) -> TestClient:
    """A server behind a gate that listens on loopback, unless settings say otherwise."""
    routes = [
        Route("/login", login, methods=["POST"]),
        Route("/gradio_api/upload", upload, methods=["POST"]),
        Route("/{path:path}", anything, methods=["GET", "POST", "OPTIONS"]),
    ]
    server = Starlette(routes=routes, middleware=[Middleware(Gate, **{"loopback": True, **settings})])
    queue = SimpleNamespace(event_queue_per_concurrency_id={}, active_jobs=[], event_ids_to_events={})
    server.get_blocks = lambda: SimpleNamespace(_queue=queue)
    server.queue = queue
    return TestClient(server, base_url=HERE)


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "localhost", "[::1]:7860"])
def test_a_local_page_answers_to_its_own_names(host):
    assert behind().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "rebound.example",
        "rebound.example:7860",
        "127.0.0.1.example",
        "192.168.1.5:7860",
        "",
        "[",
        "localhost@x",
    ],
)
def test_a_local_page_is_deaf_to_other_names(host):
    """DNS rebinding: the name of a stranger's page that was made to lead here."""
    for ask in (behind().get, behind().post):
        answer = ask("/gradio_api/call/screen", headers={"host": host})
        assert answer.status_code == 403 and "this computer only" in answer.json()["detail"]


def test_a_page_for_others_does_not_check_the_name():
    assert behind(loopback=False).get("/", headers={"host": "ward.hospital.example"}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["https://stranger.example", "http://127.0.0.1:8000", "http://localhost:7860", "null", "file://", ""],
)
@pytest.mark.parametrize(
    "path", ["/gradio_api/upload", "/gradio_api/call/screen", "/gradio_api/queue/join", "/login"]
)
def test_other_web_pages_cannot_post(origin, path):
    answer = behind().post(path, headers={"origin": origin}, content=b"x")
    assert answer.status_code == 403 and "Another web page" in answer.json()["detail"]


def test_the_page_itself_and_programs_can_post():
    client = behind()
    assert client.post("/gradio_api/call/screen", headers={"origin": HERE}).status_code == 200
    assert client.post("/gradio_api/call/screen").status_code == 200
    assert client.get("/", headers={"origin": "https://stranger.example"}).status_code == 200  # a link to it


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=https://example.com/x",
        "/gradio_api/stream/1",
        "/gradio_api/component_server",
        "/gradio_api/vibe-edit/",
        "/gradio_api/process_recording",
        "/gradio_api/dev/reload",
        "/gradio_api/a_route_of_a_later_version",
    ],
)
def test_routes_without_use_are_closed(path):
    assert behind().get(path).status_code == 404
    assert behind().post(path).status_code == 404


@pytest.mark.parametrize(
    "address",
    [
        "http://example.com/x.png",
        "https://example.com/x.png",
        "HTTP://example.com/x.png",
        "http%3A%2F%2Fexample.com/x.png",
        "http%253A%252F%252Fexample.com/x.png",
        "ftp://example.com/x",
    ],
)
def test_an_address_is_no_file(address):
    answer = behind().get(f"/gradio_api/file={address}")
    assert answer.status_code == 403 and "fetches no addresses" in answer.json()["detail"]


def test_forwarded_headers_count_only_behind_a_proxy():
    told = {"x-forwarded-for": "203.0.113.9", "x-forwarded-host": "stranger.example"}
    assert behind().get("/", headers=told).text == "nobody"
    assert behind(proxied=True).get("/", headers=told).text == "203.0.113.9"


def test_one_visitor_cannot_take_every_place():
    client = behind()
    event = SimpleNamespace(request=SimpleNamespace(client=SimpleNamespace(host="testclient")))
    other = SimpleNamespace(request=SimpleNamespace(client=SimpleNamespace(host="another")))
    queue = client.app.queue
    queue.event_queue_per_concurrency_id["x"] = SimpleNamespace(
        queue=[event] * (gate.PLACES - 2) + [other] * 50
    )
    queue.active_jobs = [None, [event]]
    assert client.post("/gradio_api/queue/join").status_code == 200
    queue.active_jobs = [[event], [event]]
    for path in (
        "/gradio_api/queue/join",
        "/gradio_api/call/screen",
        "/gradio_api/run/screen",
        "/gradio_api/api/x",
    ):
        answer = client.post(path)
        assert answer.status_code == 429 and "Wait for an answer" in answer.json()["detail"]
    assert client.get("/gradio_api/queue/data").status_code == 200  # whoever waits still hears


def test_uploads_need_room_and_a_length(tmp_path):
    (tmp_path / "old.png").write_bytes(bytes(600))
    client = behind(uploads=Uploads(tmp_path, kept=99, pause=99, quota=1000))
    assert client.post("/gradio_api/upload", content=bytes(300)).text == "300"
    answer = client.post("/gradio_api/upload", content=bytes(500))
    assert answer.status_code == 507 and "no room" in answer.json()["detail"]
    assert client.post("/gradio_api/upload", content=iter([b"unknown"])).status_code == 411


def test_an_upload_that_stands_still_ends(monkeypatch):
    monkeypatch.setattr(gate, "IDLE_SECONDS", 0.1)
    heard = []

    async def server(scope, receive, send):
        while (message := await receive())["type"] != "http.disconnect":
            heard.append(message["body"])
        heard.append("end")

    messages = [{"type": "http.request", "body": b"half", "more_body": True}]

    async def receive():
        if messages:
            return messages.pop()
        await asyncio.sleep(3600)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/gradio_api/upload",
        "headers": [(b"host", b"localhost"), (b"content-length", b"8")],
    }
    asyncio.run(asyncio.wait_for(Gate(server, loopback=True)(scope, receive, None), 10))
    assert heard == [b"half", "end"]


def test_wrong_log_ins_are_slowed(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(gate.time, "monotonic", lambda: now[0])
    client = behind()
    for _ in range(gate.TRIES):
        assert client.post("/login", content=b"wrong").status_code == 400
    answer = client.post("/login", content=b"right")
    assert answer.status_code == 429 and "Too many wrong log-ins" in answer.json()["detail"]
    now[0] += 1.1
    assert client.post("/login", content=b"wrong").status_code == 400
    now[0] += 1.1
    assert client.post("/login", content=b"right").status_code == 429  # two seconds now
    now[0] += 1
    assert client.post("/login", content=b"right").status_code == 200
    for _ in range(gate.TRIES):
        assert client.post("/login", content=b"wrong").status_code == 400


def test_before_log_in_there_is_the_door_and_nothing_else():
    client = behind()
    client.app.auth, client.app.cookie_id, client.app.tokens = {"ward": "s3cret"}, "1", {"abc": "ward"}
    for path in ("/", "/assets/index.js", "/theme.css", "/gradio_api/login_check", "/favicon.ico"):
        assert client.get(path).status_code == 200, path
    closed = ("/config", "/openapi.json", "/gradio_api/openapi.json", "/gradio_api/info", "/gradio_api/mcp/schema",
              "/gradio_api/mcp/", "/gradio_api/heartbeat/x", "/gradio_api/file=/x", "/monitoring")  # fmt: skip
    for path in closed:
        assert client.get(path).status_code == 401, path
    assert client.post("/gradio_api/cancel").status_code == 401
    client.cookies["access-token-unsecure-1"] = "abc"
    assert client.get("/config").status_code == 200
    client.cookies["access-token-unsecure-1"] = "guessed"
    assert client.get("/config").status_code == 401
