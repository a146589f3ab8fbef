"""`thalweg search`, `info` and `demo`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import thalweg.assets

from ..corpus.tiny import make_text, write_model
from .conftest import Command


@pytest.fixture
def embedded(thalweg_command: Command, docs: Path, model_folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out.parquet"
    result = thalweg_command("embed", docs, "-o", out, "--model", model_folder, "--sections", 64)
    assert result.exit_code == 3
    return out


def test_passages_are_shown_nearest_first(thalweg_command: Command, embedded: Path) -> None:
    result = thalweg_command("search", embedded, "grey stones", "-k", 3)
    assert result.exit_code == 0
    titles = [line for line in result.stdout.splitlines() if line.startswith("╭")]
    assert [title.split()[1] for title in titles] == ["1", "2", "3"]
    scores = [float(title.split("·")[1]) for title in titles]
    assert scores == sorted(scores, reverse=True)
    assert "section" in titles[0]
    assert "characters" in result.stdout


def test_json_has_everything(thalweg_command: Command, embedded: Path) -> None:
    result = thalweg_command("search", embedded, "grey stones", "-k", 2, "--json")
    found = json.loads(result.stdout)
    assert [hit["rank"] for hit in found] == [1, 2]
    assert set(found[0]) == {
        *(
            "rank",
            "score",
            "corpus",
            "key",
            "id",
            "path",
            "row",
            "section",
            "char_start",
            "char_end",
            "n_tokens",
            "text",
        )
    }


def test_several_questions_are_answered_below_their_own_words(
    thalweg_command: Command, embedded: Path, tmp_path: Path
) -> None:
    (tmp_path / "asked.txt").write_bytes("boats drift\r\nnaïve façade\n".encode())
    alone = [
        json.loads(thalweg_command("search", embedded, query, "-k", 2, "--json").stdout)
        for query in ("grey stones", "boats drift", "naïve façade")
    ]
    shown = thalweg_command("search", embedded, "grey stones", "boats drift", "-k", 2)
    assert [line for line in shown.stdout.splitlines() if line.startswith("Nearest")] == [
        "Nearest to: grey stones",
        "Nearest to: boats drift",
    ]
    assert len([line for line in shown.stdout.splitlines() if line.startswith("╭")]) == 4
    command = ("search", embedded, "grey stones", "-k", 2, "--json")
    for name, text in ((tmp_path / "asked.txt", None), ("-", (tmp_path / "asked.txt").read_bytes())):
        found = json.loads(thalweg_command(*command, "--queries", name, input=text).stdout)
        assert [each["query"] for each in found] == ["grey stones", "boats drift", "naïve façade"]
        for each, one in zip(found, alone, strict=True):
            assert [hit["key"] for hit in each["hits"]] == [hit["key"] for hit in one]
    only = json.loads(thalweg_command("search", embedded, "--queries", tmp_path / "asked.txt", "--json").stdout)
    assert len(only) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty; it must hold"), (b"a\n\nb\n", "line 2 of .* is empty"), (b"a\xff\n", "is not UTF-8")],
)
def test_questions_that_cannot_be_read(
    thalweg_command: Command, embedded: Path, tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "asked.txt").write_bytes(content)
    result = thalweg_command("search", embedded, "--queries", tmp_path / "asked.txt")
    assert result.exit_code == 1
    assert re.search(reason, result.stderr)
    assert thalweg_command("search", embedded, "--queries", tmp_path / "none.txt").exit_code == 1


def test_several_files_are_searched_as_one(
    thalweg_command: Command, embedded: Path, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "more.txt").write_text("grey stones")
    other = tmp_path / "a name with spaces.npy"
    assert thalweg_command("embed", tmp_path / "more.txt", "-o", other, "--model", model_folder).exit_code == 0
    found = json.loads(
        thalweg_command("search", embedded, other, "grey stones", "-k", 99, "--json", "--prompt", "").stdout
    )
    assert (found[0]["corpus"], found[0]["text"]) == (str(other), "grey stones")
    assert {hit["corpus"] for hit in found} == {str(embedded), str(other)}
    assert str(other) in thalweg_command("search", embedded, other, "grey stones", "--prompt", "").stdout
    asked = json.loads(thalweg_command("search", embedded, "what is in my.parquet", "--json").stdout)
    assert {hit["corpus"] for hit in asked} == {str(embedded)}
    missing = thalweg_command("search", embedded, tmp_path / "missing.parquet", "grey stones")
    assert (missing.exit_code, "there is no file" in missing.stderr) == (1, True)
    for arguments in ((embedded,), (embedded, other)):
        assert thalweg_command("search", *arguments).exit_code == 2


def test_conditions_and_documents(thalweg_command: Command, embedded: Path) -> None:
    pytest.importorskip("sqlglot")
    command = ("search", embedded, "grey stones", "-k", 50, "--json")
    found = json.loads(thalweg_command(*command, "--where", "id like 'b%' and section = 1").stdout)
    assert found
    assert all(hit["id"].startswith("b") and hit["section"] == 1 for hit in found)
    ids = [hit["id"] for hit in json.loads(thalweg_command(*command, "--by", "document").stdout)]
    assert len(ids) == len(set(ids)) > 5
    nothing = thalweg_command("search", embedded, "grey stones", "--where", "section > 5000")
    assert (nothing.exit_code, "no passage found" in nothing.stdout) == (0, True)
    refused = thalweg_command("search", embedded, "grey stones", "--where", "yaer > 5")
    assert refused.exit_code == 1
    assert "its columns are key (string), id (string)" in refused.stderr


def test_vectors_without_text_show_their_place(
    thalweg_command: Command, docs: Path, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.npy"
    thalweg_command("embed", docs, "-o", out, "--model", model_folder, "--no-text")
    result = thalweg_command("search", out, "words", "-k", 1)
    assert "embedded with --no-text" in result.stdout


def test_another_model_is_refused(thalweg_command: Command, embedded: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=1, prompts={"a": "b"})
    result = thalweg_command("search", embedded, "words", "--model", other)
    assert result.exit_code == 1
    assert "pass the right --model, or embed again" in result.stderr


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_is_short_is_told_with_a_cure(
    thalweg_command: Command, model_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("thalweg.embedder.loading.describe_checkpoint", fail)
    result = thalweg_command("info", model_folder)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: there is not enough memory (")
    assert "a model takes less with --dtype bfloat16" in result.stderr
    assert thalweg_command("info", model_folder, "--debug").exception is error


def test_a_prompt_changes_the_query(thalweg_command: Command, embedded: Path) -> None:
    def scores(*options: str) -> list[float]:
        result = thalweg_command("search", embedded, "grey stones", "--json", *options)
        return [hit["score"] for hit in json.loads(result.stdout)]

    assert scores() == scores("--prompt-name", "query") == scores("--prompt", "question: ")
    assert scores() != scores("--prompt", "")
    unknown = thalweg_command("search", embedded, "grey stones", "--prompt-name", "nope")
    assert unknown.exit_code == 1
    assert "'query'" in unknown.stderr


def test_info_states_the_memory(thalweg_command: Command, model_folder: Path) -> None:
    result = thalweg_command("info", model_folder)
    assert result.exit_code == 0
    for words in ("mamba2", "27,416", "mean, normalised", "query: 'question: '", "400", "the same at any length"):
        assert words in result.stdout
    assert "activations" in result.stdout


def test_demo_shows_passages_and_commands(
    thalweg_command: Command, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = tmp_path / "book.txt"
    book.write_text(make_text(2000))
    monkeypatch.setattr(thalweg.assets, "book", lambda: book)
    result = thalweg_command("demo", "where do the swans drift?", "--model", model_folder, "-k", 2)
    assert result.exit_code == 0, result.output
    assert len([line for line in result.stdout.splitlines() if line.startswith("╭")]) == 2
    assert f"thalweg embed {book} --sections" in result.stdout
    assert "thalweg search book.parquet 'where do the swans drift?'" in result.stdout


@pytest.mark.subprocess
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_any_stdout_takes_any_text(model_folder: Path, tmp_path: Path, encoding: str) -> None:
    """A terminal of Windows, or a pipe without a locale."""
    (tmp_path / "a.txt").write_text("naïve „façade“ 水 🦢 \x85")
    out = tmp_path / "out.parquet"
    program = f"""
import sys
from thalweg.cli.app import app, main
for command in (["embed", {str(tmp_path)!r}, "-o", {str(out)!r}, "--model", {str(model_folder)!r}, "-q"],
                ["search", {str(out)!r}, "words"], ["search", {str(out)!r}, "words", "--json"]):
    sys.argv = ["thalweg", *command]
    try:
        main()
    except SystemExit as stopped:
        assert not stopped.code, stopped.code
    print("=" * 9)
"""
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    _, panel, found, _ = done.stdout.decode(encoding).split("=" * 9)
    assert "a.txt" in panel
    assert json.loads(found)[0]["text"] == "naïve „façade“ 水 🦢 \x85"


def test_a_model_that_a_file_names_is_told_and_never_fetched(
    thalweg_command: Command, embedded: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = thalweg_command("search", embedded, "words")
    assert f"model: {model_folder}, named by {embedded}" in found.stderr
    assert thalweg_command("search", embedded, "words", "--model", model_folder).stderr == ""

    def fetch(*_: object, **__: object) -> None:
        pytest.fail("the network was used")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", fetch)
    for name in ("somebody/model", "somebody/model/file.pth", "nowhere/at/all", "", "x" * 500, "../up"):
        table = pq.read_table(embedded)
        told = {**json.loads(table.schema.metadata[b"thalweg"]), "model": name, "revision": "main"}
        pq.write_table(table.replace_schema_metadata({b"thalweg": json.dumps(told).encode()}), embedded)
        refused = thalweg_command("search", embedded, "words")
        assert refused.exit_code == 1
        assert f"model: {name}, named by" in refused.stderr
        assert "error: " in refused.stderr
        if name == "somebody/model":
            assert "pass --model somebody/model to fetch it, if you trust it" in refused.stderr


@pytest.mark.slow
def test_the_shipped_model_is_not_told(thalweg_command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    out = tmp_path / "out.jsonl"
    assert thalweg_command("embed", tmp_path / "a.txt", "-o", out, "-q").exit_code == 0
    found = thalweg_command("search", out, "words")
    assert (found.exit_code, found.stderr) == (0, "")
    beside = out.with_name("out.jsonl.meta.json")
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "model": None, "revision": None}))
    assert thalweg_command("search", out, "words").stderr == "", "a file of an earlier version"
