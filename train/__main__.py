"""``python -m train VERB``: every verb reads files, writes files and can be run again by itself.

A verb is a function of this package; its keywords are the flags. Exit codes: 0 done, 1 refused or failed, 2 wrong
usage.
"""

import inspect
import re
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import typer
from rich.console import Console

from hub_model.refused import Failed, Refused


class Verb(NamedTuple):
    """Where a verb's function lives, and its line of the help, which imports no verb."""

    place: str
    help: str


VERBS = {
    "phantom": Verb("phantom.phantom:phantom", "Draw synthetic chest pictures in the documented layout."),
    "prepare": Verb("data.prepare:prepare", "Make one data set with leak-free splits from any collections."),
    "explore": Verb("data.explore:explore", "Report on one page what a data set holds and what gives its labels away."),
    "start": Verb("fit.starting_points:start", "Carry ImageNet weights over to a stock timm architecture."),
    "outline": Verb("data.outline:outline", "Outline the lungs of CT slices by their grey levels."),
    "lungs": Verb("fit.lungs:train_lungs", "Train the network that finds lungs, from outlines."),
    "fit": Verb("fit.fit:fit", "Train a network; a killed run resumes when the same command is given again."),
    "tune": Verb("fit.tune:tune", "Search the penalties of a steady head over sources and families left out."),
    "soup": Verb("fit.soup:soup", "Average the weights of several runs into one network."),
    "evaluate": Verb("measure.evaluate:evaluate", "Calibrate a run on validation and score its test split once."),
    "patients": Verb("measure.patients:patients", "Choose and measure a CT run's rule for whole series by patients."),
    "audit": Verb("measure.audit:audit", "Measure what else gives the label away: borders, thumbnails, collections."),
    "compare": Verb("measure.compare:compare", "Put evaluated runs side by side, with intervals."),
    "seen": Verb("measure.seen:seen", "Leave hashes of a run's own pictures in its folder, for checks elsewhere."),
    "faithfulness": Verb("measure.faithfulness:faithfulness", "Measure a run's heat map against chance."),
    "export": Verb("release.web:export", "Write the run for transformers.js, checked on real pictures."),
    "card": Verb("release.card:card", "Write the model card of a run."),
    "publish": Verb("release.publish:publish", "Upload a run as one commit, once every loader agrees."),
    "publish-data": Verb("release.publish:publish_data", "Upload a prepared data set with its card."),
    "publish-metric": Verb("release.metric:publish_metric", "Upload the figures as a module of `evaluate`, a Space."),
    "space": Verb("release.space:space", "Write the page as a folder and upload it as a Space."),
}  # fmt: skip


class Verbs(typer.core.TyperGroup):
    """Imports a verb's module when that verb is run: neither the help nor another verb waits for it."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        """Name the verbs, in the order of `VERBS`."""
        return list(VERBS)

    def get_command(self, ctx: typer.Context, name: str) -> Any:
        """Make a stand-in with a verb's line of help."""
        return _command(name, lambda: None, help=VERBS[name].help) if name in VERBS else None

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple[str, Any, list[str]]:
        """Import the verb that is to be run."""
        name, _, rest = super().resolve_command(ctx, args)
        module, name_there = VERBS[name].place.split(":")
        function = getattr(import_module(f".{module}", __package__), name_there)
        return name, _command(name, function, help=_prose(function)), rest


def _prose(function: Callable[..., Any]) -> str:
    """Cut a docstring before its sections: flags have help of their own, and the rest is for callers in Python."""
    return re.split(r"\n\n(?:Args|Returns|Raises):\n", inspect.getdoc(function) or "")[0]


def _command(name: str, function: Callable[..., Any], **settings: Any) -> Any:
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name, **settings)(function)
    return typer.main.get_command(single)


app = typer.Typer(cls=Verbs, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def train() -> None:
    """Make a published screening model from archives of chest images."""


def main() -> None:
    """Run a verb as the command line names it; print a refusal or failure as one sentence."""
    try:
        app(prog_name="python -m train")
    except (Refused, Failed, OSError) as error:
        word = "Refused" if isinstance(error, Refused) else "Failed"
        Console(stderr=True, highlight=False, markup=False).print(f"{word}. {error}", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
