"""Imports point one way, and the map in docs/architecture.md is true.

The order of the rooms is stated in CONTRIBUTING.md, "Where things are", and read from there.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "thalweg"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

ONLY = {("engine", "models"): {"protocol", "quantized"}}
"""Of a room below, a room may import these files only."""


def section(page: str, heading: str) -> str:
    """The text of a page below a heading of level 2."""
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files() -> Iterator[Path]:
    """Every module; Python files among the data of `assets` are none."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if all(part.isidentifier() for part in path.relative_to(PACKAGE).with_suffix("").parts):
            yield path


MODULES = {module_name(path): path for path in source_files()}


def imports(name: str, path: Path) -> set[str]:
    """The modules that one file names: in imports wherever they stand (in functions and under TYPE_CHECKING too), and
    in strings, by which modules are imported lazily."""
    found = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found |= {base if f"{base}.{alias.name}" not in MODULES else f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != "thalweg":
            found.add(node.value)
    return (found & set(MODULES)) - {name}


GRAPH = {name: imports(name, path) for name, path in MODULES.items()}
ARROWS = [(importer, imported) for importer, those in GRAPH.items() for imported in sorted(those)]


def room(name: str) -> str:
    """The folder or file below `thalweg` that a module is in; `thalweg` itself for the public names."""
    return name.split(".")[1] if "." in name else name


def stated_order() -> list[list[str]]:
    """The lines of rooms in CONTRIBUTING.md, from the top down."""
    block = re.search(r"```text\n(.*?)```", section(CONTRIBUTING, "Where things are"), re.DOTALL)
    assert block is not None
    return [line.split() for line in block[1].splitlines()]


HEIGHT = {name: height for height, line in enumerate(reversed(stated_order())) for name in line}


def test_the_stated_order_has_every_room_once() -> None:
    stated = [name for line in stated_order() for name in line]
    assert sorted(stated) == sorted({room(name) for name in MODULES})


def test_no_import_runs_up_or_beside() -> None:
    wrong = [
        f"{importer} → {imported}"
        for importer, imported in ARROWS
        if room(importer) != room(imported) and HEIGHT[room(importer)] <= HEIGHT[room(imported)]
    ]
    assert not wrong


def test_no_circle_of_imports() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" ← ".join(error.args[1]))


def test_rooms_that_may_know_a_part_of_another_know_no_more() -> None:
    wrong = [
        f"{importer} → {imported}"
        for importer, imported in ARROWS
        if imported.rpartition(".")[2] not in ONLY.get((room(importer), room(imported)), {imported.rpartition(".")[2]})
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("importer", "statement", "imported"),
    [
        ("thalweg.ops.ssd", "def f():\n    from thalweg import packing", "thalweg.packing"),
        ("thalweg.ops.ssd", "if TYPE_CHECKING:\n    from thalweg.packing import Packing", "thalweg.packing"),
        ("thalweg.ops.ssd", "import thalweg.packing as p", "thalweg.packing"),
        ("thalweg.ops.ssd", "from ..packing import Packing", "thalweg.packing"),
        ("thalweg.ops.ssd", "from . import wkv7", "thalweg.ops.wkv7"),
        ("thalweg.ops.ssd", "from thalweg import load", "thalweg"),
        ("thalweg.ops.ssd", "import_module('thalweg.packing')", "thalweg.packing"),
    ],
)
def test_every_way_to_import_is_seen(importer: str, statement: str, imported: str, tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(statement, encoding="utf-8")
    assert imports(importer, file) == {imported}


def mapped() -> list[Path]:
    """What the map names: files by the first column of its tables, below the folder that the heading names."""
    folder, found = PACKAGE, []
    for line in section(ARCHITECTURE, "The map").splitlines():
        if heading := re.match(r"### `(.+?)/`", line):
            folder = PACKAGE / heading[1]
            found.append(folder)
        elif line.startswith("| `"):
            found += [folder / name for name in re.findall(r"`(.+?)`", line.split("|")[1])]
    return found


def test_the_map_has_every_package_and_every_file_once() -> None:
    suffixes = {".py", ".cpp", ".hpp", ".json", ".txt", ".html", ".css", ".js", ".svg"}
    model = PACKAGE / "assets" / "thalweg-small-en"
    files = {path for path in PACKAGE.rglob("*") if path.suffix in suffixes and model not in path.parents}
    # A heading stands for a folder and for its __init__.py, which a row may describe as well.
    packages = {path.parent for path in files if path.name == "__init__.py"} - {PACKAGE}
    inits = {path / "__init__.py" for path in packages}
    there = packages | files | {model}
    named = mapped()
    assert len(named) == len(set(named))
    assert there - inits <= set(named)
    assert set(named) <= there


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/adding-a-model.md", "docs/architecture.md", "src"])
def test_files_that_are_named_exist(page: str) -> None:
    """In prose, docstrings and comments. Names in capitals stand for others."""
    folders = [ROOT / folder for folder in ("src", "tests", "benchmarks", "scripts")]
    there = [f"/{path.relative_to(ROOT)}" for folder in folders for path in folder.rglob("*.*")] + ["/setup.py"]
    named = {
        name
        for path in (MODULES.values() if page == "src" else [ROOT / page])
        for name in re.findall(r"\b[\w/]+\.(?:py|[ch]pp)\b", path.read_text(encoding="utf-8"))
        if not re.search("[A-Z]{2}", name) and name != "llama.cpp"
    }
    assert named
    assert not {name for name in named if not any(path.endswith(f"/{name}") for path in there)}


def test_no_docstring_begins_with_a_fragment() -> None:
    """ "Of the matrix products." leaves the reader to guess what of them."""
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                assert not str(node.value.value).startswith("Of "), f"{path.relative_to(ROOT)}:{node.lineno}"
