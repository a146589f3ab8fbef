"""The Python blocks of README and docs/ pass the two type checkers that editors run, as a user would write them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import PAGES

ROOT = Path(__file__).parent.parent

# A constructor with **kwargs, as mteb's protocol has it, would take an option with a wrong name without a word.
OF_OTHERS = {("evaluation.md", "ThalwegEncoder")}
"""Pages and words of what is left to complain about, as types of other libraries are narrower than what these take."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a program for each page, and one with mistakes that only types show."""
    folder = tmp_path_factory.mktemp("pages")
    for path in [ROOT / "README.md", *(ROOT / "docs" / page for page in PAGES)]:
        blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        assert blocks
        (folder / f"page_{path.stem.replace('-', '_')}.py").write_text("\n\n".join(blocks), encoding="utf-8")
    mistakes = """
import thalweg

model = thalweg.load()
model.encode_query(["a"], truncate_dimm=3)
model.encode(5)
for embedding in model.encode_stream(["a"]):
    print(embedding.error)
for result in model.encode_stream(["a"], on_error="yield"):
    print(result.vector)
"""
    (folder / "page_with_mistakes.py").write_text(mistakes, encoding="utf-8")
    return folder


def check(found: dict[str, list[tuple[int, str]]]) -> None:
    assert {line for line, _ in found.pop("page_with_mistakes.py")} == {5, 6, 8, 10}
    left = [
        (name, line, message)
        for name, complaints in found.items()
        for line, message in complaints
        if not any(page_name(page) == name and words in message for page, words in OF_OTHERS)
    ]
    assert not left


def page_name(page: str) -> str:
    return f"page_{Path(page).stem.replace('-', '_')}.py"


@pytest.mark.subprocess
def test_pyright(pages: Path) -> None:
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(pages)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=pages)
    found: dict[str, list[tuple[int, str]]] = {}
    for each in json.loads(done.stdout)["generalDiagnostics"]:
        if each["severity"] == "error":
            found.setdefault(Path(each["file"]).name, []).append((each["range"]["start"]["line"] + 1, each["message"]))
    check(found)


# Large libraries, of which pyright has seen the types: mypy takes half a minute to read them.
SKIPPED = "".join(
    f"[mypy-{name}.*]\nfollow_imports = skip\n"
    for name in ("torch", "transformers", "sentence_transformers", "mteb", "datasets", "langchain_core", "llama_index")
)


@pytest.mark.subprocess
def test_mypy(pages: Path) -> None:
    config = pages / "mypy.ini"
    config.write_text(f"[mypy]\nignore_missing_imports = true\ncheck_untyped_defs = true\n{SKIPPED}", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(config)]
    command += ["--cache-dir", str(pages / "cache"), *sorted(str(path) for path in pages.glob("*.py"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=pages)
    found: dict[str, list[tuple[int, str]]] = {}
    for name, line, message in re.findall(r"^([^:\n]+):(\d+): error: (.*)$", done.stdout, re.MULTILINE):
        found.setdefault(Path(name).name, []).append((int(line), message))
    assert found, done.stdout + done.stderr
    check(found)
