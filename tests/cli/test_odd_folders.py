"""Whatever lies in a folder: `embed` ends well, and every file and every row is embedded, left out or failed."""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import thalweg
import thalweg.corpus
from thalweg.cli.app import app
from thalweg.corpus import Summary

from ..corpus.corpora import rows_of
from .odd_folders import odd_folder

EXAMPLES = int(os.environ.get("THALWEG_ODD_FOLDERS", "60"))
"""More of them for a night."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no text")
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(rng=st.randoms(use_true_random=False))
def test_any_folder_is_embedded_and_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Any, rng: random.Random
) -> None:
    root = tmp_path_factory.mktemp("odd") / "docs"
    root.mkdir()
    expected = odd_folder(rng, root)
    out = root.parent / rng.choice(["out.parquet", "out.jsonl", "out.npy"])
    options = ["--sections", "3"] if rng.random() < 0.3 else []
    summaries: list[Summary] = []
    embedder = _loaded(str(model_folder))

    def embed_corpus(*arguments: Any, **settings: Any) -> Summary:
        summaries.append(real(*arguments, **settings))
        return summaries[-1]

    real = thalweg.embed_corpus
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thalweg.corpus.embed.load", lambda *_, **__: embedder)  # once for all examples
        patch.setattr(thalweg, "embed_corpus", embed_corpus)
        command = ["embed", str(root), "-o", str(out), "--model", str(model_folder), *options]
        result = CliRunner().invoke(app, command)
        again = CliRunner().invoke(app, [*command, "--resume"])
    told = (result.stderr, result.exception)
    assert result.exit_code in (0, 3), told
    assert "Traceback" not in result.stderr
    assert (again.exit_code, "nothing to do" in again.stderr) == (result.exit_code, True), again.stderr
    summary = summaries[0]
    files = summary.files
    assert (files.seen, files.empty, files.failed) == (expected.seen, expected.empty, expected.failed), told
    assert files.left_out == +expected.left_out, told
    assert files.read == files.seen - files.empty - files.failed - files.left_out.total()
    assert (summary.table_rows, summary.table_rows_failed) == (expected.rows, expected.rows_failed), told
    assert result.exit_code == (3 if expected.failed or expected.rows_failed else 0)
    assert (summary.failed, summary.skipped) == (expected.failed + expected.rows_failed, expected.empty)
    rows = rows_of(out)[0]
    texts: dict[str, str] = {}
    for row in rows:
        texts[row["id"]] = texts.get(row["id"], "") + row["text"]
    assert Counter(texts.values()) == +expected.texts, told
    assert summary.documents == expected.texts.total()
    assert len({row["key"] for row in rows}) == len(rows) == summary.rows
    failures = out.with_name(f"{out.name}.failures.jsonl")
    listed = [json.loads(line) for line in failures.read_text().splitlines()] if failures.exists() else []
    assert len(listed) == summary.failed + summary.skipped


_EMBEDDERS: dict[str, thalweg.Embedder] = {}


def _loaded(folder: str) -> thalweg.Embedder:
    if folder not in _EMBEDDERS:
        _EMBEDDERS[folder] = thalweg.load(folder, device="cpu")
    return _EMBEDDERS[folder]
