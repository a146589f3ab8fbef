"""examples/endless.py: what is read, killed, read on and asked at the same time has the sections of the whole text."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import thalweg
from tests.corpus.tiny import make_text, write_model

SCRIPT = Path(__file__).parent.parent / "examples" / "endless.py"
KILLS = 8

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals"),
    pytest.mark.slow,
    pytest.mark.subprocess,
]


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("endless", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(arguments: list[str]) -> None:
    """The script as the body of a process, which saves often."""
    import torch

    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    script = load_script()
    script.PIECE, script.SAVE_BYTES = 1000, 8000
    script.app(arguments)


@pytest.fixture(scope="module")
def forked() -> multiprocessing.context.ForkServerContext:
    """Processes that need not import torch each time; in all else they are like any other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["thalweg.embedder.embedder", "typer", "filelock", "pyarrow.parquet", __name__])
    return context


def start(context: multiprocessing.context.ForkServerContext, arguments: list[object]) -> BaseProcess:
    process = context.Process(target=command, args=([str(argument) for argument in arguments],))
    process.start()
    return process


def state_of(folder: Path) -> dict[str, Any]:
    path = folder / "state.json"
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"bytes": 0}
    return state


def rows_of(folder: Path) -> list[dict[str, Any]]:
    state = state_of(folder)
    parts = [pq.read_table(folder / f"{n:05}.parquet") for n in range(1, state["parts"] + 1 + state["ended"])]
    rows: list[dict[str, Any]] = pa.concat_tables(parts).to_pylist()
    return rows


def assert_sections_of(text: str, model: thalweg.Embedder, folder: Path, **options: Any) -> None:
    rows = rows_of(folder)
    expected = list(model.encode_sections(text, **options))
    names = ("section", "char_start", "char_end", "n_tokens")
    found = [tuple(row[name] for name in names) for row in rows]
    assert found == [tuple(getattr(section, name) for name in names) for section in expected]
    assert "".join(row["text"] for row in rows) == text
    np.testing.assert_allclose([row["vector"] for row in rows], [s.vector for s in expected], atol=1e-5)


def assert_answers(script: Any, folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> int:
    """Ask, and see that what is printed stands where it says; the number of passages."""
    script.ask(folder, "the river and the bridges", 3)
    printed = capsys.readouterr().out
    found = re.findall(r"characters ([\d,]+) to ([\d,]+)\n {7}(.*)\n", printed)
    for start, end, passage in found:
        whole = text[int(start.replace(",", "")) : int(end.replace(",", ""))]
        assert passage == textwrap.shorten(whole, 1000, placeholder=" …")
    return len(found)


def feed(pipe: Path, text: str) -> None:
    """Give the whole text to whoever opens the pipe, once."""
    with suppress(BrokenPipeError), open(pipe, "wb") as stream:
        stream.write(text.encode())


@pytest.mark.kill
@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("file", {"by": "paragraph"}),
        ("pipe", {"by": "tokens", "every": 64}),
        ("file", {"by": "sentence", "every": 3, "mode": "prefix"}),
    ],
    ids=["paragraphs", "tokens of a pipe", "prefixes"],
)
def test_a_writer_killed_again_and_again_gives_the_sections_of_the_whole_text(
    forked: multiprocessing.context.ForkServerContext,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: str,
    options: dict[str, Any],
) -> None:
    folder, model = tmp_path / "out", write_model(tmp_path / "model")
    text = make_text(40_000)
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    chosen = [item for name, value in options.items() for item in (f"--{name}", value)]
    script = load_script()
    rng = random.Random(5)
    kills = asked = answers = 0
    before: list[int] = []
    while True:
        if source == "pipe":
            path = tmp_path / f"pipe {kills}"
            os.mkfifo(path)
            threading.Thread(target=feed, args=(path, text), daemon=True).start()
        writer = start(forked, ["write", folder, path, "--model", model, *chosen])
        # Most die after they have saved a few times, some before.
        goal = state_of(folder)["bytes"] + rng.randrange(len(text) // 12)
        deadline = time.monotonic() + rng.choice([60, 60, rng.uniform(0, 2)])
        while kills < KILLS and writer.is_alive() and state_of(folder)["bytes"] <= goal and time.monotonic() < deadline:
            if asked < kills and state_of(folder)["bytes"]:
                answers += assert_answers(script, folder, text, capsys)
                asked += 1
            time.sleep(rng.uniform(0, 0.02))
        if kills == KILLS or not writer.is_alive():
            writer.join(100)
            assert writer.exitcode == 0
            break
        assert writer.pid is not None
        os.kill(writer.pid, 9)
        writer.join()
        kills += 1
        before.append(state_of(folder)["bytes"])
    assert kills >= 3
    assert before == sorted(before)
    assert before[-1] > 0
    assert answers == 3 * asked > 0
    assert_sections_of(text, thalweg.load(model), folder, **options)
    assert assert_answers(script, folder, text, capsys) == 3


def test_a_text_that_has_grown_is_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last section was open, and is replaced by the whole one."""
    script = load_script()
    monkeypatch.setattr(script, "PIECE", 701)
    monkeypatch.setattr(script, "SAVE_BYTES", 2000)
    folder, model = tmp_path / "out", write_model(tmp_path / "model")
    settings = {"model": str(model), "by": "paragraph", "every": None, "mode": None}
    text = make_text(1500)
    path = tmp_path / "text.txt"
    for length in (0, 5000, 5000, 5001, len(text)):
        folder.mkdir(exist_ok=True)
        path.write_bytes(text[:length].encode())
        script.write(folder, str(path), None, settings)
        assert_sections_of(text[:length], thalweg.load(model), folder, by="paragraph")
    path.write_bytes(text.encode() + "🦢".encode()[:2])
    with pytest.raises(UnicodeDecodeError):
        script.write(folder, str(path), None, settings)
    path.write_bytes(text.encode() + "🦢 and on".encode())
    script.write(folder, str(path), None, settings)
    assert_sections_of(text + "🦢 and on", thalweg.load(model), folder, by="paragraph")
    path.write_bytes(b"another text")
    with pytest.raises(SystemExit, match="it is another text"):
        script.write(folder, str(path), None, settings)
    with pytest.raises(SystemExit, match="was begun with"):
        script.write(folder, str(path), None, {**settings, "by": "sentence"})
    assert sorted(each.suffix for each in folder.glob("*.session")) == [".session"] * 2


def test_the_copies_of_the_book_can_be_read_from_any_byte() -> None:
    script, model = load_script(), thalweg.load()
    whole = b"".join(script.read_copies(model, 400_000, 0))
    assert whole.count(b"This is copy") == 3
    assert abs(len(model.tokenize([whole.decode()])[0]) / 400_000 - 1) < 0.01
    for start in (1, 65_536, 700_000, len(whole) - 1, len(whole)):
        assert b"".join(script.read_copies(model, 400_000, start)) == whole[start:]


@pytest.mark.memory
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    folder, model = tmp_path / "out", write_model(tmp_path / "model", n_layers=1)
    path = tmp_path / "text.txt"
    path.write_text(make_text(20_000) * 60, encoding="utf-8")
    size = path.stat().st_size
    arguments = ["write", folder, path, "--model", model, "--every", 64]
    writer = subprocess.Popen([sys.executable, SCRIPT, *map(str, arguments)], stderr=subprocess.DEVNULL)
    peaks: list[tuple[int, int]] = []  # after so many bytes of text, in KiB
    while writer.poll() is None:
        status = Path(f"/proc/{writer.pid}/status").read_text(encoding="utf-8")
        if peak := re.search(r"VmHWM:\s+(\d+) kB", status):
            peaks.append((state_of(folder)["bytes"], int(peak[1])))
        time.sleep(0.05)
    assert writer.returncode == 0
    quarter = next(peak for n_bytes, peak in peaks if n_bytes >= size / 4)
    growth = peaks[-1][1] - quarter
    print(f"{size:,} bytes, {len(rows_of(folder)):,} sections, peaks {quarter:,} and {peaks[-1][1]:,} KiB")
    assert growth < 4096
