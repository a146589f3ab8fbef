"""Embed a text without end, and ask it for passages while it is still being read.

    python examples/endless.py write FOLDER book.txt
    tail -n +1 -f service.log | python examples/endless.py write FOLDER -
    python examples/endless.py write FOLDER --tokens 10_000_000
    python examples/endless.py ask FOLDER "Who closed the gate?" -k 3

One process writes, any number ask, at any time. Memory is the same at any length. A writer may be killed: called again
with the same text, it reads on where it last saved. Every now and then it saves, in this order:

    00007.parquet   the sections that have ended since the last time
    00007.session   what the model knows of the text so far
    state.json      which of these count, and up to which byte the text is in them

Each file appears whole or not at all. A writer that is killed before it has written state.json goes on from the session
that is named there, and writes what was ahead of it once more. Readers open no part that is not named there.
"""

import codecs
import io
import itertools
import json
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from filelock import FileLock  # comes with huggingface_hub

import thalweg
from thalweg.assets import book

PIECE = 1 << 16  # bytes that are read at a time
SAVE_BYTES = 1 << 18  # of text, after which the writer saves: about what a kill costs at most
SAVE_SECONDS = 10  # the same for texts that arrive slowly; looked at whenever something has arrived
NUMBERS = ("section", "char_start", "char_end", "n_tokens")
PART = pa.schema([*((name, pa.int64()) for name in NUMBERS), ("text", pa.string()), ("vector", pa.list_(pa.float32()))])
STATE = "state.json"

app = typer.Typer(pretty_exceptions_enable=False)


@app.command("write")
def locked_write(
    folder: Path,
    source: str = typer.Argument("-", help="a UTF-8 file, or - for standard input"),
    tokens: int = typer.Option(None, help="read about so many tokens of a book instead, copy after copy"),
    model: str = typer.Option("default", help="a folder or hub id"),
    by: str = typer.Option("tokens", help="tokens, paragraph, sentence or heading"),
    every: int = typer.Option(None, help="so many of these make a section"),
    mode: str = typer.Option(None, help="mean or prefix; by default as the model pools"),
) -> None:
    """Read a text to its end, also one without end: a new one, or the one that a writer has left in FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock", timeout=0):  # one writer; the system releases it when the process is killed
        write(folder, source, tokens, {"model": model, "by": by, "every": every, "mode": mode})


def write(folder: Path, source: str, tokens: int | None, settings: dict[str, Any]) -> None:
    model = thalweg.load(settings["model"])
    sections = thalweg.Sections(settings["by"], settings["every"], settings["mode"])
    print(model.plan_memory(sections=sections), file=sys.stderr)
    state = read_state(folder)
    if state is None:
        session = model.session(sections=sections)
        state = {"settings": settings, "parts": 0, "bytes": 0, "open": "", "open_start": 0, "ended": False}
    elif state["settings"] != settings:
        sys.exit(f"{folder} was begun with {state['settings']}, not {settings}")
    else:
        session = model.restore(path(folder, state["parts"], "session"))

    pieces = read(source, state["bytes"]) if tokens is None else read_copies(model, tokens, state["bytes"])
    decoder = codecs.getincrementaldecoder("utf-8")()
    saved_bytes, saved_time = state["bytes"], time.monotonic()
    for piece in pieces:
        text = decoder.decode(piece)  # half a character at the end waits in the decoder
        session.append(text)
        state["open"] += text
        state["bytes"] += len(text.encode())
        if state["bytes"] - saved_bytes >= SAVE_BYTES or time.monotonic() - saved_time >= SAVE_SECONDS:
            save(folder, session, state)
            saved_bytes, saved_time = state["bytes"], time.monotonic()
    save(folder, session, state)
    decoder.decode(b"", final=True)  # raises an error if half a character is left
    # The last section has not ended, since the text may grow. It has a part that the next one will replace.
    write_part(folder, state["parts"] + 1, session.sections(), state)
    replace(folder / STATE, json.dumps({**state, "ended": True}).encode())


def save(folder: Path, session: thalweg.Session, state: dict[str, Any]) -> None:
    """Write the sections that have ended, and what a writer goes on from."""
    sections = session.take_sections()
    state.update(parts=state["parts"] + 1, ended=False)
    write_part(folder, state["parts"], sections, state)
    if sections:
        state["open"] = state["open"][sections[-1].char_end - state["open_start"] :]
        state["open_start"] = sections[-1].char_end
    session.save(path(folder, state["parts"], "session"))
    replace(folder / STATE, json.dumps(state).encode())
    for old in folder.glob("*.session"):
        if int(old.stem) < state["parts"] - 1:  # the one before stays until state.json is on the disk for certain
            old.unlink()
    print(f"{state['bytes']:,} bytes, {session.tokens:,} tokens", file=sys.stderr, flush=True)


@app.command()
def ask(folder: Path, question: str, k: int = typer.Option(3, "-k", help="number of passages")) -> None:
    """Print the passages that are nearest to the question, of all that have been saved so far."""
    state = read_state(folder)
    if state is None:
        sys.exit(f"nothing has been saved in {folder} yet")
    model = thalweg.load(state["settings"]["model"])
    query = model.encode_query(question)
    best: list[tuple[float, dict[str, Any]]] = []
    for number in range(1, state["parts"] + 1 + state["ended"]):  # one part in memory at a time
        part = pq.read_table(path(folder, number, "parquet"))
        vectors = part["vector"].combine_chunks().flatten().to_numpy().reshape(len(part), model.dimension)
        scores = model.similarity(query, vectors)[0]
        passages = part.drop_columns("vector")
        best += [(float(scores[row]), passages.slice(row, 1).to_pylist()[0]) for row in np.argsort(-scores)[:k]]
        best = sorted(best, key=lambda found: -found[0])[:k]
    for score, passage in best:
        print(f"{score:.3f}  characters {passage['char_start']:,} to {passage['char_end']:,}")
        print(f"       {textwrap.shorten(passage['text'], 1000, placeholder=' …')}\n")


def read(source: str, start: int) -> Iterator[bytes]:
    """The bytes of a file, or of standard input for "-", from byte `start` on. A pipe gives the whole text again."""
    with open(0 if source == "-" else source, "rb") as stream:
        passed = 0
        if stream.seekable():
            passed = stream.seek(min(start, stream.seek(0, os.SEEK_END)))
        while passed < start and (piece := stream.read1(min(PIECE, start - passed))):
            passed += len(piece)
        if passed < start:
            sys.exit(f"{source} ends at byte {passed:,}, but {start:,} bytes were read before: it is another text")
        while piece := stream.read1(PIECE):  # what there is, also where more will come later
            yield piece


def read_copies(model: thalweg.Embedder, tokens: int, start: int) -> Iterator[bytes]:
    """The bytes of about so many tokens, from byte `start` on: the book that comes with thalweg, copy after copy."""
    text = book().read_text(encoding="utf-8")
    size = round(len(text) * tokens / len(model.tokenize([text])[0]))  # the book is ASCII: a byte is a character
    passed = 0
    for number in itertools.count(1):
        copy = f"This is copy {number} of the book.\n\n{text}".encode()
        for first in range(0, len(copy), PIECE):
            piece = copy[first : first + PIECE][: size - passed]
            if passed + len(piece) > start:
                yield piece[max(0, start - passed) :]
            passed += len(piece)
            if passed == size:
                return


def path(folder: Path, number: int, kind: str) -> Path:
    return folder / f"{number:05}.{kind}"


def write_part(folder: Path, number: int, sections: list[thalweg.Embedding], state: dict[str, Any]) -> None:
    rows = []
    for section in sections:
        text = state["open"][section.char_start - state["open_start"] : section.char_end - state["open_start"]]
        rows.append({name: getattr(section, name) for name in NUMBERS} | {"text": text, "vector": section.vector})
    data = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, PART), data)
    replace(path(folder, number, "parquet"), data.getbuffer())


def read_state(folder: Path) -> dict[str, Any] | None:
    file = folder / STATE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def replace(file: Path, data: bytes | memoryview) -> None:
    """Write beside, sync, rename."""
    fresh = file.with_name(file.name + ".tmp")
    with open(fresh, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(fresh, file)


if __name__ == "__main__":
    try:
        app()
    except (thalweg.ThalwegError, OSError, UnicodeDecodeError) as error:
        sys.exit(f"endless: {error}")
