"""Gradio imported without writing what only the authors of its components need."""

import contextlib
import inspect
from collections.abc import Iterator
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
