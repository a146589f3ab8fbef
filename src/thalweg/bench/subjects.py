"""What a point runs: a model, and one call that takes a batch of texts of random tokens to their vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from thalweg.bench import peers
from thalweg.bench.matmul_limit import inner_chunk, products, set_inner_chunk
from thalweg.bench.point import THALWEG, TRANSFORMER, Point
from thalweg.bench.shapes import ENCODERS, SHAPES
from thalweg.bench.weights import best_attention, recurrent_model, transformer_model
from thalweg.engine.engine import Engine
from thalweg.engine.memory_plan import plan_memory
from thalweg.engine.schedule import Schedule
from thalweg.engine.sources import Answer, TokenArray
from thalweg.models.quantized import weight_bytes, weight_count
from thalweg.packing import Packing
from thalweg.pooling import LastToken, Pooling


@dataclass
class Subject:
    """A model and its texts.

    run: embeds the first so many tokens of every text (peers: always all of them); facts: of the model, for the
    results; step: makes what `Step` holds, if asked to.
    """

    run: Callable[[int], object]
    facts: dict[str, Any] = field(default_factory=dict)
    step: Callable[[], Step] | None = None


@dataclass
class Step:
    """One step of `n_tokens`: the whole of it, with the vectors of all tokens, and its matrix products alone."""

    n_tokens: int
    model: Callable[[], object]
    products: Callable[[], object]


class RandomTokens:
    """A document of random tokens, made as they are asked for, so that a long one takes no memory."""

    def __init__(self, n_tokens: int, vocab_size: int, seed: int = 0) -> None:
        self.left = n_tokens
        self.vocab_size = vocab_size
        self.rng = np.random.default_rng(seed)

    def take(self, n: int) -> tuple[TokenArray, Answer]:
        """See `TokenSource`."""
        n = min(n, self.left)
        self.left -= n
        return self.rng.integers(0, self.vocab_size, n), Answer.MORE if self.left else Answer.ENDED


def subject(point: Point) -> Subject:
    """The model of a point on its device.

    Raises:
        ThalwegError: a model, setting or package that cannot be used.
    """
    if point.runner == THALWEG:
        return _thalweg(point)
    if point.runner == TRANSFORMER:
        return _transformer(point)
    theirs = peers.runner(point)
    return Subject(lambda n_tokens: theirs())


def schedule(point: Point) -> Schedule:
    """The bounds of a point: horizontal is one step for everything."""
    v = min(point.vertical_chunk_size or point.length, point.length)
    tokens = max(point.step_tokens, 2 * point.batch + 1)
    in_flight = point.batch if point.tokens_per_step is None else min(point.batch, Schedule().max_in_flight)
    return Schedule(max_tokens_per_step=tokens, vertical_chunk_size=v, max_in_flight=in_flight)


def _thalweg(point: Point) -> Subject:
    pooling: Pooling = LastToken()
    if point.model is not None:
        import thalweg

        embedder = thalweg.load(point.model, device=point.device, dtype=_dtype(point))
        model, pooling = embedder.model, embedder.pooling
    else:
        size: dict[str, Any] = {"layers": point.layers, "vocabulary": point.vocabulary}
        model = recurrent_model(SHAPES[str(point.shape)], _dtype(point), device=point.device, **size)
    set_inner_chunk(model, point.inner_chunk)
    bounds, vocabulary = schedule(point), model.config.vocab_size
    engine = Engine(model, pooling, bounds)

    def run(n_tokens: int) -> None:
        texts = [RandomTokens(n_tokens, vocabulary, seed) for seed in range(point.batch)]
        for _ in engine.run(texts):
            pass

    step = min(point.batch * bounds.vertical_chunk_size, bounds.max_tokens_per_step)
    facts = {
        "weights": weight_bytes(model),
        "parameters": weight_count(model),
        "planned_bytes": plan_memory(model, bounds, pooling).total,
        "inner_chunk": inner_chunk(model),
        "dtype": str(_dtype(point)).removeprefix("torch."),
    }
    return Subject(run, facts, lambda: _step(model, point.batch, step // point.batch))


def _step(model: Any, batch: int, each: int) -> Step:
    packing = Packing([each] * batch, device=model.device)
    ids = torch.from_numpy(RandomTokens(batch * each, model.config.vocab_size).take(batch * each)[0]).to(model.device)

    @torch.inference_mode()
    def run() -> None:
        model.forward(ids, packing)

    return Step(batch * each, run, products(model, batch * each))


def _transformer(point: Point) -> Subject:
    attention = point.attention or best_attention(point.device, point.dtype)
    if point.model is not None:
        model, first = _pretrained(point, attention)
    else:
        shape = SHAPES[str(point.shape)]
        size: dict[str, Any] = {"layers": point.layers, "vocabulary": point.vocabulary, "length": point.length}
        model = transformer_model(
            shape, _dtype(point), device=point.device, attention=attention, window=point.window, **size
        )
        first = shape.family in ENCODERS
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, model.config.vocab_size, (point.batch, point.length))).to(point.device)
    options = {} if first else {"use_cache": False}

    @torch.inference_mode()
    def run(n_tokens: int) -> torch.Tensor:
        hidden = model(input_ids=ids[:, :n_tokens], **options).last_hidden_state
        return hidden[:, 0 if first else -1].float().cpu()

    facts = {
        "weights": weight_bytes(model),
        "parameters": weight_count(model),
        "attention": attention,
        "dtype": point.dtype,
    }
    return Subject(run, facts)


def _pretrained(point: Point, attention: str) -> tuple[Any, bool]:
    """A transformer of a folder or hub id, and whether its first token stands for the text (an encoder)."""
    from transformers import AutoModel

    options: dict[str, Any] = {} if point.window is None else {"sliding_window": point.window}
    model = AutoModel.from_pretrained(str(point.model), dtype=_dtype(point), attn_implementation=attention, **options)
    return model.to(point.device).eval(), model.config.model_type in ENCODERS


def _dtype(point: Point) -> torch.dtype:
    return getattr(torch, point.dtype)
