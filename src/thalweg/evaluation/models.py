"""The models of a run, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mteb.abstasks import AbsTaskRetrieval

from thalweg.evaluation.bm25 import BM25Search
from thalweg.evaluation.peers import Peer
from thalweg.integrations.mteb import ThalwegEncoder
from thalweg.system.words import counted

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from thalweg.embedder.embedder import Embedder

InstructionMode = Literal["auto", "paper", "model", "none"]

BM25_NAME = "bm25"

_INSTRUCTED = ("llama-embed-mamba2", "e5-mistral")
"""In the names of models that the paper's instructions were made for."""


@dataclass(frozen=True)
class Contestant:
    """A model of a run.

    label: its name in the tables; load: makes it ready for mteb; retrieval_only: it has nothing to say to other tasks;
    encode_kwargs: for mteb.
    """

    label: str
    load: Callable[[], Any]
    retrieval_only: bool = False
    encode_kwargs: dict[str, Any] = field(default_factory=dict)

    def takes(self, task: AbsTask) -> bool:
        return not self.retrieval_only or isinstance(task, AbsTaskRetrieval)


def our_model(
    embedder: Embedder, instructions: InstructionMode = "auto", max_length: int | None = None, **schedule: int | None
) -> Contestant:
    """A model of thalweg.

    instructions: "paper" puts the paper's before queries, "model" the model's own prompts, "none" nothing; "auto" is
    "paper" for models that were tuned with such instructions, else "model". schedule: bounds of `Embedder.encode`.
    """
    if instructions == "auto":
        instructions = "paper" if instructed(embedder) else "model"

    def load() -> ThalwegEncoder:
        return ThalwegEncoder(
            embedder,
            instructions="paper" if instructions == "paper" else None,
            model_prompts={} if instructions == "none" else None,
            max_length=max_length,
        )

    given = {name: value for name, value in schedule.items() if value is not None}
    cut = "" if max_length is None else f", cut at {counted(max_length, 'token')}"
    name = Path(embedder.name).resolve().name if Path(embedder.name).exists() else embedder.name
    return Contestant(name + cut, load, encode_kwargs=given)


def instructed(embedder: Embedder) -> bool:
    """Whether a model was tuned with instructions, by its prompts or its name."""
    return any("Instruct:" in prompt for prompt in embedder.prompts.values()) or any(
        name in embedder.name for name in _INSTRUCTED
    )


def other_models(names: Sequence[str], device: str | None = None) -> list[Contestant]:
    """BM25, and models of sentence-transformers: each as it is, then with the mean of a text's chunks."""
    found = []
    for name in dict.fromkeys(names):
        if name == BM25_NAME:
            found.append(Contestant("BM25", BM25Search, retrieval_only=True))
            continue
        found.append(Contestant(name, lambda name=name: Peer(name, device=device)))  # type: ignore[misc]
        found.append(
            Contestant(
                f"{name}, mean of chunks",
                lambda name=name: Peer(name, chunks=True, device=device),  # type: ignore[misc]
                retrieval_only=True,
            )
        )
    return found
