"""The process of one side of a comparison.

It reads the texts, embeds them as often as asked, and leaves the vectors of the first time as rows of float32.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

import torch

import thalweg
from thalweg.bench.machine import machine
from thalweg.bench.matmul_limit import set_inner_chunk
from thalweg.bench.meter import Meter, spread
from thalweg.bench.point import ERROR, OK, OUT_OF_MEMORY
from thalweg.corpus.documents import Document, ReadFailure, read_documents
from thalweg.corpus.outputs import discover
from thalweg.corpus.records import Columns
from thalweg.embedder.embedder import Embedder
from thalweg.engine.results import Failure
from thalweg.errors import ThalwegError
from thalweg.inputs.streams import Meter as BytesRead

LOAD = ("device", "dtype", "quantize", "revision", "head")
ENCODE = ("prompt", "prompt_name", "max_length", "truncate_dim")
SCHEDULE = ("vertical_chunk_size", "max_tokens_per_step", "max_in_flight")
SETTINGS = {
    **dict.fromkeys((*LOAD, "prompt", "prompt_name"), str),
    **dict.fromkeys(("max_length", "truncate_dim", *SCHEDULE, "inner_chunk", "threads"), int),
}
"""What a side may differ in, and the type of each."""


@dataclass(frozen=True)
class Side:
    """One side: a model, None for the shipped one, and settings of `SETTINGS`."""

    model: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A side on some texts: those of `texts` (as `thalweg embed` takes them), at most `most`, `repeat` times."""

    side: Side
    texts: tuple[str, ...]
    lines: bool = False
    most: int | None = None
    section_size: int | None = None
    repeat: int = 2

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Task:
        return cls(**{**stored, "side": Side(**stored["side"]), "texts": tuple(stored["texts"])})


class _Unfinished:
    """Nothing was embedded before."""

    def has(self, file: int, row: int) -> bool:
        return False


def embed(task: Task, vectors: BinaryIO) -> dict[str, Any]:
    """Load the side's model and embed the texts; speed, memory and what could not be read."""
    settings = task.side.settings
    if "threads" in settings:
        torch.set_num_threads(settings["threads"])
    began = time.perf_counter()
    embedder = thalweg.load(task.side.model, **{name: settings[name] for name in LOAD if name in settings})
    set_inner_chunk(embedder.model, settings.get("inner_chunk"))
    loaded = time.perf_counter() - began
    meter = Meter(str(embedder.model.device))
    embedder.encode(["warm up " * 200])
    before = meter.reset()
    rows: list[dict[str, Any]] = []
    unread: list[dict[str, str]] = []
    first = meter.seconds(lambda: rows.extend(_rows(embedder, task, vectors, unread)))
    more = [meter.seconds(lambda: list(_rows(embedder, task, None, []))) for _ in range(task.repeat - 1)]
    n_tokens = sum(row["tokens"] for row in rows)
    return {
        "status": OK,
        "name": embedder.name,
        "dimension": settings.get("truncate_dim", embedder.dimension),
        "dtype": str(embedder.dtype).removeprefix("torch.")
        + (f", {embedder.quantization}" if embedder.quantization else ""),
        "rows": rows,
        "unread": unread,
        "tokens": n_tokens,
        "seconds": spread([first, *more]),
        "tokens_per_s": spread([n_tokens / each for each in (first, *more)]),
        "load_seconds": loaded,
        "memory": {**before, **meter.peak()},
        "machine": machine(str(embedder.model.device)),
    }


def _rows(
    embedder: Embedder, task: Task, vectors: BinaryIO | None, unread: list[dict[str, str]]
) -> Iterator[dict[str, Any]]:
    """What every vector stands for, in order; the vectors go to the file, what cannot be read to the list."""
    names: list[str] = []

    def texts() -> Iterator[Any]:
        for document in _documents(task, unread):
            names.append(document.id)
            yield document.text

    settings = {name: task.side.settings[name] for name in (*ENCODE, *SCHEDULE) if name in task.side.settings}
    for found in embedder.encode_stream(texts(), section_size=task.section_size, on_error="yield", **settings):
        if isinstance(found, Failure):
            unread.append({"id": names[found.index], "reason": str(found.error)})
            continue
        if vectors is not None:
            vectors.write(found.vector.astype("float32").tobytes())
        yield {
            "id": names[found.index],
            "document": found.index,
            "section": found.section,
            "tokens": found.n_tokens,
            "start": found.char_start,
        }


def _documents(task: Task, unread: list[dict[str, str]]) -> Iterator[Document]:
    found = discover(list(task.texts), lines=task.lines)
    unread += [{"id": each.path, "reason": str(each.error)} for each in found.unreadable]
    documents = read_documents(found.files, Columns(), _Unfinished(), BytesRead())
    for n_read, document in enumerate(documents):
        if n_read == task.most:
            return
        if isinstance(document, Document):
            yield document
        elif isinstance(document, ReadFailure):
            unread.append({"id": document.id, "reason": str(document.error)})


def work(task: dict[str, Any], path: str) -> dict[str, Any]:
    """The result of a task that came as JSON; the vectors go to the file."""
    warnings.simplefilter("ignore")
    try:
        with open(path, "wb") as vectors:
            return embed(Task.from_json(task), vectors)
    except (torch.OutOfMemoryError, MemoryError) as error:
        return {"status": OUT_OF_MEMORY, "message": str(error)}
    except (ThalwegError, OSError, RuntimeError) as error:
        return {"status": ERROR, "message": str(error)}
