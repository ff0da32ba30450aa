"""The web page: screen chest pictures in a browser, or through its API.

    python demo/app.py [--host 127.0.0.1] [--port 7860] [--mcp] [--site site.json]

COVID_XCT_USER and COVID_XCT_PASSWORD, set together, ask visitors for them; COVID_XCT_XRAY and COVID_XCT_CT
name models other than the embedded ones; COVID_XCT_SITE names files of local settings; COVID_XCT_PROXY names the
addresses of a proxy before the page. The page asks nobody but this server, no picture is kept, and neither file names
nor patient tags are logged.
"""

import argparse
import atexit
import importlib.util
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Gradio keeps a record of every answer and sums up all of them after each, for a dashboard that is off here
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(10**9)

from quick_import import draw_nothing, later, without_collecting, without_drafts, without_stubs

with without_collecting(), later("pandas"), without_stubs():
    import gradio as gr
import uploads
import views
from desk import Desk
from gate import LOOPBACK, Gate, fetch_nothing
from gradio.i18n import I18nData
from gradio.utils import get_upload_folder
from intake import MAX_PICTURES, MAX_SLICES
from listeners import begin_quickly, look_calmly, take_turns
from page import Page
from quiet import keep_quiet
from starlette.middleware import Middleware

from hub_model import FolderRefused, Refused, Screener
from hub_model.hub_folder import MODALITIES, HubFolder, embedded, load
from hub_model.screener import sites_of

HERE = Path(__file__).parent
KEPT_MINUTES = 5
"""How long an upload may lie on the server."""
SWEEP_SECONDS = 60
TOLD_SECONDS = 1
"""Between two messages to those who wait, about their place in the queue."""
MAX_UPLOAD = "256mb"
"""Of one file, as `hub_model.grey.MAX_BYTES`."""
USER, PASSWORD, PROXY = "COVID_XCT_USER", "COVID_XCT_PASSWORD", "COVID_XCT_PROXY"
POINTS = ("sensitivity", "balanced", "specificity")
"""Operating points that the languages have words for."""
SITE = "COVID_XCT_SITE"
Say = Callable[[str], I18nData]
# Gradio's own preprocessing of a file leaves an empty temporary file behind every time; see `desk.paths`
RAW = {"preprocess": False}
PRIVATE = {"api_visibility": "private"}  # events that belong to the page; programs have the endpoints
EXAMPLE_CLICKED = """element.addEventListener("click", (event) => {
  const chosen = event.target.closest("[data-example]");
  if (chosen) trigger("example", { name: chosen.dataset.example });
});"""


def build(screeners: Mapping[str, Screener]) -> gr.Blocks:
    """Build the page.

    Args:
        screeners: by modality, one or both of ``xray`` and ``ct``; further ones by name.
    """
    examples = sorted((HERE / "examples").glob("*.png"), key=lambda path: ("refused" in path.name, path.name))
    desk = Desk(screeners, {path.stem: path for path in examples})
    translations = gr.I18n(
        **views.static_texts(desk.examples, minutes=KEPT_MINUTES, limit=MAX_PICTURES, slices=MAX_SLICES)
    )

    def say(key: str) -> I18nData:
        return translations(views.PREFIX + key)

    with without_drafts():
        demo = _laid_out(desk, say)
        # "auto" would tell everybody who waits his place anew whenever somebody's turn comes
        demo.queue(max_size=100, default_concurrency_limit=2, status_update_rate=TOLD_SECONDS)
    demo.translations = translations
    take_turns(demo._queue)
    look_calmly(demo._queue)
    return demo


def _laid_out(desk: Desk, say: Say) -> gr.Blocks:
    with gr.Blocks(title="Chest COVID-19 screening", analytics_enabled=False) as demo:
        gr.HTML(say("header"))
        with gr.Tabs():
            with gr.Tab(say("tab_screen")):
                _one_picture(desk, say)
            with gr.Tab(say("tab_batch")):
                _many_pictures(desk, say)
            with gr.Tab(say("tab_series")):
                _series(desk, say)
            with gr.Tab(say("tab_model")) as model_tab:
                _model(desk, say, model_tab)
            with gr.Tab(say("tab_code")) as code_tab:
                code_tab.select(desk.show_code, None, gr.HTML(), **PRIVATE)
            with gr.Tab(say("tab_check")):
                _check(desk, say)
        gr.HTML(say("privacy"), elem_classes="foot")
    return demo


def _kind(desk: Desk, say: Say) -> gr.Radio:
    return gr.Radio([(say(name), name) for name in desk.kinds], value=desk.kinds[0], label=say("kind"))


def _point(desk: Desk, say: Say) -> gr.Radio:
    choices = [(say(f"point_{name}") if name in POINTS else name, name) for name in desk.points]
    return gr.Radio(choices, value=desk.points[0], label=say("point"))


def _one_picture(desk: Desk, say: Say) -> None:
    current = gr.State(None)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            gr.HTML(say("drop"), elem_classes="hint")
            upload = gr.File(label=say("column_picture"), elem_classes="drop", height=150)
            kind, point = _kind(desk, say), _point(desk, say)
            examples = gr.HTML(
                say("example_buttons"), js_on_load=EXAMPLE_CLICKED, visible=bool(desk.examples)
            )
        with gr.Column(scale=3, min_width=320):
            answer = gr.HTML(say("waiting_message"), elem_id="answer")
    latest = {**PRIVATE, **RAW, "trigger_mode": "always_last"}
    taken = upload.upload(desk.take, upload, [upload, current], **latest)
    tried = examples.example(desk.take_example, None, current, **latest)
    shown = (desk.show, [current, kind, point], answer)
    # after the upload, so that a choice made in the meantime counts
    taken.then(*shown, **latest)
    tried.then(*shown, **latest)
    gr.on([kind.input, point.input], *shown, **latest)

    endpoint, record = gr.Button(visible=False), gr.JSON(visible=False)
    endpoint.click(desk.screen, [upload, kind, point], record, api_name="screen", **RAW)
    tinted = gr.Image(
        visible=False, format="jpeg", type="pil"
    )  # PNG takes longer to write than the judgement
    endpoint.click(desk.heat_map, [upload, kind], tinted, api_name="heat_map", **RAW)


def _many_pictures(desk: Desk, say: Say) -> None:
    gr.HTML(say("batch_drop"), elem_classes="hint")
    upload = gr.File(label=say("tab_batch"), file_count="multiple", elem_classes="drop", height=170)
    with gr.Row():
        kind, point = _kind(desk, say), _point(desk, say)
    start, stop = _start_and_stop(say)
    progress, table = gr.HTML(), gr.HTML()
    _run(start, stop, desk, "batch", [upload, kind, point], [progress, table])
    endpoint = gr.Button(visible=False)
    endpoint.click(desk.batch, [upload, kind, point], gr.JSON(visible=False), api_name="batch", **RAW)


def _series(desk: Desk, say: Say) -> None:
    gr.HTML(say("series_drop"), elem_classes="hint")
    with gr.Row():
        upload = gr.File(label=say("tab_series"), file_count="multiple", elem_classes="drop", height=170)
        folder = gr.File(label=say("series_folder"), file_count="directory", height=170)
    point = _point(desk, say)
    start, stop = _start_and_stop(say)
    progress, slices = gr.HTML(), gr.HTML()
    _run(start, stop, desk, "series", [upload, folder, point], [progress, slices])
    endpoint = gr.Button(visible=False)
    endpoint.click(desk.series, [upload, point], gr.JSON(visible=False), api_name="series", **RAW)


def _check(desk: Desk, say: Say) -> None:
    gr.HTML(say("check_drop"), elem_classes="hint")
    upload = gr.File(label=say("tab_check"), elem_classes="drop", height=170)
    names = list(desk.screeners)
    kind = gr.Radio([(say(name), name) for name in names], value=names[0], label=say("model_choose"))
    start, stop = _start_and_stop(say)
    progress, report = gr.HTML(), gr.HTML()
    _run(start, stop, desk, "check", [upload, kind], [progress, report])


def _start_and_stop(say: Say) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(say("start"), variant="primary"), gr.Button(say("stop"), variant="stop")


def _run(start: gr.Button, stop: gr.Button, desk: Desk, name: str, inputs: list, outputs: list) -> None:
    """Start a long run that can be stopped."""
    work = getattr(desk, f"run_{name}")
    start.click(work, inputs, outputs, **PRIVATE, **RAW, concurrency_limit=2, show_progress="hidden")

    def stop_it(request: gr.Request) -> None:
        desk.stop(name, request)

    # not Gradio's `cancels`: after a double click that ends the second run and leaves the first
    stop.click(stop_it, None, None, **PRIVATE, queue=False)


def _model(desk: Desk, say: Say, tab: gr.Tab) -> None:
    names = list(desk.screeners)
    kind = gr.Radio([(say(name), name) for name in names], value=names[0], label=say("model_choose"))
    figures, card = gr.HTML(), gr.Markdown(elem_classes="card")
    gr.on([tab.select, kind.input], desk.show_model, kind, [figures, card], **PRIVATE)
    gr.Button(visible=False).click(desk.model, kind, gr.JSON(visible=False), api_name="model", **RAW)


def options(demo: gr.Blocks, host: str = "127.0.0.1") -> dict[str, Any]:
    """Give the arguments of ``demo.launch`` that belong to the page, wherever it is served.

    Args:
        demo: the page.
        host: the address it listens on.
    """
    user, password = os.environ.get(USER), os.environ.get(PASSWORD)
    in_space = bool(os.environ.get("SPACE_ID"))
    proxied = bool(os.environ.get(PROXY)) or in_space
    # whose word uvicorn takes for where a request comes from; its own default is whoever is on this computer
    os.environ["FORWARDED_ALLOW_IPS"] = os.environ.get(PROXY) or ("*" if in_space else "")
    fetch_nothing()
    draw_nothing()
    begin_quickly()
    demo.uploads = uploads.Uploads(
        Path(get_upload_folder()), KEPT_MINUTES * 60 - SWEEP_SECONDS, SWEEP_SECONDS, demo.temp_file_sets
    )
    demo.uploads.watch()
    gate = Middleware(Gate, uploads=demo.uploads, loopback=host in LOOPBACK, proxied=proxied)
    return {
        "auth": (user, password) if user and password else None,
        "theme": views.theme(),
        "css_paths": HERE / "theme.css",
        "head": f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
        "i18n": demo.translations,
        "app_kwargs": {
            "middleware": [Middleware(Page, framed=in_space), gate],
            **dict.fromkeys(("docs_url", "redoc_url", "openapi_url")),  # Gradio's own is behind the log-in
        },
        "footer_links": ["api"],
        "max_file_size": MAX_UPLOAD,
        "run_history": False,
        "state_session_capacity": 300,  # visits remembered; of Gradio's 10,000 each holds about 0.1 MB
        "enable_monitoring": False,
        "share": False,
        "ssr_mode": False,
        "pwa": False,
        "quiet": True,
    }


def prepare(arguments: list[str] | None = None) -> tuple[gr.Blocks, dict[str, Any]]:
    """Make the page and say how to launch it, from the command line.

    Raises:
        SystemExit: 1, with one line said, where it cannot be served; 2 on wrong usage.
    """
    parser = argparse.ArgumentParser(description="Serve the web page for screening chest pictures.")
    parser.add_argument(
        "--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="address to listen on"
    )
    parser.add_argument(
        "--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", 7860)), help="port to listen on"
    )
    parser.add_argument(
        "--model",
        action="append",
        help="hub folder or ORG/NAME@REVISION, one per modality (default: xray and ct, as embedded)",
    )
    parser.add_argument(
        "--site",
        action="append",
        help="site.json of `covid-xct check --adapt`, one for each model",
    )
    parser.add_argument("--mcp", action="store_true", help="also serve the endpoints as MCP tools")
    chosen = parser.parse_args(arguments)
    problem = _port_problem(chosen.host, chosen.port) or _account_problem()
    if problem := problem or (_mcp_problem() if chosen.mcp else None):
        raise SystemExit(problem)
    try:
        screeners = open_screeners(chosen.model, chosen.site)
    except Refused as refusal:
        raise SystemExit(str(refusal)) from None
    _private_folder()
    demo = build(screeners)
    return demo, {
        **options(demo, chosen.host),
        "server_name": chosen.host,
        "server_port": chosen.port,
        "mcp_server": chosen.mcp or None,
    }


def open_screeners(names: list[str] | None = None, sites: list[str] | None = None) -> dict[str, Screener]:
    """Open models by modality: those named, those that COVID_XCT_XRAY and COVID_XCT_CT name, or the embedded ones.

    Unless models are named, the further embedded ones come after them, by their own names.

    Args:
        names: hub folders, or Hub ids with or without a revision: ``ORG/NAME@REVISION``.
        sites: files of local settings, each for one of the models; by default those that COVID_XCT_SITE names, parted
            as the system parts paths.

    Raises:
        SiteRefused: one of them cannot be used.
        FolderRefused: one of them cannot be opened, there is none, or two read the same kind of picture.
    """
    folders: dict[str, HubFolder] = {}
    for name in names or _pinned():
        place, _, revision = (name, "", "") if Path(name).exists() else name.partition("@")
        folder = load(place, revision or None)
        if folder.modality in folders:
            raise FolderRefused(
                f"{name} reads {folder.modality} pictures, as a model before it. Give one for each."
            )
        folders[folder.modality] = folder
    if not names:
        folders |= {name: load(name) for name in embedded() if name not in MODALITIES}
    if sites is None:
        sites = [place for place in os.environ.get(SITE, "").split(os.pathsep) if place]
    local = sites_of(list(folders.values()), sites)
    return {
        name: Screener(folder, site=site) for (name, folder), site in zip(folders.items(), local, strict=True)
    }


def _pinned() -> list[str]:
    """Name the models that the environment names, and the embedded ones for the other kinds of picture."""
    named = {kind: os.environ.get(f"COVID_XCT_{kind.upper()}") for kind in MODALITIES}
    ours = embedded() or (() if any(named.values()) else MODALITIES)
    return [named[kind] or kind for kind in MODALITIES if named[kind] or kind in ours]


def _port_problem(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            return (
                f"Cannot listen on {host}, port {port}: {getattr(error, 'strerror', None) or error}. Stop "
                "the program that uses it, or choose another port (make demo PORT=7861, or --port 7861)."
            )
    return None


def _account_problem() -> str | None:
    if bool(os.environ.get(USER)) == bool(os.environ.get(PASSWORD)):
        return None
    return f"Only one of {USER} and {PASSWORD} is set. Set both to ask visitors for them, or neither."


def _mcp_problem() -> str | None:
    if importlib.util.find_spec("mcp"):
        return None
    return "--mcp needs one more package: pip install 'gradio[mcp]'. Install it, or start without --mcp."


def _private_folder() -> None:
    """Keep uploads and other temporary files in a private folder that is deleted when the server ends."""
    folder, lock = uploads.private_folder(os.environ.get("GRADIO_TEMP_DIR"))
    os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = str(folder)
    atexit.register(uploads.remove, folder, lock)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that a stopped service cleans up as well


if __name__ == "__main__":
    demo, launch_options = prepare()
    output = keep_quiet()
    try:
        _, address, _ = demo.launch(prevent_thread_lock=True, **launch_options)
    except OSError:  # Gradio gives its server 5 seconds to come up
        print(
            "The server did not come up, or another program took the port meanwhile. Start it again.",
            file=output,
        )
        sys.exit(1)
    print(f"Chest COVID-19 screening: open {address} in a browser; stop with Ctrl+C.", file=output)
    demo.block_thread()
