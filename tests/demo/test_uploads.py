"""The folder of uploads: swept by age whatever happens, removed after its process however that ended."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.served import ROOT

sys.path.insert(0, str(ROOT / "demo"))  # as Python does for `python demo/app.py`

import uploads
from uploads import Uploads


def written(path: Path, size: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def test_old_files_and_their_folders_go_and_young_ones_stay(tmp_path):
    known = {str(tmp_path / "a" / "old.png"), "another"}
    written(tmp_path / "a" / "old.png")
    swept = Uploads(tmp_path, kept=0.3, pause=9, known=[known])
    swept.sweep()
    assert (tmp_path / "a" / "old.png").is_file()
    time.sleep(0.4)
    young = written(tmp_path / "b" / "young.png")
    swept.sweep()
    swept.sweep()
    assert not (tmp_path / "a" / "old.png").exists() and young.is_file()
    assert known == {"another"}
    time.sleep(0.4)
    swept.sweep()
    assert not (tmp_path / "a").exists()


def test_a_file_in_use_is_kept_by_its_time(tmp_path):
    path, swept = written(tmp_path / "used.png"), Uploads(tmp_path, kept=0.3, pause=9)
    for _ in range(4):
        time.sleep(0.15)
        os.utime(path)
        swept.sweep()
    assert path.is_file()


def test_files_that_come_and_go_meanwhile_end_no_sweeper(tmp_path):
    """As under parallel uploads, which end Gradio's own: files vanish between a listing and a look."""
    swept = Uploads(tmp_path, kept=0.05, pause=0.01)
    swept.watch()
    try:

        def come_and_go(name: int) -> None:
            for number in range(150):
                path = written(tmp_path / f"{name}-{number}" / "x.png")
                if number % 3 == 0:
                    path.unlink(missing_ok=True)

        threads = [threading.Thread(target=come_and_go, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        limit = time.monotonic() + 30
        while any(tmp_path.iterdir()):
            assert time.monotonic() < limit, "files stay"
            time.sleep(0.05)
    finally:
        swept.end()


def test_an_error_in_one_look_does_not_end_the_next_and_a_dead_thread_is_started_again(tmp_path, monkeypatch):
    swept, looks = Uploads(tmp_path, kept=9, pause=0.02), []

    def broken() -> None:
        looks.append(1)
        raise RuntimeError("set changed size during iteration")

    monkeypatch.setattr(swept, "sweep", broken)
    swept.watch()
    limit = time.monotonic() + 20
    while len(looks) < 3:
        assert time.monotonic() < limit
        time.sleep(0.02)
    first = swept._thread
    swept.end()
    first.join(10)
    swept._ended.clear()
    swept.watch()
    assert swept._thread is not first and swept._thread.is_alive()
    swept.end()


def test_room_is_what_the_quota_leaves(tmp_path):
    written(tmp_path / "x" / "a.png", 600)
    assert Uploads(tmp_path, kept=9, pause=9, quota=1000).room() == 400


HOLD = """
import sys; sys.path.insert(0, {demo!r}); import time, uploads
folder, lock = uploads.private_folder({parent!r}); (folder / "picture.png").write_bytes(b"x")
print(folder, flush=True); time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process with a private folder."""
    code = HOLD.format(demo=str(ROOT / "demo"), parent=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.wait()


def test_what_a_killed_process_leaves_goes_at_the_next_start_and_what_lives_stays(holder, tmp_path):
    process, folder = holder
    uploads.remove_leftovers(tmp_path)
    assert (folder / "picture.png").is_file()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "picture.png").is_file()
    own, lock = uploads.private_folder(tmp_path)
    assert not folder.exists() and own.is_dir() and own.stat().st_mode & 0o77 == 0
    uploads.remove(own, lock)
    assert list(tmp_path.iterdir()) == []
