"""What the tests of the frameworks have in common: a tiny model with prompts, and proof that a loop was not blocked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import thalweg
from tests.corpus.tiny import make_text, write_model

PROMPTS = {"query": "look for: ", "document": "read: "}
TEXTS = ["the river runs", "", make_text(700), "swans — and an emoji 🦢", make_text(40, seed=1), "12 bridges"]

T = TypeVar("T")


def write_prompted_model(folder: Path) -> tuple[str, thalweg.Embedder]:
    """A tiny model with a prompt for queries and another for documents: its name, and the model for comparison."""
    path = write_model(folder, prompts=PROMPTS)
    return str(path), thalweg.load(path)


async def with_heartbeats(work: Awaitable[T]) -> tuple[T, int]:
    """The result of `work`, and how often the event loop came round while it went on."""
    task = asyncio.ensure_future(work)
    beats = 0
    while not task.done():
        await asyncio.sleep(0.001)
        beats += 1
    return await task, beats
