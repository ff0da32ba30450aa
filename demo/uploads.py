"""Where uploads lie and how they go: a private folder, swept by age, removed with its process or after it."""

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX, LOCK = "covid-xct-", ".lock"
QUOTA = 4 * 2**30
"""Bytes that all uploads together may take."""
FREE_SHARE = 0.5
"""Of what is free on the disk, at most; the smaller of the two counts."""

log = logging.getLogger("covid_xct.demo")


class Uploads:
    """A folder for uploads, with a thread that deletes what is old.

    Args:
        folder: where they lie.
        kept: seconds that a file stays after it was last written, handed out or used (`intake.keep`).
        pause: seconds between two looks.
        known: sets of paths that Gradio keeps of its files; deleted ones are taken out.
    """

    def __init__(
        self, folder: Path, kept: float, pause: float, known: Iterable[set[str]] = (), quota: int = QUOTA
    ) -> None:
        self.folder, self.kept, self.pause, self.quota = folder, kept, pause, quota
        self._known = tuple(known)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def watch(self) -> None:
        """Start the sweeping thread, or start it again should it have ended; called at every upload."""
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._sweep_again_and_again, daemon=True, name="sweeper"
                )
                self._thread.start()

    def end(self) -> None:
        """Stop sweeping."""
        self._ended.set()

    def sweep(self) -> None:
        """Delete files, and then empty folders, that nobody has touched for `kept` seconds.

        Neither is there a list to trust in: the folder itself is looked through, so half-open uploads are found too.
        """
        before = time.time() - self.kept
        for place, folders, files in os.walk(self.folder, topdown=False):
            for name in files:
                path = os.path.join(place, name)
                with contextlib.suppress(OSError):
                    if _touched(path) < before:
                        os.unlink(path)
                        for paths in self._known:
                            paths.discard(path)
            for name in folders:
                with contextlib.suppress(OSError):  # it is not empty
                    if _touched(os.path.join(place, name)) < before:
                        os.rmdir(os.path.join(place, name))

    def used(self) -> int:
        """Count the bytes that lie here now."""
        total = 0
        for place, _, files in os.walk(self.folder):
            for name in files:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(place, name)).st_size
        return total

    def room(self) -> int:
        """Count the bytes that may still come."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free = int(shutil.disk_usage(self.folder).free * FREE_SHARE)
        return min(self.quota - self.used(), free)

    def _sweep_again_and_again(self) -> None:
        while not self._ended.wait(self.pause):
            try:
                self.sweep()
            except Exception:  # whatever it is, the next look comes
                log.exception("a look through the uploads failed")


def private_folder(parent: str | os.PathLike | None = None) -> tuple[Path, FileLock]:
    """Make a folder that only this user can read, and the lock that shows that its process lives.

    Removes first the folders of processes that have ended, for any reason.
    """
    parent = Path(parent or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    lock = FileLock(folder.with_name(folder.name + LOCK))
    lock.acquire()
    return folder, lock


def remove(folder: Path, lock: FileLock) -> None:
    """Remove a private folder at the end of its process."""
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)


def remove_leftovers(parent: Path) -> None:
    """Remove private folders whose lock nobody holds; folders of other users or in use stay."""
    for held in parent.glob(f"{PREFIX}*{LOCK}"):
        lock = FileLock(held)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            continue
        remove(held.with_name(held.name.removesuffix(LOCK)), lock)


def _touched(path: str) -> float:
    """Say when a file was last written or its entry changed, in seconds since 1970."""
    found = os.lstat(path)
    return max(found.st_mtime, found.st_ctime)
