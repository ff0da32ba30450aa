"""What the server prints: places, never contents, by whichever way a library prints."""

import subprocess
import sys

import pytest

from tests.served import ROOT

SECRET = "Doe^Jane_1948.dcm"
WAYS = {
    "warning": "import warnings; warnings.warn(SECRET, stacklevel=1)",
    "logger": "logging.getLogger('pydicom').warning('in %s', SECRET)",
    "logger with handlers": "logging.getLogger('uvicorn.error').error(SECRET)",
    "exception": "\ntry: raise ValueError(SECRET)\nexcept ValueError: logging.getLogger('gradio').exception(SECRET)",
    "ours": "\ntry: open(SECRET)\nexcept OSError: logging.getLogger('covid_xct').exception('a known sentence')",
    "traceback": "\nimport traceback\ntry: raise ValueError(SECRET)\nexcept ValueError: traceback.print_exc()",
    "print": "print(SECRET); print(SECRET, file=sys.stderr)",
    "C": "os.write(2, SECRET.encode()); os.write(1, SECRET.encode())",
    "libc": "ctypes.CDLL(None).perror(SECRET.encode())",
    "thread": "\nt = threading.Thread(target=lambda: open(SECRET)); t.start(); t.join()",
    "unraisable": "\nclass A:\n    def __del__(self): raise ValueError(SECRET)\nA()",
    "bad format": "logging.getLogger('x').error('%d', SECRET)",
    "uncaught": "raise RuntimeError(SECRET)",
}
START = """
import ctypes, logging, os, sys, threading
sys.path.insert(0, {demo!r})
logging.getLogger("uvicorn.error").addHandler(logging.StreamHandler())
from quiet import keep_quiet
output = keep_quiet()
print("ready", file=output)
SECRET = {secret!r}
"""


@pytest.mark.parametrize("way", WAYS)
def test_no_way_of_printing_shows_a_name(way):
    code = START.format(demo=str(ROOT / "demo"), secret=SECRET) + WAYS[way]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "ready\n"
    assert SECRET not in done.stderr and "Jane" not in done.stderr
    if way in ("warning", "logger", "logger with handlers", "exception", "thread", "unraisable", "uncaught"):
        assert "line" in done.stderr  # something is told: where it was
    if way == "ours":
        assert "a known sentence" in done.stderr and "FileNotFoundError" in done.stderr
