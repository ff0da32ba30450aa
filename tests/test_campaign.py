"""The campaign of attacks, in short: the whole one is `python -m tests.benchmarks.campaign`."""

import os
import re
import subprocess
import sys

import pytest

from hub_model.images import read_image
from tests.attacks import bombs, faults, inputs, mutants, server

QUICK = ("two thousand million frames", "JPEG-LS cut short", "PNG of 100,000 x 100,000")


def test_a_mutant_is_a_function_of_its_number():
    assert mutants.mutant(123) == mutants.mutant(123) != mutants.mutant(123 + len(mutants.seeds()))
    names = {mutants.mutant(number)[0] for number in range(len(mutants.seeds()))}
    assert names == set(mutants.seeds()) and len(names) > 20


@pytest.mark.parametrize("name", mutants.STREAMS)
def test_streams_are_good_before_they_are_broken(name, tmp_path):
    (tmp_path / "a.dcm").write_bytes(mutants.wrapped(name, mutants.seeds()[name]))
    assert read_image(tmp_path / "a.dcm").size == (128, 128)


def test_broken_files_are_read_or_refused_in_silence(tmp_path):
    found = mutants.attack(range(400), tmp_path)
    assert not found["wrong"]
    assert found["outcomes"]["refused"] > 100 < found["count"] == 400


@pytest.mark.slow
def test_broken_settings_folders_tables_and_data_are_read_or_refused(tmp_path):
    found = inputs.attack(range(63), tmp_path)
    assert not found["wrong"] and found["count"] == 63 > found["outcomes"]["refused"] > 30


def test_the_worker_tells_what_goes_wrong(tmp_path, monkeypatch):
    """A file that ends the process, one that takes too long, one whose name is printed: each would be found."""
    monkeypatch.setattr(mutants, "seeds", lambda: {"x": b"x"})
    monkeypatch.setattr(mutants, "mutant", lambda number: ("x", (b"die", b"print", b"late")[number]))
    (tmp_path / "hub").mkdir()
    code = (
        "import sys, os, signal\nfrom pathlib import Path\nfrom tests.attacks import mutants\n"
        "def read(path):\n"
        "    word = path.read_bytes()\n"
        "    if word == b'die': os._exit(7)\n"
        "    if word == b'print': print(path.name, file=sys.stderr)\n"
        "    if word == b'late':\n        while True: pass\n"
        "mutants._read, mutants.SECONDS = read, 0.3\n"
        "mutants._serve(Path(sys.argv[-1]))\n"
    )
    started = mutants.subprocess.Popen
    monkeypatch.setattr(
        mutants.subprocess,
        "Popen",
        lambda command, **more: started([command[0], "-c", code, command[-1]], **more),
    )
    wrong = mutants.attack(range(3), tmp_path / "hub")["wrong"]
    assert wrong == {0: "x: died with 7", 1: "x: it printed a name", 2: "x: more than 10 s"}


@pytest.mark.parametrize("name", QUICK)
def test_bombs_are_refused_below_their_ceilings(tmp_path, name):
    found = bombs.explode(name, tmp_path)
    assert found["held"], found


SCREEN = """
import sys, time
from hub_model import Screener
Screener.from_pretrained("ct").screen(sys.argv[1])
time.sleep(2)  # ONNX Runtime tells its maker of a session a while after
"""


def test_screening_asks_nobody_not_even_from_c(tmp_path):
    variables = server.hooked(tmp_path)
    if not variables:
        pytest.skip("needs a C compiler")
    (tmp_path / "asked.txt").touch()
    told = "import socket; socket.getaddrinfo('canary.invalid', 80)"
    for code in (told, SCREEN):
        done = subprocess.run(
            [sys.executable, "-c", code, server.ROOT / "demo" / "examples" / "phantom_ct_1.png"],
            env={**os.environ, **variables, "PYTHONPATH": str(server.ROOT)}, capture_output=True, check=False,
        )  # fmt: skip
        asked = (tmp_path / "asked.txt").read_text()
        assert asked == "getaddrinfo canary.invalid\n", done.stderr


def test_everybody_takes_onnx_runtime_from_the_one_who_tells_it_to_keep_to_itself():
    importing = {
        path.relative_to(server.ROOT).as_posix()
        for room in ("hub_model", "train", "demo")
        for path in (server.ROOT / room).rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if re.match(r"\s*(import|from) onnxruntime", line)
    }
    assert importing == {"hub_model/backends.py"}


def test_lines_that_are_to_be_copied_tell_onnx_runtime_so_too():
    texts = [path for path in server.ROOT.rglob("*.md") if not {".venv", "node_modules"} & set(path.parts)]
    snippets = [
        (path.name, lines)
        for path in texts
        for lines in re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL)
        if "import onnxruntime" in lines
    ]
    assert len(snippets) >= 3, "the card's template, the cards, docs/loaders.md"
    for name, lines in snippets:
        told, imported = lines.find("ORT_DISABLE_TELEMETRY"), lines.find("import onnxruntime")
        assert 0 <= told < imported, name


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Data opened here leaves nothing in the user's cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prepare", "score to .csv", "score to .parquet"])
def test_killed_verbs_leave_old_or_new(tmp_path, name):
    (tmp_path / "work").mkdir()
    found = faults.kills(name, 4, tmp_path / "work", seed=1)
    assert not found["wrong"], found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prepare", "score to .jsonl"])
def test_full_disks_closed_folders_and_two_at_once(tmp_path, name):
    (tmp_path / "work").mkdir()
    assert not faults.troubles(name, tmp_path / "work")


def test_half_a_result_would_be_seen(tmp_path):
    """The check itself: a folder that is neither the old nor the new one counts as half."""
    expected = {"0": "old", "1": "new"}
    verb = faults.Verb(lambda folder: None, lambda folder, text: None, lambda place: place.read_text(), ())
    for text, state in (("old", "old"), ("new", "new"), ("ne", "half")):
        (tmp_path / "out").write_text(text)
        assert faults._state(verb, tmp_path, expected) == state
