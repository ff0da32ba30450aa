"""Start the page with the models that a Space is pinned to by the ``models.json`` beside this file.

The variables COVID_XCT_XRAY and COVID_XCT_CT may name others, as ORG/NAME@REVISION.
"""

import json
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

from hub_model import hub_folder

HERE = Path(__file__).parent


def folders() -> Iterator[str]:
    """Yield the folders of the models, from the Hub cache that was filled when the Space was built."""
    for variable, pinned in json.loads((HERE / "models.json").read_text()).items():
        name, _, revision = os.environ.get(variable, pinned).partition("@")
        yield str(hub_folder.resolve(name, revision or None))


if __name__ == "__main__":
    os.environ.setdefault("GRADIO_SSR_MODE", "false")
    sys.argv[1:] += [part for folder in folders() for part in ("--model", folder)]
    runpy.run_path(str(HERE / "app.py"), run_name="__main__")
