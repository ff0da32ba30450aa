"""Who may ask this server for what: hosts and origins, addresses, room on the disk, places in the queue, log-in.

Gradio answers whoever reaches it. On a visitor's own computer that is every web page open in the browser, and some of
its routes fetch addresses that a stranger names. This middleware stands before all of it.
"""

import asyncio
import logging
import re
import time
from collections import OrderedDict
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import unquote, urlsplit

import safehttpx
from listeners import CALLER, Caller, HungUp, Listeners, queued, visitor
from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uploads import Uploads

API = "/gradio_api/"
ROUTES = (
    "api", "app_id", "call", "cancel", "config", "file=", "heartbeat", "info", "login_check", "mcp", "openapi.json",
    "queue", "reset", "run", "startup-events", "theme.css", "token", "upload", "upload_progress", "user",
)  # fmt: skip
"""What the page and programs need of Gradio's interface; every other route is closed, whatever later versions add."""
OPEN = ("/", "/login", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/pwa_icon")
OPEN_FOLDERS = ("/assets/", "/static/", "/svelte/", "/pwa_icon/")
OPEN_ROUTES = ("app_id", "login_check", "startup-events", "theme.css", "token", "user")
"""What can be asked for before log-in."""
WORK = re.compile(rf"{API}(call|run|api|queue/join)(/|$)")
DIRECT = re.compile(rf"{API}(run|api)/")
"""Work whose answer comes by the same connection; of other work it is fetched by one of the next."""
ANSWERS = re.compile(rf"{API}(queue/data|call/(v2/)?[^/]+/(?P<event>[^/]+))$")
FORWARDED = {b"forwarded", b"x-real-ip", b"x-original-host", b"x-original-url", b"x-rewrite-url"}
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
PLACES = 25
"""In the queue of 100, that one visitor may have."""
IDLE_SECONDS = 30
"""Without a byte, after which an upload is over."""
TRIES, FORGET_SECONDS, LONGEST_WAIT = 5, 900, 300
"""Wrong log-ins that cost nothing; seconds after which they are forgotten; most seconds to wait."""
REMEMBERED = 10_000  # visitors with wrong log-ins; more push out the oldest

log = logging.getLogger("covid_xct.demo")


def fetch_nothing() -> None:
    """Stop Gradio from fetching addresses, in any field or route.

    All of its fetchers check and ask through `safehttpx`, which would also put the host's name to a public
    DNS-over-HTTPS server.
    """

    async def refused(*_: Any, **__: Any) -> None:
        raise PermissionError("This server fetches no addresses. Upload the file itself.")

    for name in ("get", "async_validate_url", "async_resolve_hostname_google"):
        getattr(safehttpx, name)  # a version that has other doors is not served
        setattr(safehttpx, name, refused)


class Gate:
    """ASGI middleware that lets through what this page is for.

    Args:
        app: what stands behind.
        uploads: the folder of uploads, with its limit.
        loopback: whether the server listens on this computer only; then only its own names are known as hosts.
        proxied: whether a proxy that can be trusted stands before it: its headers count, and it checks the host.
    """

    def __init__(
        self, app: ASGIApp, uploads: Uploads | None = None, loopback: bool = False, proxied: bool = False
    ) -> None:
        self.app, self.uploads, self.loopback, self.proxied = app, uploads, loopback, proxied
        self._listeners = Listeners()
        self._promised = 0  # bytes of uploads that are under way
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        if not self.proxied:
            kept = [(name, value) for name, value in scope["headers"] if not _forwarded(name)]
            scope = {**scope, "headers": kept}
        problem = self._stranger(scope) or self._closed(scope)
        if problem is None and scope["type"] == "websocket":
            problem = 403, "This server has no websockets."
        if problem is None:
            path, method = _path(scope), scope["method"]
            if path == f"{API}upload" and method == "POST":
                return await self._upload(scope, receive, send)
            if path == "/login" and method == "POST":
                return await self._login(scope, receive, send)
            if WORK.match(path) and method == "POST":
                problem = self._crowding(scope)
                if problem is None:
                    return await self._work(scope, receive, send)
            if method == "GET" and (answers := ANSWERS.match(path)):
                return await self._answers(answers["event"], scope, receive, send)
        if problem is None:
            return await self.app(scope, receive, send)
        await _answer(*problem)(scope, receive, send)

    def _stranger(self, scope: Scope) -> tuple[int, str] | None:
        """Refuse requests that come by a name that is not this computer's, or from another web page."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.loopback and not self.proxied and _name(host) not in LOOPBACK:
            return (
                403,
                "This page is served to this computer only. Open it as http://127.0.0.1 with its port.",
            )
        origin = headers.get("origin")
        asks = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if asks and origin is not None and not self.proxied and urlsplit(origin).netloc != host:
            return 403, "Another web page asked. Open this page itself, or call it from a program."
        return None

    def _closed(self, scope: Scope) -> tuple[int, str] | None:
        """Refuse routes that the page has no use for, addresses instead of files, and everything before log-in."""
        path = _path(scope)
        inner = path.removeprefix(API) if path.startswith(API) else None
        if inner is not None:
            first = "file=" if inner.startswith("file=") else inner.split("/")[0]
            if first not in ROUTES:
                return 404, "There is no such address here."
            if first == "file=" and "://" in _unquoted(inner):
                return 403, "This server fetches no addresses."
        server = scope.get("app")
        if getattr(server, "auth", None) is None:
            return None
        before = path in OPEN or path.startswith(OPEN_FOLDERS) or inner in OPEN_ROUTES
        if before or _logged_in(scope, server):
            return None
        return 401, "Not authenticated"

    def _crowding(self, scope: Scope) -> tuple[int, str] | None:
        """Refuse a visitor who has as many places in the queue as one may have."""
        asking = self._visitor(scope)
        waiting = sum(visitor(event) == asking for event in queued(scope["app"].get_blocks()._queue))
        if waiting < PLACES:
            return None
        return 429, f"You have {waiting} requests waiting. Wait for an answer before you ask for more."

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve work that can ask whether anybody still waits for it (`listeners.gone`)."""
        stream = HungUp(receive)
        direct = DIRECT.match(_path(scope)) is not None
        scope = {**scope, CALLER: Caller(self._listeners, stream if direct else None)}
        try:
            await self.app(scope, stream if direct else receive, send)
        finally:
            stream.close()

    async def _answers(self, event: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a stream of answers; as long as it is open, somebody waits for the work of this visit."""
        queue = scope["app"].get_blocks()._queue
        known = queue.event_ids_to_events.get(event)
        named = QueryParams(scope["query_string"]).get("session_hash", "")
        visit = named if event is None else known.session_hash if known else event
        stream = HungUp(receive)
        await stream.begin()
        try:
            with self._listeners.listening(visit, stream):
                await self.app(scope, stream, send)
        finally:
            stream.close()

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Accept an upload for which the disk has room, and end it when no more data arrives."""
        length = Headers(scope=scope).get("content-length", "")
        if not re.fullmatch(r"[0-9]{1,15}", length):
            return await _answer(411, "Say how long the upload is (Content-Length).")(scope, receive, send)
        size = int(length)
        if self.uploads is not None:
            self.uploads.watch()
            room = await asyncio.to_thread(self.uploads.room)
            if size > room - self._promised:
                sentence = (
                    "There is no room for this upload now. Try again in some minutes, or with fewer files."
                )
                return await _answer(507, sentence)(scope, receive, send)

        async def in_time() -> Message:
            try:
                return await asyncio.wait_for(receive(), IDLE_SECONDS)
            except TimeoutError:
                log.warning("an upload stood still and was ended")
                return {"type": "http.disconnect"}

        self._promised += size
        try:
            await self.app(scope, in_time, send)
        finally:
            self._promised -= size

    async def _login(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let each further try wait longer after some wrong ones."""
        asking, now = self._visitor(scope), time.monotonic()
        count, last = self._wrong.get(asking, (0, now))
        if now - last > FORGET_SECONDS:
            count = 0
        wait = min(2.0 ** (count - TRIES), LONGEST_WAIT) - (now - last) if count >= TRIES else 0
        if wait > 0:
            sentence = f"Too many wrong log-ins. Try again in {wait:.0f} seconds."
            return await _answer(429, sentence)(scope, receive, send)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._wrong.pop(asking, None)
                if message["status"] == 400:
                    self._wrong[asking] = count + 1, time.monotonic()
                    while len(self._wrong) > REMEMBERED:
                        self._wrong.popitem(last=False)
            await send(message)

        await self.app(scope, receive, counted)

    def _visitor(self, scope: Scope) -> str:
        return (scope.get("client") or ("",))[0]


def _path(scope: Scope) -> str:
    """Give the path without the slash at its end, below where the page is mounted."""
    path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
    return path if path == "/" else path.rstrip("/") or "/"


def _unquoted(text: str) -> str:
    """Take every layer of percent signs off."""
    while (plain := unquote(text)) != text:
        text = plain
    return text


def _forwarded(name: bytes) -> bool:
    name = name.lower()
    return name.startswith(b"x-forwarded-") or name in FORWARDED


def _name(host: str) -> str:
    """Take the host's name out: "127.0.0.1:7860" -> "127.0.0.1"; "[::1]:7860" -> "::1"."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _logged_in(scope: Scope, server: Any) -> bool:
    try:
        cookies = SimpleCookie(Headers(scope=scope).get("cookie", ""))
    except CookieError:
        return False
    names = (f"access-token-{server.cookie_id}", f"access-token-unsecure-{server.cookie_id}")
    return any(name in cookies and cookies[name].value in server.tokens for name in names)


def _answer(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status)
