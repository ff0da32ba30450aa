"""Whole or not at all: killed at any moment, with a full disk, in a closed folder, and by two at once."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hub_model import whole
from hub_model.whole import InUse, changed_folder, held, partial_folder, whole_file, whole_files, whole_folder
from tests.bad_files import files_of_at_most


def write(folder: Path, text: str, count: int = 3) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.txt").write_text(text)


def texts(folder: Path) -> list[str]:
    return [file.read_text() for file in sorted(folder.iterdir())]


def test_a_folder_takes_the_place_of_another(tmp_path):
    for text in ("old", "new"):
        with whole_folder(tmp_path / "a") as new:
            write(new, text)
    assert texts(tmp_path / "a") == ["new"] * 3 and list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_without_the_exchange_of_linux_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "_exchanged", lambda one, two: False)
    test_a_folder_takes_the_place_of_another(tmp_path)


@pytest.mark.parametrize("where", ["beside it", "mounted", "mounted from the same disk"])
def test_a_changed_folder_is_the_old_one_or_has_every_change(tmp_path, monkeypatch, where):
    """Files that are not replaced stay, and with their contents; links too; what is taken away goes."""
    run = tmp_path / "run"
    (run / "plots").mkdir(parents=True)
    write(run, "old"), write(run / "plots", "old", 1), write(run / "gone", "old", 1)
    (run / "link").symlink_to("0.txt")
    run.chmod(0o700)
    if where == "mounted":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == run)
    if where == "mounted from the same disk":
        first = Path.replace

        def replace(self, target):
            if run in (self, target):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            return first(self, target)

        monkeypatch.setattr(Path, "replace", replace)
        exchanged = whole._exchanged
        monkeypatch.setattr(whole, "_exchanged", lambda one, two: two != run and exchanged(one, two))
    with pytest.raises(KeyError), changed_folder(run) as new:
        with whole_file(new / "0.txt") as file:
            file.write_text("new")
        raise KeyError
    assert (run / "0.txt").read_text() == "old"
    with changed_folder(run) as new:
        for name in ("0.txt", "plots/1.txt"):
            with whole_file(new / name) as file:
                file.write_text("new")
        (new / "gone" / "0.txt").unlink(), (new / "gone").rmdir()
        assert [file.read_text() for file in sorted(run.glob("*.txt"))] == ["old"] * 3
    assert [file.read_text() for file in sorted(run.glob("*.txt"))] == ["new", "old", "old"]
    assert texts(run / "plots") == ["old", "new"] and os.readlink(run / "link") == "0.txt"
    assert run.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in run.iterdir()) == ["0.txt", "1.txt", "2.txt", "link", "plots"]
    assert list(tmp_path.iterdir()) == [run]


def test_a_changed_folder_may_be_new(tmp_path):
    with changed_folder(tmp_path / "a") as new:
        write(new, "new")
    assert texts(tmp_path / "a") == ["new"] * 3


def test_a_folder_that_is_changed_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "PATIENCE", 0.2)
    (tmp_path / "a").mkdir()
    with changed_folder(tmp_path / "a") as new:
        write(new, "first")
        with pytest.raises(InUse), changed_folder(tmp_path / "a"):
            pass
    with held(tmp_path / "a"):
        assert texts(tmp_path / "a") == ["first"] * 3


def test_files_that_belong_together(tmp_path):
    (tmp_path / "other").write_text("other")
    with whole_files(tmp_path) as new:
        write(new, "old")
    with pytest.raises(KeyError), whole_files(tmp_path) as new:
        write(new, "new")
        raise KeyError
    assert texts(tmp_path) == ["old"] * 3 + ["other"]


def test_a_file_in_the_way_stays(tmp_path):
    (tmp_path / "a").write_text("file")
    with pytest.raises(NotADirectoryError), whole_folder(tmp_path / "a"):
        raise AssertionError
    assert (tmp_path / "a").read_text() == "file"


def test_a_link_is_followed(tmp_path):
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to("place")
    with whole_folder(tmp_path / "link") as new:
        write(new, "new")
    assert (tmp_path / "link").is_symlink() and texts(tmp_path / "place") == ["new"] * 3


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_an_error_leaves_the_old_and_nothing_else(tmp_path, error):
    with whole_folder(tmp_path / "a") as new:
        write(new, "old")
    with whole_file(tmp_path / "b") as new:
        new.write_text("old")
    for writing in (whole_folder, whole_file):
        with pytest.raises(OSError) as raised, writing(tmp_path / ("a" if writing is whole_folder else "b")):
            raise OSError(error, os.strerror(error))
        assert raised.value.errno == error
    with files_of_at_most(100), pytest.raises(OSError), whole_file(tmp_path / "b") as new:
        new.write_bytes(bytes(1000))
    assert texts(tmp_path / "a") == ["old"] * 3 and (tmp_path / "b").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to the superuser")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    for writing in (whole_folder, whole_file):
        with pytest.raises(PermissionError), writing(tmp_path / "a"):
            raise AssertionError
    tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from hub_model import whole
place, moment = Path(sys.argv[1]), sys.argv[2]

def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)

if moment == "between":
    whole._exchanged = lambda one, two: False
    first, seen = Path.replace, []
    def replace(self, target):
        if seen: die()
        seen.append(target)
        return first(self, target)
    Path.replace = replace
if moment == "tidying":
    whole.shutil.rmtree = die
with whole.whole_folder(place) as new:
    for number in range(3):
        (new / f"{number}.txt").write_text("new")
        if moment == "writing": die()
"""


@pytest.mark.parametrize("moment", ["writing", "between", "tidying"])
def test_killed_at_the_worst_moments(tmp_path, moment):
    """Afterwards the old or the new, and the next writer removes what was left."""
    with whole_folder(tmp_path / "a.b") as new:
        write(new, "old")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a.b"), moment]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) > 1 or moment == "between"
    whole._tidy.cache_clear()
    with whole_file(tmp_path / "other") as new:
        new.write_text("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b", "other"]
    assert texts(tmp_path / "a.b") in (["old"] * 3, ["new"] * 3)


def test_what_lives_is_left_alone(tmp_path):
    foreign = [
        tmp_path / f".a.partial-{'0' * 8}-{os.getpid()}-x",
        tmp_path / ".a.partial-tmp",
        tmp_path / "a",
    ]
    [path.mkdir() for path in foreign]
    with partial_folder(tmp_path, "a.") as mine:
        whole._tidy.cache_clear()
        whole._tidy(tmp_path)
        assert mine.is_dir() and all(path.is_dir() for path in foreign)
    assert not mine.exists()


def test_a_folder_is_held_by_one_process_alone(tmp_path):
    code = "import sys; from pathlib import Path; from hub_model.whole import held\nwith held(Path(sys.argv[1])): pass"
    with held(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False
        )
        assert "InUse" in done.stderr and "Another process works in" in done.stderr
        with pytest.raises(InUse), held(tmp_path):
            pass
    with held(tmp_path):
        assert not list(tmp_path.iterdir())
