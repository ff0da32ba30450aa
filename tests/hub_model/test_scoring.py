"""Archives: every file gets one row, whatever it is called and wherever it lies; a killed run goes on."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from hub_model import Screener, rows, scoring
from hub_model.__main__ import main
from hub_model.refused import Refused
from hub_model.rows import RowFile
from hub_model.scoring import Options

EXAMPLES = Path(__file__).parents[2] / "demo" / "examples"
PICTURE = EXAMPLES / "phantom_xray_1.png"
ROW = {"file": "a.png", "decision": "refused", "reasons": "x"}


@pytest.fixture(scope="module")
def screener() -> Screener:
    return Screener.from_pretrained("xray")


def read(file: Path) -> list[dict]:
    if file.suffix == ".csv":
        with open(file, encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    import pyarrow.parquet

    return pyarrow.parquet.read_table(file).to_pylist()


def test_what_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "o.parquet").write_text("no table")
    (tmp_path / "o.parquet.settings.json").write_text("{}")
    with pytest.raises(Refused, match=r"o\.parquet is no table of `score`"):
        RowFile(tmp_path / "o.parquet", {})
    assert not list(tmp_path.glob("*.rows.jsonl"))


@pytest.mark.parametrize("suffix", rows.FORMATS)
class TestRowFiles:
    def test_rows_come_back(self, tmp_path, suffix):
        with RowFile(tmp_path / f"o{suffix}", {}) as out:
            out.write(ROW | {"probability": 0.25})
        assert [(row["file"], float(row["probability"])) for row in read(tmp_path / f"o{suffix}")] == [
            ("a.png", 0.25)
        ]
        assert not list(tmp_path.glob("*.rows.jsonl"))

    def test_a_later_run_adds_and_knows_what_is_there(self, tmp_path, suffix):
        for name in ("a.png", "b.png", "=c.png"):
            with RowFile(tmp_path / f"o{suffix}", {"model": 1}) as out:
                out.write(ROW | {"file": name})
        with RowFile(tmp_path / f"o{suffix}", {"model": 1}) as out:
            assert [out.done[out.named(name)] for name in ("a.png", "b.png", "=c.png", "d.png")] == [
                1,
                1,
                1,
                0,
            ]
        assert len(read(tmp_path / f"o{suffix}")) == 3

    def test_a_torn_line_is_taken_back(self, tmp_path, suffix):
        out = RowFile(tmp_path / f"o{suffix}", {})
        out.write(ROW)
        out.write(ROW | {"file": "b.png"})
        out.close(whole=False)
        torn = next(place for place in out.beside[:2] if place.exists())
        torn.write_bytes(torn.read_bytes()[:-3])
        with RowFile(tmp_path / f"o{suffix}", {}) as out:
            assert out.done == Counter({"a.png": 1})
            out.write(ROW | {"file": "b.png"})
        assert [row["file"] for row in read(tmp_path / f"o{suffix}")] == ["a.png", "b.png"]

    def test_a_damaged_line_is_named(self, tmp_path, suffix):
        out = RowFile(tmp_path / f"o{suffix}", {})
        out.write(ROW)
        out.close(whole=False)
        file = next(place for place in out.beside[:2] if place.exists())
        good = file.read_bytes()
        for damage in (b"\xff\xfe\n", b"\n", *(() if suffix == ".csv" else (b"[]\n", b'{"file": 3}\n'))):
            file.write_bytes(good + damage + good)
            with pytest.raises(Refused, match=r"line [23] is no row of `score`.* give another --out"):
                RowFile(tmp_path / f"o{suffix}", {})
            assert file.read_bytes() == good + damage + good

    @pytest.mark.parametrize("settings", ["[]", "3", "{", ""])
    def test_damaged_settings_are_none(self, tmp_path, suffix, settings):
        with RowFile(tmp_path / f"o{suffix}", {}) as out:
            out.write(ROW)
        out.beside[-1].write_text(settings)
        with pytest.raises(Refused, match="nothing says which models made it"):
            RowFile(tmp_path / f"o{suffix}", {})

    def test_rows_of_other_settings_are_not_mixed(self, tmp_path, suffix):
        RowFile(tmp_path / f"o{suffix}", {"models": 1, "operating point": None}).close()
        with pytest.raises(Refused, match="made with other models"):
            RowFile(tmp_path / f"o{suffix}", {"models": 2, "operating point": None})

    def test_a_file_of_someone_else_stays(self, tmp_path, suffix):
        (tmp_path / f"o{suffix}").write_text("mine")
        with pytest.raises(Refused, match="nothing says which models made it"):
            RowFile(tmp_path / f"o{suffix}", {})
        assert (tmp_path / f"o{suffix}").read_text() == "mine"

    @pytest.mark.skipif(sys.platform == "win32", reason="locks are of POSIX")
    def test_two_processes_do_not_write_to_one_file(self, tmp_path, suffix):
        with RowFile(tmp_path / f"o{suffix}", {}), pytest.raises(Refused, match="Another process"):
            RowFile(tmp_path / f"o{suffix}", {})


@pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@SUM(A1)", "\tx", "＝1"])
def test_no_cell_runs_in_a_spreadsheet(name):
    cell = next(csv.reader([rows.csv_line(ROW | {"file": rows.one_line(name)})]))[0]
    assert not cell.startswith(rows.FORMULA_STARTS)


@pytest.mark.parametrize(
    ("path", "words"), [("no/o.csv", "no folder"), ("o.xlsx", "ends in .csv"), (".", "ends in")]
)
def test_out_is_checked_first(tmp_path, path, words):
    with pytest.raises(Refused, match=words):
        RowFile(tmp_path / path, {})


@pytest.fixture
def archive(tmp_path) -> Path:
    """Folders, links, names and archives as they are met in the wild."""
    root, elsewhere = tmp_path / "scans", tmp_path / "elsewhere"
    for folder in (root / "deep", root / ".ipynb_checkpoints", root / "__MACOSX", elsewhere):
        folder.mkdir(parents=True)
    for place in (root / "deep" / "1.png", root / ".ipynb_checkpoints" / "1.png", root / "__MACOSX" / "1.png",
                  elsewhere / "linked.png", root / "=cmd.png", root / "胸 é.png"):  # fmt: skip
        shutil.copy(PICTURE, place)
    shutil.copy(PICTURE, os.fsdecode(os.fsencode(root) + b"/caf\xe9.png"))
    (root / "line\nbreak.png").write_bytes(PICTURE.read_bytes())
    (root / "notes.txt").write_text("no picture")
    (root / "Thumbs.db").write_bytes(b"x")
    (root / "link").symlink_to(elsewhere)
    (root / "again").symlink_to(elsewhere)
    (root / "circle").symlink_to(root)
    with zipfile.ZipFile(root / "some.zip", "w") as packed, pytest.warns(UserWarning, match="Duplicate"):
        packed.write(PICTURE, "x/s.png")
        packed.write(EXAMPLES / "phantom_xray_2.png", "x/s.png")
        packed.writestr("x/.DS_Store", b"x")
    (root / "broken.zip").write_bytes(b"PK\3\4 and nothing more")
    return root


def test_every_file_gets_one_row_whatever_it_is_called(archive, screener, tmp_path):
    out = tmp_path / "o.csv"
    tally = scoring.score(
        [archive, archive / "deep", tmp_path / "gone.png"], screener, out, Options(heat_maps=tmp_path / "h")
    )
    found = [(row["file"].rpartition("scans/")[2], row["decision"] == "refused") for row in read(out)]
    assert sorted(found) == sorted([
        ("=cmd.png", False), (r"caf\xe9.png", False), ("deep/1.png", False), (r"line\nbreak.png", False),
        ("胸 é.png", False), ("again/linked.png", False), ("some.zip/x/s.png", False), ("some.zip/x/s.png", False),
        ("notes.txt", True), ("broken.zip", True), (f"{tmp_path}/gone.png", True),
    ])  # fmt: skip
    assert (tally.rubbish, tally.again) == (4, 2)
    twice = [float(row["probability"]) for row in read(out) if row["file"].endswith("s.png")]
    assert twice == [
        pytest.approx(screener.screen(p).probability) for p in sorted(EXAMPLES.glob("phantom_xray_*"))
    ]
    drawn = [row["heat_map"] for row in read(out) if row["decision"] != "refused"]
    assert len(set(drawn)) == 8
    assert all(Image.open(tmp_path / "h" / name).mode == "RGB" for name in drawn)
    before = out.read_bytes()
    again = scoring.score([archive, tmp_path / "gone.png"], screener, out, Options(heat_maps=tmp_path / "h"))
    assert not again.decisions and again.earlier == 11 and out.read_bytes() == before


def test_heat_maps_of_the_run_are_no_pictures(screener, tmp_path):
    shutil.copy(PICTURE, tmp_path / "a.png")
    for _ in range(2):
        scoring.score([tmp_path], screener, tmp_path / "o.csv", Options(heat_maps=tmp_path / "maps"))
    assert [Path(row["file"]).name for row in read(tmp_path / "o.csv")] == ["a.png"]
    with pytest.raises(Refused, match="holds the pictures"):
        scoring.score([tmp_path], screener, tmp_path / "p.csv", Options(heat_maps=tmp_path))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is locked for root")
def test_a_locked_folder_gets_a_row(archive, screener, tmp_path):
    (archive / "deep").chmod(0)
    try:
        scoring.score([archive / "deep"], screener, tmp_path / "o.csv")
    finally:
        (archive / "deep").chmod(0o755)
    assert [row["codes"] for row in read(tmp_path / "o.csv")] == ["locked_folder"]


def test_rows_of_the_run_are_no_pictures(screener, tmp_path):
    shutil.copy(PICTURE, tmp_path / "a.png")
    for _ in range(2):
        scoring.score([tmp_path], screener, tmp_path / "o.jsonl")
    assert [Path(row["file"]).name for row in read(tmp_path / "o.jsonl")] == ["a.png"]


def test_a_full_disk_keeps_the_rows_so_far(screener, tmp_path):
    for number in range(3):
        shutil.copy(PICTURE, tmp_path / f"{number}.png")
    out = RowFile(tmp_path / "o.csv", scoring.settings_of(screener, Options()))
    out.close()
    real = RowFile.write

    def full(self, row):
        if row["file"].endswith("2.png"):
            self._stream.write(b"half a ro")
            self._stream.flush()
            raise OSError(28, "No space left on device")
        real(self, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowFile, "write", full)
        with pytest.raises(OSError, match="No space"):
            scoring.score([tmp_path], screener, tmp_path / "o.csv")
    tally = scoring.score([tmp_path], screener, tmp_path / "o.csv")
    assert (tally.earlier, tally.decisions.total()) == (2, 1)
    assert [Path(row["file"]).name for row in read(tmp_path / "o.csv")] == ["0.png", "1.png", "2.png"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", rows.FORMATS)
def test_killed_and_resumed_every_file_is_there_once(tmp_path, suffix):
    (tmp_path / "in").mkdir()
    small = Image.open(PICTURE).resize((64, 64))
    for number in range(60):
        small.save(tmp_path / "in" / f"{number}.png")
    out = tmp_path / f"o{suffix}"
    command = [sys.executable, "-m", "hub_model", "score", tmp_path / "in", "--model", "xray", "--out", out]
    partial = next(
        place for place in (tmp_path / f"o{suffix}.rows.jsonl", out) if suffix == ".parquet" or place == out
    )
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if partial.exists() and partial.read_bytes().count(b"\n") > 8:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    process.wait()
    subprocess.run(command, check=True, capture_output=True)
    names = Counter(Path(row["file"]).name for row in read(out))
    assert names == Counter(f"{number}.png" for number in range(60))


def test_what_contradicts_itself_is_said(monkeypatch, capsys):
    for options, words in (
        (("--model", "auto", "--revision", "v1"), "no revision 'v1'"),
        (("--json", "--out", "o.csv"), "--json is for the terminal"),
        (("--backend", "tensorrt"), "accepted are onnx, torch"),
        (("--engine", "spark"), "accepted are local, ray"),
        (("--engine", "ray"), "give --out a folder"),
        (("--address", "head:6379"), "say --engine ray, too"),
        (("--out", "s3://bucket/rows.csv"), "does not lie on this machine"),
    ):
        monkeypatch.setattr(sys, "argv", ["covid-xct", "score", str(PICTURE), *options])
        with pytest.raises(SystemExit) as end:
            main()
        said = " ".join(capsys.readouterr().err.split())
        assert end.value.code == 1 and said.startswith("Refused. ") and words in said


def test_a_terminal_that_lacks_a_letter_gets_it_escaped(tmp_path):
    shutil.copy(PICTURE, tmp_path / "胸.png")
    done = subprocess.run([sys.executable, "-m", "hub_model", "score", tmp_path, "--model", "xray", "--json"],
                          capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["file"].endswith("胸.png")
