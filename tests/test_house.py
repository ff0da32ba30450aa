"""The house: which way the arrows point, what importing does, and that README and docs tell the truth.

    python -m tests.test_house [--before COMMIT] [--bare PYTHON]

prints lines and files of every folder, the longest functions, arrows, circles, and the seconds of the help; with a
commit, its figures beside them, and writes docs/measured/house.json and house.md.
"""

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tests.benchmarks.measured import FOLDER, table, write
from tests.benchmarks.readme import MADE, PYTHON, README, pages, rendered

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("hub_model", "train", "demo")
MAY_IMPORT = {
    "hub_model": set(),
    "hub_model.check": {"hub_model"},
    "demo": {"hub_model", "hub_model.check"},
    "train": {"hub_model"},  # the list of verbs names the rooms and imports none
    "train.data": {"hub_model.check", "hub_model"},
    "train.phantom": {"hub_model.check", "train.data", "hub_model"},
    "train.measure": {"hub_model.check", "train.data", "hub_model"},
    "train.fit": {"hub_model.check", "train.measure", "train.data", "hub_model"},
    "train.release": {"hub_model.check", "train.measure", "train.data", "hub_model"},
}
"""Which rooms a room may import from, besides itself."""


def room_of(module: str, root: Path = ROOT) -> str:
    """ "train.data.split" -> "train.data"; "hub_model.guard" -> "hub_model"."""
    parts = module.split(".")
    inner = ".".join(parts[:2]) in MAY_IMPORT and root.joinpath(*parts[:2]).is_dir()
    return ".".join(parts[: 2 if inner else 1])


@cache
def tree(file: Path) -> ast.Module:
    """The syntax tree of a file, read once."""
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def imported(file: Path, root: Path = ROOT) -> set[str]:
    """Full names of the modules that a file imports, at any depth of its code, relative imports resolved."""
    package = file.relative_to(root).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def arrows(root: Path = ROOT) -> dict[tuple[str, str], list[str]]:
    """(room, room it imports from) -> the files that do."""
    drawn = {}
    for top in TOPS:
        for file in sorted((root / top).rglob("*.py")):
            name = file.relative_to(root)
            home = room_of(".".join(name.with_suffix("").parts), root)
            for module in imported(file, root):
                other = room_of(module, root)
                if module.split(".")[0] in TOPS and other != home:
                    files = drawn.setdefault((home, other), [])
                    files += [str(name)] if str(name) not in files else []
    return drawn


def test_arrows_point_one_way():
    wrong = {pair: files for pair, files in arrows().items() if pair[1] not in MAY_IMPORT[pair[0]]}
    assert not wrong, "\n".join(f"{a} -> {b}, by {', '.join(files)}" for (a, b), files in wrong.items())


def circles(root: Path = ROOT) -> list[list[str]]:
    """Modules that import each other in a circle, within and across rooms: the strongly connected ones.

    `hub_model` itself and the rooms' packages are no modules of their own. The modules of `demo` import each other by
    their bare names.
    """
    files = {
        ".".join(file.relative_to(root).with_suffix("").parts): file
        for top in TOPS
        for file in sorted((root / top).rglob("*.py"))
    }
    names, pairs = list(files), []
    for name, file in files.items():
        found = imported(file, root)
        found |= {f"demo.{module}" for module in found} if name.startswith("demo.") else set()
        own = {module if module in files else module.rpartition(".")[0] for module in found}
        pairs += [
            (names.index(name), names.index(other)) for other in own if other in files and other != name
        ]
    graph = coo_array(([1] * len(pairs), tuple(zip(*pairs, strict=True))), shape=(len(names),) * 2)
    _, part_of = connected_components(graph, connection="strong")
    return [
        [name for name, part in zip(names, part_of, strict=True) if part == many]
        for many, count in Counter(part_of).items()
        if count > 1
    ]


def test_modules_import_each_other_in_no_circle():
    assert not circles(), f"in a circle: {circles()}"


def test_no_pickles_and_no_remote_code():
    for room in TOPS:
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(tree(file)):
                if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                    assert isinstance(node.value, ast.Constant) and node.value.value is False, file
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    assert (node.value.id, node.attr) not in {("torch", "load"), ("joblib", "load")}, file
            found = {module.split(".")[0] for module in imported(file)}
            assert not found & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}, file


@pytest.mark.slow
def test_importing_prints_nothing_and_leaves_the_callers_random_state():
    code = (
        "import random, torch, warnings\n"
        "torch.manual_seed(3); random.seed(3); before = (torch.get_rng_state().sum(), random.getstate())\n"
        "filters = list(warnings.filters)\n"
        "import hub_model, hub_model.covid_cnn, hub_model.evidence\n"
        "assert (torch.get_rng_state().sum(), random.getstate()) == before\n"
        "assert 'gradio' not in __import__('sys').modules and 'datasets' not in __import__('sys').modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_pages_are_as_measured(page):
    """Tables, the models' figures, the example's output, the reference and the map are what they are today."""
    text = page.read_text("utf-8")
    assert rendered(text) == text, "run `python -m tests.benchmarks.readme`"


def test_every_measured_table_is_on_a_page():
    shown = "".join(page.read_text("utf-8") for page in pages())
    unnamed = [file.name for file in FOLDER.glob("*.md") if f"<!-- measured: {file.stem} -->" not in shown]
    assert not unnamed, f"measured, but on no page: {unnamed}"
    assert all(f"<!-- measured: {name} -->" in shown for name in MADE)


def anchors(page: Path) -> set[str]:
    """The places of a page that a link can name, as GitHub makes them from the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKING = [*pages(), ROOT / "CHANGELOG.md", ROOT / "demo" / "README.md"]


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    """Files and headings of this repository; addresses of others are not asked for."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, place = target.partition("#")
        there = (page.parent / unquote(name)).resolve() if name else page
        assert there.exists(), f"{page.name} links to {target}, which does not exist"
        assert not place or place in anchors(there), f"{page.name} links to {target}: no such heading"


def test_every_page_can_be_reached_from_the_readme():
    linked = {
        (ROOT / target).resolve() for target in re.findall(r"\]\(([\w/.-]+)\)", README.read_text("utf-8"))
    }
    assert {page for page in pages() if page != README} <= linked


def test_readme_is_short_and_names_every_extra():
    text = README.read_text("utf-8")
    assert len(text.splitlines()) <= 130
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = set(re.findall(r"`([a-z]+)`\s\(", text.split("covid-xct[EXTRA]")[1].split("\n\n")[0]))
    assert named == set(project["optional-dependencies"]), "the README's extras and pyproject.toml differ"


@pytest.mark.slow
def test_readme_example_uses_a_file_of_the_repository():
    """It was run for its output (see `test_pages_are_as_measured`); the output is an answer, not a refusal."""
    code = PYTHON.search(README.read_text("utf-8"))[1]
    (name,) = re.findall(r"screen\(\"([^\"]+)\"", code)
    assert (ROOT / name).is_file() and len(code.split("\n\n")) == 2
    assert re.fullmatch(
        r"```\n(positive|negative|inconclusive), 0\.\d\d \(threshold 0\.\d\d\)\n```", MADE["example"]()
    )


def defined(file: Path) -> Iterator[str]:
    """Names of a module's functions, classes, methods and constants."""
    for node in tree(file).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        yield from (target.id for target in targets if isinstance(target, ast.Name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef))


def walks() -> dict[str, list[str]]:
    """The walks of docs/contributing.md: title -> stops, each one or several ``file::name``."""
    section = (
        (ROOT / "docs" / "contributing.md").read_text("utf-8").split("## Two walks")[1].split("\n## ")[0]
    )
    found: dict[str, list[str]] = {}
    for line in section.splitlines():
        if line.endswith(":"):
            found[line] = []
        elif re.match(r"\d+\. ", line):
            found[list(found)[-1]].append(line)
    return found


def test_walks_name_what_is_there():
    assert len(walks()) == 2
    for title, stops in walks().items():
        assert 5 <= len(stops) <= 12, title
        for stop in stops:
            named = re.findall(r"`([\w/.]+)::([\w.]+)`", stop)
            assert named, stop
            for file, name in named:
                assert (ROOT / file).is_file() and name in set(defined(ROOT / file)), (
                    f"{stop}: no {file}::{name}"
                )


def test_benchmarks_are_all_listed():
    text = (ROOT / "docs" / "contributing.md").read_text("utf-8")
    tools = {"measured", "readme", "reference"}
    names = {file.stem for file in (ROOT / "tests" / "benchmarks").glob("*.py")} - tools
    assert names == set(re.findall(r"^\| `python -m tests\.benchmarks\.(\w+)", text, re.MULTILINE))


def test_every_module_says_what_it_does():
    silent = [
        str(file.relative_to(ROOT))
        for top in TOPS
        for file in (ROOT / top).rglob("*.py")
        if "snippets" not in file.parts and not ast.get_docstring(tree(file))
    ]
    assert not silent, silent


def test_no_path_of_the_machine_in_tracked_files():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split(
        "\0"
    )
    if files == [""]:
        pytest.skip("not a git checkout")
    home = str(ROOT)
    for name in filter(None, files):
        assert home.encode() not in (ROOT / name).read_bytes(), name


# What the house is like, in figures


def sizes(root: Path) -> dict[str, tuple[int, int]]:
    """Folder with Python files -> (files, lines); the tests by themselves."""
    found: dict[str, tuple[int, int]] = {}
    for top in (*TOPS, "tests"):
        for file in sorted((root / top).rglob("*.py")):
            folder = file.parent.relative_to(root).as_posix()
            files, lines = found.get(folder, (0, 0))
            found[folder] = files + 1, lines + len(file.read_text("utf-8").splitlines())
    return found


def longest(root: Path, count: int = 5) -> list[tuple[int, str]]:
    """(lines, ``file::name``) of the longest functions outside the tests, docstrings and all."""
    found = []
    for top in TOPS:
        for file in sorted((root / top).rglob("*.py")):
            for node in ast.walk(tree(file)):
                if isinstance(node, ast.FunctionDef):
                    name = f"{file.relative_to(root).as_posix()}::{node.name}"
                    found.append((node.end_lineno - node.lineno + 1, name))
    return sorted(found, reverse=True)[:count]


def help_seconds(root: Path, python: str = sys.executable, tries: int = 3) -> float | None:
    """Processor seconds of the quickest of several `python -m train --help`; None where a package is missing.

    They are what a machine with nothing else to do takes, however busy this one is.
    """
    took = []
    for _ in range(tries):
        before = os.times()
        done = subprocess.run([python, "-m", "train", "--help"], cwd=root, capture_output=True, check=False)
        if done.returncode:
            return None
        after = os.times()
        took.append(sum(after[2:4]) - sum(before[2:4]))
    return round(min(took), 1)


def house(root: Path, bare: str | None = None) -> dict:
    """Measure everything that `python -m tests.test_house` prints, of a checkout.

    Args:
        root: of the checkout.
        bare: a Python with nothing but what the extra `train` installs, to ask for the help as well.
    """
    return {
        "folders": sizes(root),
        "longest": longest(root),
        "arrows": sorted(f"{one} -> {other}" for one, other in arrows(root)),
        "circles": circles(root),
        "readme_lines": len((root / "README.md").read_text("utf-8").splitlines()),
        "help_seconds": help_seconds(root),
        **({"bare_help_seconds": help_seconds(root, bare)} if bare else {}),
    }


def counted(folder: tuple[int, int] | None) -> str:
    return "{} files, {:,} lines".format(*folder) if folder else ""


def spelt(seconds: float | None) -> str:
    return "fails" if seconds is None else f"{seconds} s"


def shown(houses: dict[str, dict]) -> str:
    """Houses side by side, as Markdown."""
    told = list(houses.values())
    folders = sorted({folder for one in told for folder in one["folders"]})
    counts = [[f"`{folder}/`", *(counted(one["folders"].get(folder)) for one in told)] for folder in folders]
    rest = {
        "longest functions": lambda one: "<br>".join(f"{lines} `{name}`" for lines, name in one["longest"]),
        "arrows between rooms": lambda one: "<br>".join(one["arrows"]),
        "circles of modules": lambda one: (
            "<br>".join(", ".join(circle) for circle in one["circles"]) or "none"
        ),
        "lines of the README": lambda one: str(one["readme_lines"]),
        "`python -m train --help`": lambda one: spelt(one["help_seconds"]),
    }
    if any("bare_help_seconds" in one for one in told):
        rest["the same, with the extra `train` alone"] = lambda one: spelt(one.get("bare_help_seconds"))
    rows = [[what, *(say(one) for one in told)] for what, say in rest.items()]
    named = " ".join(f"--before {name}" for name in houses if name != "now")
    named += " --bare PYTHON" if any("bare_help_seconds" in one for one in told) else ""
    command = f"python -m tests.test_house {named}".strip()
    head = f"As `{command}` prints it; seconds of the processor, best of three."
    return f"{head}\n\n{table(['', *houses], [*counts, *rows]).replace('---:', '---')}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Show the house in figures.")
    parser.add_argument("--before", help="commit to compare with; writes docs/measured/house.*")
    parser.add_argument(
        "--bare", help="Python with what the extra `train` installs and no more: asks it for the help, too"
    )
    chosen = parser.parse_args()
    before = chosen.before
    if before is None:
        print(shown({"now": house(ROOT, chosen.bare)}))
        return
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(["git", "archive", before], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=packed, check=True)
        houses = {before: house(Path(folder), chosen.bare), "now": house(ROOT, chosen.bare)}
    write("house", houses, shown(houses))


if __name__ == "__main__":
    main()
