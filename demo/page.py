"""What surrounds the page: its language, and headers that keep the browser from asking anybody else.

Gradio picks its language from the browser and offers no way to say another, so the answer to ``GET /`` gets a
line at the head of the document, before Gradio's own scripts run.
"""

import json

import texts
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Gradio needs inline scripts and styles and builds functions from strings; all must come from this server.
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
FRAMES = "; frame-ancestors 'self'"
HEADERS = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
SCRIPT = """<script>(() => {{
  const chosen = {language};
  Object.defineProperty(navigator, "language", {{ get: () => chosen }});
  Object.defineProperty(navigator, "languages", {{ get: () => [chosen] }});
}})();</script>"""


def spoken(scope: Scope) -> str:
    """Choose the language of a request, from ``?lang=`` or the browser's wishes."""
    query, headers = QueryParams(scope.get("query_string", b"")), Headers(scope=scope)
    return texts.choose(query.get("lang"), headers.get("accept-language"))


def localised(html: bytes, language: str) -> bytes:
    """Put the document into a language: reading direction, and Gradio's own words."""
    direction = "rtl" if language in texts.RIGHT_TO_LEFT else "ltr"
    opened = html.replace(b'lang="en"', f'lang="{language}" dir="{direction}"'.encode(), 1)
    return opened.replace(b"<head>", b"<head>" + SCRIPT.format(language=json.dumps(language)).encode(), 1)


class Page:
    """ASGI middleware; pass it to Gradio as ``app_kwargs={"middleware": [Middleware(Page)]}``.

    Args:
        app: what stands behind.
        framed: whether other sites may show the page in a frame, as the Hub does with a Space.
    """

    def __init__(self, app: ASGIApp, framed: bool = False) -> None:
        self.app = app
        self.headers = {**HEADERS, "Content-Security-Policy": POLICY + ("" if framed else FRAMES)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        held: Message | None = None  # the start of an HTML answer, whose length is known only at its end
        body = b""

        async def answer(message: Message) -> None:
            nonlocal held, body
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self.headers)
                if headers.get("content-type", "").startswith("text/html"):
                    held = message
                    return
            elif held is not None:
                body += message.get("body", b"")
                if message.get("more_body"):
                    return
                message = {"type": "http.response.body", "body": localised(body, spoken(scope))}
                MutableHeaders(scope=held)["content-length"] = str(len(message["body"]))
                await send(held)
            await send(message)

        await self.app(scope, receive, answer)
