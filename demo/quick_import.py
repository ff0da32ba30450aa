"""Gradio without what this page has no use for: each part of it costs as much of a start as a model.

Nothing that the page shows or answers changes by it.
"""

import contextlib
import gc
import importlib
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def without_stubs() -> Iterator[None]:
    """Keep Gradio from writing interface files for editors into its own folder while it is imported.

    At every start it parses the source of each of its components and renders a file beside it, which takes a third of
    its import and changes the installation. A component without a source file has none, so none is found meanwhile
    (`create_or_modify_pyi` in gradio/component_meta.py).
    """
    found = inspect.getfile

    def file_of(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__.partition(".")[0] == "gradio":
            raise OSError("no interface files")
        return found(thing)

    inspect.getfile = file_of
    try:
        yield
    finally:
        inspect.getfile = found


class Later(ModuleType):
    """Stands for a module until something of it is used, and imports it then.

    Not `importlib.util.LazyLoader`: that takes the second ``import`` of a module for its first use.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # whoever looks through all modules asks for these
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def later(name: str) -> Iterator[None]:
    """Have a module imported when those who import it meanwhile first use something of it.

    Gradio imports pandas for tables and for answers that it remembers, of which the page has none.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = standing = Later(name)
    try:
        yield
    finally:
        if sys.modules.get(name) is standing:
            del sys.modules[name]


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Keep Python from looking for garbage among modules while they are imported, and ever after.

    Hardly anything of a module ever is; looking through all of them time and again takes a tenth of the import, and a
    look while pictures are judged holds up every thread.
    """
    wanted = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if wanted:
            gc.enable()


@contextlib.contextmanager
def without_drafts() -> Iterator[None]:
    """Keep Gradio from making a server each time the page changes while it is laid out.

    It makes one when the page is begun, when its queue is set and when it is complete, with 80 routes each, and drops
    all of them for the one that `launch` makes.
    """
    from gradio.routes import App

    made = App.create_app
    App.create_app = staticmethod(lambda *_, **__: None)
    try:
        yield
    finally:
        App.create_app = staticmethod(made)


def draw_nothing() -> None:
    """Keep Gradio from importing matplotlib, where that is installed, to guard the answers of functions that draw.

    It would come with the first answer, which takes four times as long then.
    """
    from gradio import utils

    utils.MatplotlibBackendMananger = contextlib.nullcontext
