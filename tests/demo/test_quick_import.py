"""A quick start leaves out what nobody asks for, and everything is there for who asks."""

import gc
import subprocess
import sys

import pytest

from tests.served import ROOT

sys.path.insert(0, str(ROOT / "demo"))  # as Python does for `python demo/app.py`

import gradio as gr
from gradio import routes, utils
from quick_import import Later, draw_nothing, later, without_collecting, without_drafts


def run(code: str) -> str:
    """What code prints that runs in a Python of its own, as the page's does."""
    code = f"import sys\nsys.path.insert(0, {str(ROOT / 'demo')!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def unknown(monkeypatch) -> str:
    """A package of Python's own that nobody has imported, and will not have afterwards."""
    for name in ("xmlrpc", "xmlrpc.client"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "xmlrpc"


def test_a_module_comes_with_its_first_use(unknown):
    with later(unknown):
        import xmlrpc as standing
    assert unknown not in sys.modules and not hasattr(standing, "__file__")
    assert standing.__path__ and standing.__path__ is sys.modules[unknown].__path__
    with pytest.raises(AttributeError):
        _ = standing.nothing_of_this_name


def test_a_module_that_is_used_meanwhile_is_there_whole(unknown):
    with later(unknown):
        from xmlrpc import client

        assert sys.modules[unknown].client is client
    assert not isinstance(sys.modules[unknown], Later)


def test_a_module_that_is_there_already_stays():
    with later("json"):
        import json

        assert sys.modules["json"] is json and not isinstance(json, Later)


def test_modules_are_no_garbage_and_the_rest_is_looked_through_as_before():
    frozen = gc.get_freeze_count()
    try:
        with without_collecting():
            assert not gc.isenabled()
        assert gc.isenabled() and gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()


def test_no_server_is_made_before_it_is_launched(monkeypatch):
    made = []
    monkeypatch.setattr(routes.App, "create_app", staticmethod(lambda *_, **__: made.append(1)))
    with without_drafts(), gr.Blocks() as demo:
        gr.HTML("page")
    demo.queue()
    assert made == [1]  # after the block Gradio does as it did


def test_an_answer_imports_no_matplotlib(monkeypatch):
    monkeypatch.setattr(utils, "MatplotlibBackendMananger", utils.MatplotlibBackendMananger)  # put back
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    draw_nothing()
    with utils.MatplotlibBackendMananger():  # as `gradio.route_utils.call_process_api` says
        assert "matplotlib" not in sys.modules


@pytest.mark.slow
def test_the_page_starts_without_pandas_and_gradio_finds_it_when_it_wants_it():
    said = run(
        "import app\n"
        "app.options(app.build(app.open_screeners()))\n"
        "print([name for name in ('pandas', 'matplotlib', 'torch') if name in sys.modules])\n"
        "from gradio import caching\n"
        "frame = caching.pd.DataFrame({'a': [1]})\n"
        "import pandas\n"
        "print(type(frame) is pandas.DataFrame)\n"
    )
    assert said.split("\n")[:2] == ["[]", "True"]
