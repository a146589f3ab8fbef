"""The Python blocks of the pages of docs/ are run as written, each page in a namespace and a folder of its own.

They use the shipped model (`thalweg.load()`, `thalweg.assets.model_folder()`) or what they make themselves, and need no
network. README.md has the same done to it in test_readme.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.recurrent import auto_classes_restored

DOCS = Path(__file__).parent.parent / "docs"

PAGES = [
    "corpora.md",
    "evaluation.md",
    "integrations.md",
    "prefixes.md",
    "quantization.md",
    "sections.md",
    "serving.md",
    "sessions.md",
    "sentence-transformers.md",
    "synthetic-data.md",
    "training.md",
    "training-data.md",
    "transformers.md",
]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_python_blocks_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    namespace: dict[str, Any] = {"__name__": page}
    with auto_classes_restored():
        for block in blocks:
            exec(compile(block, page, "exec"), namespace)


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (DOCS / page).read_text(encoding="utf-8")):
        assert "://" in link or (DOCS / link).exists(), link
