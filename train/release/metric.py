"""The figures of a screening test as a Space: `evaluate.load("ORG/NAME")` opens them anywhere, without this package."""

import html
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import yaml

from hub_model.check import metrics
from hub_model.refused import Refused

from ..measure import screening_figures
from .hub import Content, Target, check_traces, show

FIGURES = "metrics.py"
"""The functions, which lie beside the module in the Space."""
HERE, THERE = "from hub_model.check.metrics import", "from .metrics import"
"""How the module imports them: in this package, and in the Space."""
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<body style="max-width: 45em; margin: 2em auto; font-family: sans-serif"><h1>{title}</h1><p>{text}</p>
<pre>{example}</pre><h2>What it takes</h2><pre style="white-space: pre-wrap">{inputs}</pre></body></html>
"""
EXAMPLE = """import evaluate

screening = evaluate.load("{repo_id}")
screening.compute(
    predictions=[0.9, 0.2, 0.7, 0.1],
    references=[1, 0, 1, 0],
    thresholds={{"half": 0.5}},
    families=["a", "b", "c", "d"],
)"""


def publish_metric(
    repo_id: Annotated[str, typer.Option(help="where to, ORG/NAME; NAME as a Python module may be called")],
    private: Annotated[bool, typer.Option("--private/--public", help="who may see a Space made new")] = True,
    replace: Annotated[bool, typer.Option(help="delete what else the Space holds")] = False,
    dry_run: Annotated[bool, typer.Option(help="check and list, upload nothing")] = False,
) -> str | None:
    """Upload the figures that `evaluate` computes as a Space of one module, once that computes the same alone.

    Returns:
        Address of the commit; None after a dry run.

    Raises:
        Refused: a name that no module can have, or see `publish`.
        Failed: the network gave up.
    """
    files = module_files(repo_id)
    check_module(files, _name_of(repo_id))
    check_traces(files)
    if dry_run:
        return show(files, repo_id)
    target = Target(
        repo_id, "space", private=private, revision="main", tag=None, owns=tuple(files), marks=(FIGURES,),
        replace=replace, sdk="static",
    )  # fmt: skip
    return target.upload(files, "covid-xct figures of a screening test")


def module_files(repo_id: str) -> dict[str, Content]:
    """Make the files of the Space: the module under the Space's own name, its functions, and what explains them."""
    name = _name_of(repo_id)
    module = Path(screening_figures.__file__).read_text("utf-8")
    if module.count(HERE) != 1:
        raise RuntimeError(f"{screening_figures.__file__} no longer imports its functions by {HERE!r}.")
    front = {
        "title": name,
        "sdk": "static",
        "app_file": "index.html",
        "license": "apache-2.0",
        "tags": ["evaluate", "metric"],
        "description": " ".join(screening_figures.DESCRIPTION.split()),
        "pinned": False,
    }
    example = EXAMPLE.format(repo_id=repo_id)
    readme = (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {name}\n\n{screening_figures.DESCRIPTION}\n\n"
        f"```python\n{example}\n```\n\n{screening_figures.INPUTS}\n\nNeeds numpy.\n"
    )
    texts = {"title": name, "text": screening_figures.DESCRIPTION, "example": example,
             "inputs": screening_figures.INPUTS}  # fmt: skip
    return {
        f"{name}.py": module.replace(HERE, THERE).encode(),
        FIGURES: Path(metrics.__file__).read_bytes(),
        "requirements.txt": b"numpy\n",
        "README.md": readme.encode(),
        "index.html": PAGE.format(**{key: html.escape(text) for key, text in texts.items()}).encode(),
    }


def check_module(files: dict[str, Content], name: str) -> None:
    """Load the module from a folder, as from a Space, and compare what it computes with the functions here.

    Raises:
        Refused: it cannot be loaded alone, or computes something else.
    """
    import evaluate

    rng = np.random.default_rng(0)
    labels, families = rng.integers(0, 2, 60), np.arange(60).astype(str)
    given = {"predictions": rng.random(60), "references": labels, "families": families}
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            (Path(folder) / file).write_bytes(content)
        try:
            found = evaluate.load(str(Path(folder) / f"{name}.py")).compute(**given)
        except (ImportError, OSError) as error:
            raise Refused(f"The module does not load alone: {error} Nothing was uploaded.") from error
    if found != metrics.figures(labels, given["predictions"], families, {"half": 0.5}):
        raise Refused("The module computes other figures alone than in this package. Nothing was uploaded.")


def _name_of(repo_id: str) -> str:
    """Take the module's name from ORG/NAME."""
    name = repo_id.rpartition("/")[2]
    if not name.isidentifier() or f"{name}.py" == FIGURES:
        raise Refused(
            f"--repo-id {repo_id}: `evaluate` looks for a Python module of the Space's name, and {name!r} cannot be "
            "one. Use letters, digits and underscores, as ORG/screening_figures."
        )
    return name
