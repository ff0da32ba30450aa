"""Archives on a Ray cluster: the rows are those of one machine, wherever the pictures lie."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from hub_model.refused import Failed, Refused

pytest.importorskip("ray", reason="needs covid-xct[ray]")

import pyarrow.dataset

from hub_model import places, scoring, scoring_ray

EXAMPLES = Path(__file__).parents[2] / "demo" / "examples"
MODELS = scoring.Models("xray")


@pytest.fixture(scope="module")
def node():
    """One node for all tests of this file, of two cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(EXAMPLES.parents[1]))
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(scoring_ray._cluster(None))
            except Refused as refusal:
                if "timed out" in str(refusal):  # Ray gives its own processes half a minute
                    pytest.skip(f"this machine is too busy: {refusal}")
                raise
            yield


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("in") / "scans"
    (root / "deep").mkdir(parents=True)
    (root / "__MACOSX").mkdir()
    small = Image.open(EXAMPLES / "phantom_xray_1.png").resize((96, 96))
    for number in range(12):
        small.rotate(number).save(root / "deep" / f"{number}.png")
    small.save(root / "__MACOSX" / "x.png")
    shutil.copy(EXAMPLES / "phantom_ct_1.png", root / "胸.png")
    (root / "notes.txt").write_text("no picture")
    (root / "broken.zip").write_bytes(b"PK\3\4 and nothing more")
    with zipfile.ZipFile(root / "some.zip", "w") as packed, pytest.warns(UserWarning, match="Duplicate"):
        packed.write(root / "deep" / "1.png", "s.png")
        packed.write(root / "deep" / "2.png", "s.png")
    return root


@pytest.fixture(scope="module")
def expected(archive) -> list[dict]:
    """The rows of one machine, without the place of the pictures."""
    out = archive.parent / "expected.jsonl"
    scoring.score([archive], MODELS.opened(threads=1), out)
    return told(map(json.loads, out.read_text(encoding="utf-8").splitlines()), str(archive))


def told(rows, root: str) -> list[dict]:
    """Rows in order, without where the pictures lie; the neighbours in a batch move the last bits of a number."""
    found = [
        {
            **{
                name: value if not isinstance(value, float) else round(value, 5)
                for name, value in row.items()
            },
            "file": row["file"].replace(root, "", 1),
        }
        for row in rows
    ]
    return sorted(found, key=lambda row: (row["file"], row["probability"] or 0))


def read(out: Path) -> list[dict]:
    return pyarrow.dataset.dataset(out, format="parquet", exclude_invalid_files=True).to_table().to_pylist()


def test_the_rows_are_those_of_one_machine_and_are_written_once(node, archive, expected, tmp_path):
    drawing = scoring.Options(heat_maps=tmp_path / "heat")
    os.link(archive / "deep" / "0.png", os.fsdecode(os.fsencode(archive) + b"/caf\xe9.png"))
    tally = scoring_ray.score([archive], MODELS, tmp_path / "out", drawing)
    os.remove(os.fsdecode(os.fsencode(archive) + b"/caf\xe9.png"))
    rows = read(tmp_path / "out")
    odd = [row for row in rows if row["file"].endswith(r"caf\xe9.png")]
    assert len(odd) == 1 and odd[0]["decision"] != "refused"
    assert tally.decisions == Counter(row["decision"] for row in rows) and tally.rubbish == 1
    drawn = [row.pop("heat_map") for row in rows]
    assert {name for name in drawn if name} == {file.name for file in (tmp_path / "heat").iterdir()}
    rows = told([row for row in rows if row not in odd], str(archive))
    assert rows == [{key: row[key] for key in row if key != "heat_map"} for row in expected]
    assert len(list((tmp_path / "out").glob("part-*"))) > 1

    next((tmp_path / "out").glob("part-*")).unlink()  # as if its worker had been lost with the whole run
    again = scoring_ray.score([archive], MODELS, tmp_path / "out", drawing)
    assert 0 < again.decisions.total() < len(expected)
    left = [row for row in told(read(tmp_path / "out"), str(archive)) if not row["file"].endswith("xe9.png")]
    assert [row["file"] for row in left] == [row["file"] for row in expected]
    assert not scoring_ray.score([archive], MODELS, tmp_path / "out", drawing).decisions


def test_pictures_elsewhere(node, archive, expected, tmp_path):
    """Behind addresses of pyarrow's own file systems, and of fsspec's."""
    roots = [f"file://{archive}", f"simplecache::file://{archive}"]
    tally = scoring_ray.score([*roots, f"{roots[0]}/gone.png"], MODELS, f"file://{tmp_path}/out")
    rows = read(tmp_path / "out")
    assert [row["codes"] for row in rows if row["file"] == f"{roots[0]}/gone.png"] == ["missing"]
    for root in roots:
        there = [row for row in rows if row["file"].startswith(f"{root}/") and "gone" not in row["file"]]
        assert told(there, root) == expected
    assert tally.rubbish == 2


def test_what_cannot_be_is_said(node, archive, tmp_path):
    expected_out = tmp_path / "c"
    expected_out.mkdir()
    (expected_out / "settings.json").write_text('{"models": {}}')
    with pytest.raises(Refused, match="nosuch://x cannot be opened"):
        scoring_ray.score(["nosuch://x"], MODELS, tmp_path / "a")
    with pytest.raises(Refused, match="There is no picture under"):
        (tmp_path / "empty").mkdir()
        scoring_ray.score([tmp_path / "empty"], MODELS, tmp_path / "b")
    with pytest.raises(Refused, match="holds the pictures"):
        scoring_ray.score([archive / "deep"], MODELS, archive)
    with pytest.raises(Refused, match="nothing says which models"):
        scoring_ray.score([archive], MODELS, archive / "deep")
    with pytest.raises(Refused, match="made with other heat maps and models"):
        scoring_ray.score([archive], scoring.Models("ct"), expected_out)
    with pytest.raises(Refused, match="has no GPU to give"):
        scoring_ray.score([archive], scoring.Models("xray", device="cuda"), tmp_path / "d")


class Flaky:
    """A file whose reads fail some times."""

    def __init__(self, file, failures: int):
        self.file, self.failures, self.closed = file, failures, False

    def read(self, count):
        self.failures -= 1
        if self.failures >= 0:
            raise OSError("connection reset by peer")
        return self.file.read(count)

    def tell(self):
        return self.file.tell()

    def close(self):
        self.closed = True


def test_a_place_that_stops_answering_is_asked_again(tmp_path, monkeypatch):
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    monkeypatch.setattr(places, "WAITS", (0.0, 0.0))
    where, lost = places.place(f"file://{tmp_path}"), []
    with places.Steady(where, where.within("a.bin"), lost) as stream:
        stream.seek(4)
        stream._file = Flaky(stream._file, 2)
        assert stream.read(3) == b"456" and not lost
    with places.Steady(where, where.within("a.bin"), lost) as stream:
        system = type("System", (), {"open_input_file": lambda self, path: Flaky(None, 1)})()
        stream._where = where._replace(system=system)
        stream._file = Flaky(stream._file, 1)
        monkeypatch.setattr(Flaky, "seek", lambda self, place: None, raising=False)
        with pytest.raises(Failed, match="does not answer"):
            stream.read(3)
    assert len(lost) == 1
    with pytest.raises(FileNotFoundError):
        places.Steady(where, where.within("gone.bin"))


@pytest.fixture
def judge(archive, tmp_path):
    """An actor in this process, and the names of a piece."""
    options = scoring.Options(batch_size=2, workers=1, per_slice=True)
    settings = scoring.settings_of(MODELS.opened(threads=1), options)
    order = scoring_ray.Order(MODELS, settings, (), (), str(tmp_path / "out"), options, 4)
    (tmp_path / "out").mkdir()
    entries = scoring_ray._entries([archive / "deep"], scoring.Tally(), [])
    return scoring_ray.Judge(order), next(scoring_ray._tables(entries))


def test_a_full_disk_ends_the_run_and_keeps_the_rows_so_far(judge, monkeypatch):
    actor, names = judge
    real, written = places.Place.write, []

    def full(self, name, content):
        if len(written) == 4:  # what says that a piece is tried, and the piece, twice
            raise OSError(28, "No space left on device")
        written.append(name)
        real(self, name, content)

    monkeypatch.setattr(places.Place, "write", full)
    told = [row for table in actor(names) for row in table.to_pylist()]
    assert [row["failed"] for row in told] == [False, False, True]
    assert "No space left" in told[-1]["problem"] and "the same command goes on" in told[-1]["problem"]
    assert len(read(Path(actor.order.out))) == 8


def test_a_machine_that_differs_is_told_apart(judge, tmp_path):
    actor, names = judge
    for change, words in (
        ({"settings": {"models": "others"}}, "has other models than the machine that started the run"),
        ({"seen": (str(tmp_path / "gone"),)}, f"has no {tmp_path}/gone"),
    ):
        told = next(scoring_ray.Judge(replace(actor.order, **change))(names)).to_pylist()[0]
        assert words in told["problem"] and not told["failed"]
    assert not read(Path(actor.order.out))


def test_a_piece_that_a_lost_actor_has_written_is_not_judged_again(judge, monkeypatch):
    actor, names = judge
    first = [row for table in actor(names) for row in table.to_pylist()]
    monkeypatch.setattr(actor, "screener", None)
    assert [row for table in actor(names) for row in table.to_pylist()] == first


def test_a_piece_that_kills_its_workers_ends_the_run(judge, monkeypatch):
    actor, names = judge

    def killed(*_, **__):
        raise KeyboardInterrupt  # as abrupt as a test can be

    monkeypatch.setattr(type(actor.screener), "screen_many", killed)
    for _ in range(scoring_ray.TRIES):
        with pytest.raises(KeyboardInterrupt):
            next(actor(names))
    told = next(actor(names)).to_pylist()[0]
    assert told["failed"] and "5 workers died over the 4 pictures" in told["problem"]
    out = places.place(actor.order.out)
    with scoring_ray._prepared([out], actor.order.settings):  # given again, it is tried anew
        assert not list(Path(out.path).glob(".part-*"))


def test_the_command_says_that_nobody_answers(archive, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hub_model", "score", archive, "--engine", "ray", "--address", "127.0.0.1:1",
         "--model", "xray", "--out", tmp_path / "out"],
        capture_output=True, text=True, cwd=EXAMPLES.parents[1],
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "No Ray cluster answers at 127.0.0.1:1" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "No Ray cluster answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:10001", "give HOST:PORT"),
        ("nowhere", "give HOST:PORT"),
    ],
)
def test_an_address_where_nobody_answers(address, words):
    with pytest.raises(Refused, match=words):
        scoring_ray._check_reached(address)
