"""``python -m train VERB``: every verb reads files, writes files and can be run again by itself.

A verb is a function of this package; its keywords are the flags. Exit codes: 0 done, 1 refused or failed, 2 wrong
usage.
"""

import sys
from importlib import import_module

import typer
from rich.console import Console

VERBS = {
    "phantom": "phantom:phantom",
    "prepare": "prepare:prepare",
    "explore": "explore:explore",
    "start": "starting_points:start",
    "fit": "fit:fit",
    "soup": "soup:soup",
    "evaluate": "evaluation:evaluate",
    "audit": "audits:audit",
    "compare": "compare:compare",
    "faithfulness": "faithfulness:faithfulness",
    "export": "export:export",
    "card": "card:card",
    "publish": "publish:publish",
    "publish-data": "publish:publish_data",
    "space": "space:space",
}
OURS = ("train", "hub_model")


class Verbs(typer.core.TyperGroup):
    """Imports a verb's module when the verb is asked for: preparing data does not wait for torch."""

    def list_commands(self, ctx):
        return list(VERBS)

    def get_command(self, ctx, name):
        if name not in VERBS:
            return None
        module, function = VERBS[name].split(":")
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(name)(getattr(import_module(f".{module}", __package__), function))
        return typer.main.get_command(single)


app = typer.Typer(cls=Verbs, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def train() -> None:
    """From archives of chest images to a published screening model."""


def main() -> None:
    try:
        app(prog_name="python -m train")
    except Exception as error:
        if not (type(error).__module__.startswith(OURS) or isinstance(error, OSError)):
            raise
        Console(stderr=True, highlight=False, markup=False).print(f"Refused. {error}", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
