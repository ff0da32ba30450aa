"""The house: which way the arrows point, what importing does, and that the README tells the truth."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.benchmarks.readme import MEASURED, rendered

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAY_IMPORT = {
    "hub_model": set(),
    "demo": {"hub_model"},
    "train": {"hub_model"},  # the list of verbs names the rooms and imports none
    "train.data": {"hub_model"},
    "train.phantom": {"train.data", "hub_model"},
    "train.measure": {"train.data", "hub_model"},
    "train.fit": {"train.measure", "train.data", "hub_model"},
    "train.release": {"train.measure", "train.data", "hub_model"},
}
"""Which rooms a room may import from, besides itself."""


def room_of(module: str) -> str:
    """ "train.data.split" -> "train.data"; "hub_model.guard" -> "hub_model"."""
    parts = module.split(".")
    return ".".join(parts[: 2 if ".".join(parts[:2]) in MAY_IMPORT else 1])


def imported(file: Path) -> set[str]:
    """Full names of the modules that a file imports, at any depth of its code, relative imports resolved."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def arrows() -> dict[tuple[str, str], list[str]]:
    """(room, room it imports from) -> the files that do."""
    drawn = {}
    for top in ("hub_model", "train", "demo"):
        for file in sorted((ROOT / top).rglob("*.py")):
            name = file.relative_to(ROOT)
            home = room_of(".".join(name.with_suffix("").parts))
            for module in imported(file):
                other = room_of(module)
                if module.split(".")[0] in ("hub_model", "train", "demo") and other != home:
                    files = drawn.setdefault((home, other), [])
                    files += [str(name)] if str(name) not in files else []
    return drawn


def test_arrows_point_one_way():
    wrong = {pair: files for pair, files in arrows().items() if pair[1] not in MAY_IMPORT[pair[0]]}
    assert not wrong, "\n".join(f"{a} -> {b}, by {', '.join(files)}" for (a, b), files in wrong.items())


def test_modules_import_each_other_in_no_circle():
    """Within and across rooms; `hub_model` itself and the rooms' packages are no modules of their own."""
    graph = {}
    for top in ("hub_model", "train", "demo"):
        for file in (ROOT / top).rglob("*.py"):
            graph[".".join(file.relative_to(ROOT).with_suffix("").parts)] = file
    names = set(graph)
    edges = {}
    for name, file in graph.items():
        own = {module if module in names else module.rpartition(".")[0] for module in imported(file)}
        edges[name] = (own & names) - {name}
    try:
        list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_no_pickles_and_no_remote_code():
    for room in ("hub_model", "train", "demo"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                    assert isinstance(node.value, ast.Constant) and node.value.value is False, file
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    assert (node.value.id, node.attr) not in {("torch", "load"), ("joblib", "load")}, file
            found = {module.split(".")[0] for module in imported(file)}
            assert not found & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}, file


def test_importing_prints_nothing_and_leaves_the_callers_random_state():
    code = (
        "import random, torch, warnings\n"
        "torch.manual_seed(3); random.seed(3); before = (torch.get_rng_state().sum(), random.getstate())\n"
        "filters = list(warnings.filters)\n"
        "import hub_model, hub_model.guard, hub_model.heatmap\n"
        "assert (torch.get_rng_state().sum(), random.getstate()) == before\n"
        "assert 'gradio' not in __import__('sys').modules and 'datasets' not in __import__('sys').modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_readme_tree_is_the_tree():
    """Every file and folder named in the README's layout exists, and every room's module is named in it."""
    tree = re.search(r"## Layout\n+```\n(.*?)```", README, re.S).group(1)
    named, parents = set(), []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = line.split("  ")[0] if not line.startswith(" ") else line.strip().split("  ")[0]
        parents = parents[:depth]
        for name in names.split():
            named.add("/".join([*parents, name.rstrip("/")]))
        parents.append(names.split()[0].rstrip("/"))
    missing = [name for name in sorted(named) if not (ROOT / name).exists()]
    assert not missing, f"in the README's layout but not there: {missing}"
    modules = {
        str(f.relative_to(ROOT))
        for room in ("hub_model", "train", "demo")
        for f in (ROOT / room).rglob("*.py")
    }
    modules = {m for m in modules if not m.endswith("__init__.py") and not m.startswith("demo/snippets")}
    assert not modules - named, modules - named


def test_readme_tables_are_as_measured():
    assert rendered(README) == README, "run `python -m tests.benchmarks.readme`"
    unnamed = [file.name for file in MEASURED.glob("*.md") if file.stem not in README]
    assert not unnamed, f"measured, but not in the README: {unnamed}"


def test_readme_python_example_runs(shared_data, tmp_path, monkeypatch):
    """The first Python block, as written, on a real slice of that name."""
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    slice_ = sorted((shared_data / "ct" / "COVID").glob("*.jpg"))[0]
    (tmp_path / "slice.png").write_bytes(slice_.read_bytes())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.match(r"Finding\(decision='(positive|negative|inconclusive|refused)'", done.stdout), done.stdout


def test_no_path_of_the_machine_in_tracked_files():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split(
        "\0"
    )
    if files == [""]:
        pytest.skip("not a git checkout")
    home = str(ROOT)
    for name in filter(None, files):
        assert home.encode() not in (ROOT / name).read_bytes(), name
