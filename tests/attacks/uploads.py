"""Verbs that talk to the Hub, killed like the others: what must be whole is what the Hub holds afterwards."""

import atexit
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from .work import prepared, runs


@cache
def hub() -> Any:
    """A Hub on loopback that lives as long as this process; the clients of this process and its forks talk to it."""
    import contextlib

    from huggingface_hub import constants

    from tests import hub_standin

    open_until_exit = contextlib.ExitStack()
    atexit.register(open_until_exit.close)
    cache = open_until_exit.enter_context(tempfile.TemporaryDirectory())
    found = open_until_exit.enter_context(hub_standin.running(Path(cache)))
    constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = found.url, False, True
    constants.HUGGINGFACE_CO_URL_TEMPLATE = found.url + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_CACHE = cache
    os.environ["HF_TOKEN"] = hub_standin.WRITER
    return found


def repository(folder: Path) -> str:
    """Name the repository of a folder; every kill has one of its own."""
    return f"org/of_{folder.name}"


def on_hub(kind: str, mark: str) -> Callable[[Path], str | None]:
    """Make a function that hashes what the Hub holds for a folder, but for the repository's name.

    It gives None while the file ``mark``, which every upload holds, is not there.
    """

    def same(place: Path) -> str | None:
        owner, _, name = repository(place.parent).partition("/")
        repo = hub().repos.get((kind, f"{owner}/{name}"))
        if repo is None or mark.format(name=name) not in repo.at("main").files:
            return None
        found = hashlib.sha256()
        for path, blob in sorted(repo.at("main").files.items()):
            found.update(f"{path}\0".replace(name, "").encode() + blob.content.replace(name.encode(), b""))
        return found.hexdigest()

    return same


def lettered_runs(folder: Path) -> None:
    from train.release.card import card

    runs(folder)
    for run in (folder / "runs").iterdir():
        card(run)


def publish_run(run: Path, repo_id: str, **more: Any) -> None:
    from train.release import hub as upload
    from train.release import publish

    publish.check_loaders = lambda run: None  # it takes seconds and uploads nothing
    upload.PAUSE = 0.0
    publish.publish(run, repo_id, **more)


def run_publish(folder: Path, seed: str) -> None:
    publish_run(folder / "runs" / seed, repository(folder))


def two_prepared(folder: Path) -> None:
    """The same pictures, split in two ways."""
    from train.data.prepare import prepare

    prepared(folder)
    (folder / "data").rename(folder / "data0")
    prepare([folder / "set"], folder / "data1", families="known", jobs=1, seed=1)


def run_publish_data(folder: Path, seed: str) -> None:
    from train.release import hub as upload
    from train.release.publish import publish_data

    upload.PAUSE = 0.0
    publish_data(folder / f"data{seed}", repository(folder))


def run_publish_metric(folder: Path, seed: str) -> None:
    from train.release import hub as upload
    from train.release import metric

    upload.PAUSE = 0.0
    metric.EXAMPLE = metric.EXAMPLE.replace("0.9", f"0.8{seed}")  # the module of another version
    metric.publish_metric(repository(folder))


def on_the_hub(folder: Path) -> None:
    """A model published in two states, once for all; pages may pin either."""
    if ("models", "org/model") in hub().repos:
        return
    lettered_runs(folder)
    for number in "01":
        publish_run(folder / "runs" / number, "org/model", tag=f"v{number}", private=False)


def run_space(folder: Path, seed: str) -> None:
    from train.release.space import space

    space("org/page", [f"org/model@v{seed}"], out=folder / "out", dry_run=True)
