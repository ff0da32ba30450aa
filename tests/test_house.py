"""The house: which way the arrows point, what importing does, and that the README tells the truth."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.readme import MEASURED, rendered

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAY_IMPORT = {"hub_model": {"hub_model"}, "train": {"train", "hub_model"}, "demo": {"demo", "hub_model"}}


def imported(file: Path) -> set[str]:
    """Top-level packages that a file imports absolutely, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows_point_one_way(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        foreign = (imported(file) & MAY_IMPORT.keys()) - MAY_IMPORT[room]
        assert not foreign, f"{file.relative_to(ROOT)} imports {foreign}"


def test_no_pickles_and_no_remote_code():
    for room in MAY_IMPORT:
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                    assert isinstance(node.value, ast.Constant) and node.value.value is False, file
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    assert (node.value.id, node.attr) not in {("torch", "load"), ("joblib", "load")}, file
            assert not imported(file) & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}, file


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
        f"{room}/{f.name}" for room in ("hub_model", "train", "demo") for f in (ROOT / room).glob("*.py")
    }
    assert not (modules - named - {"hub_model/__init__.py", "train/__init__.py"}), modules - named


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
