"""The public interface and the map of the modules, as Markdown, from the docstrings."""

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import hub_model

ROOT = Path(__file__).parents[2]
ROOMS = ("hub_model", "train", "demo")
SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises):\s*")
NAMED = re.compile(r"^([*\w]+):")
Named = ast.ClassDef | ast.FunctionDef


def interface() -> str:
    """Every name of `hub_model.__all__`, with its signature and docstring; of a class its public members as well."""
    return "\n\n".join(_entry(name, getattr(hub_model, name)) for name in hub_model.__all__)


def modules() -> str:
    """One line a module: the first sentence of its docstring."""
    lines = []
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py"), key=lambda file: (file.parent, file.name)):
            if said := ast.get_docstring(ast.parse(file.read_text("utf-8"))):
                lines.append(f"| `{file.relative_to(ROOT).as_posix()}` | {_sentence(said)} |")
    return "\n".join(["| module | what it does |", "| --- | --- |", *lines])


def _sentence(docstring: str) -> str:
    text = " ".join(docstring.split("\n\n")[0].split()).removesuffix(".")
    return text.replace("``", "`").replace("|", "\\|")


def _entry(name: str, thing: object) -> str:
    home = sys.modules.get(getattr(thing, "__module__", None) or "")
    if home is None or not hasattr(thing, "__name__"):
        shown = repr(thing).replace("'", '"')
        return f"### {name}\n\n```python\n{name} = {shown}\n```"
    node = next(node for node in _tree(home).body if isinstance(node, Named) and node.name == name)
    parts = [f"### {name}", _signature(node), _prose(ast.get_docstring(node) or "")]
    if isinstance(node, ast.ClassDef):
        for member in node.body:
            if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                parts += [
                    f"#### {name}.{member.name}",
                    _signature(member),
                    _prose(ast.get_docstring(member) or ""),
                ]
    return "\n\n".join(part for part in parts if part)


def _tree(home: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(home))


def _signature(node: Named) -> str:
    """As written in the source, without decorators' effects: the first line of a class or function, unwrapped."""
    if isinstance(node, ast.ClassDef):
        line = f"class {node.name}" + (f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else "")
        return f"```python\nfrom {hub_model.__name__} import {node.name}\n\n{line}\n```"
    kinds = {ast.unparse(decorator) for decorator in node.decorator_list} & {
        "classmethod",
        "property",
        "staticmethod",
    }
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"def {node.name}({ast.unparse(node.args)}){returns}"
    if len(line) > 100:
        listed = ",\n    ".join(_arguments(node.args))
        line = f"def {node.name}(\n    {listed},\n){returns}"
    return "```python\n" + "".join(f"@{kind}\n" for kind in sorted(kinds)) + line + "\n```"


def _arguments(given: ast.arguments) -> list[str]:
    """Each argument by itself; `ast.unparse` writes them all in one line."""
    alone = []
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    for argument, default in zip(positional, defaults, strict=True):
        alone.append(_argument(argument, default))
    if given.vararg:
        alone.append(f"*{_argument(given.vararg, None)}")
    elif given.kwonlyargs:
        alone.append("*")
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        alone.append(_argument(argument, default))
    return [*alone, *([f"**{_argument(given.kwarg, None)}"] if given.kwarg else [])]


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
    equals = " = " if argument.annotation else "="
    return f"{argument.arg}{kind}" + (f"{equals}{ast.unparse(default)}" if default else "")


def _prose(docstring: str) -> str:
    """Google style -> Markdown: sections become a bold word and, where items are named, a list."""
    written = []
    for block in docstring.split("\n\n"):
        head, _, body = block.partition("\n")
        if section := SECTION.fullmatch(head):
            listed = section[1] in ("Args", "Attributes", "Raises")
            written.append(f"**{section[1]}**\n\n{_items(body) if listed else ' '.join(body.split())}")
        elif head.startswith(">>>"):
            written.append(f"```python\n{block}\n```")
        else:
            written.append(block)
    return "\n\n".join(written).replace("``", "`")


def _items(body: str) -> str:
    """`name: text` lines, continued by deeper ones, as a list."""
    items: list[str] = []
    for line in textwrap.dedent(body).splitlines():
        if line.startswith(" ") and items:
            items[-1] += f" {line.strip()}"
        else:
            items.append(line.strip())
    return "\n".join("- " + NAMED.sub(r"`\1`:", item) for item in items)
