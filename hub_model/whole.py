"""Write a file or a folder whole or not at all: it is made under another name beside its place, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a path to write to; what lies there when the block ends replaces `path` in one step.

    If the block raises, `path` stays as it was and nothing is left behind. The new name keeps the suffix, so that
    libraries which choose a format by it choose the same. Folders above `path` are made.

    Raises:
        OSError: the place cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.partial-", dir=path.parent) as folder:
        new = Path(folder) / path.name
        yield new
        new.chmod(0o644)  # some writers, safetensors among them, leave files that only their owner can read
        os.replace(new, path)


@contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new empty folder; when the block ends it takes the place of `path` and of all that lay there.

    If the block raises, `path` stays as it was and nothing is left behind.

    Raises:
        OSError: the place cannot be written, or `path` is a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    try:
        yield new
        new.chmod(0o755)
        if path.exists():
            old = new.with_name(f"{new.name}.old")
            path.replace(old)
            new.replace(path)
            shutil.rmtree(old)
        else:
            new.replace(path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
