"""What the documents import is public, and what is public is there."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import thalweg

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HISTORY = {"log.md"}
"""Pages that name what has been, too."""


def code(page: Path) -> Iterator[ast.AST]:
    """The nodes of the Python blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from ast.walk(ast.parse(block))


def documented_imports() -> set[tuple[str, str]]:
    """Module and name of all imports of thalweg in the documents; of `import thalweg` the names that are used of it."""
    found = set()
    for node in (node for page in PAGES for node in code(page)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "thalweg":
            found |= {(str(node.module), alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            assert all(alias.name == "thalweg" or not alias.name.startswith("thalweg.") for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "thalweg":
            found.add(("thalweg", node.attr))
    return found


IMPORTS = documented_imports()
PUBLIC = sorted({module for module, _ in IMPORTS})
"""The modules that documents import from."""


def public_names(module: ModuleType) -> list[str]:
    names: list[str] = getattr(module, "__all__", [])
    return names


def test_the_documents_have_imports() -> None:
    assert ("thalweg", "load") in IMPORTS
    assert len(PUBLIC) > 8


@pytest.mark.parametrize("name", PUBLIC)
def test_what_documents_import_is_public(name: str) -> None:
    """From a package, or the one module of a framework: what lies deeper may move."""
    module = importlib.import_module(name)
    assert not any(part.startswith("_") for part in name.split("."))
    assert hasattr(module, "__path__") or name.rpartition(".")[0] == "thalweg.integrations"
    assert {imported for origin, imported in IMPORTS if origin == name} <= set(public_names(module))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_there(name: str) -> None:
    module = importlib.import_module(name)
    names = public_names(module)
    assert sorted(names) == sorted(set(names))
    for public in names:
        assert getattr(module, public).__module__.startswith("thalweg")
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


def test_the_names_of_thalweg() -> None:
    assert thalweg.__all__ == sorted(thalweg.__all__) == dir(thalweg)
    errors = {name for name, kind in vars(thalweg.errors).items() if inspect.isclass(kind)}
    assert errors <= set(thalweg.__all__)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in HISTORY], ids=lambda page: page.name)
def test_names_in_prose_are_there(page: Path) -> None:
    """`thalweg.assets.model_folder` and the like: modules, and what is in them."""
    for dotted in re.findall(r"`(thalweg(?:\.\w+)+)", page.read_text(encoding="utf-8")):
        if dotted != "thalweg.json":
            found: object = thalweg
            for at, part in enumerate(dotted.split(".")[1:], 2):
                if not hasattr(found, part):
                    importlib.import_module(".".join(dotted.split(".")[:at]))
                found = getattr(found, part)
