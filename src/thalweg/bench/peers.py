"""Other software with the same weights. A peer is measured only where it is installed."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thalweg.bench.point import Point
from thalweg.bench.shapes import SHAPES
from thalweg.bench.weights import recurrent_model
from thalweg.checkpoints import EmbeddingConfig, save_checkpoint
from thalweg.checkpoints.formats import find_format
from thalweg.errors import InvalidInputError, MissingExtraError
from thalweg.families import find_family

CHUNK_LOOP = "transformers, chunk loop"
ONE_PASS = "transformers, one pass"
SENTENCES = "sentence-transformers"
RWKV = "rwkv"
LLAMA_CPP = "llama-cpp-python"

MODULES = {
    CHUNK_LOOP: "transformers",
    ONE_PASS: "transformers",
    SENTENCES: "sentence_transformers",
    RWKV: "rwkv",
    LLAMA_CPP: "llama_cpp",
}
"""What must be importable for each."""

CHUNK = 512
"""Tokens of a piece where none is asked for."""


def installed(family: str) -> list[str]:
    """The peers that run a family's random weights here."""
    return [name for name in find_family(family).peers if importlib.util.find_spec(MODULES[name]) is not None]


def runner(point: Point) -> Callable[[], object]:
    """A call that embeds the point's batch with the peer it names."""
    if importlib.util.find_spec(MODULES.get(point.runner, "")) is None:
        raise MissingExtraError(f"{point.runner} is not installed: pip install {MODULES[point.runner]}")
    if point.runner == LLAMA_CPP:
        return _llama_cpp(point)
    if point.runner == RWKV:
        model, ids = _weights(point), tokens(point)
        return rwkv_loop(model, ids[0], point.vertical_chunk_size or CHUNK)
    if point.runner == SENTENCES:
        return _sentence_transformers(point)
    with tempfile.TemporaryDirectory() as folder:
        path = str(point.model or _saved(point, Path(folder) / "model"))
        theirs = transformers_model(path, getattr(torch, point.dtype), point.device)
    ids = torch.from_numpy(tokens(point, theirs.config.vocab_size)).to(point.device)
    if point.runner == ONE_PASS:
        return one_pass(theirs, ids)
    return chunk_loop(theirs, ids, point.vertical_chunk_size or CHUNK)


def tokens(point: Point, vocabulary: int | None = None) -> Any:
    """(batch, length) int64 random ids."""
    if vocabulary is None:
        vocabulary = point.vocabulary or SHAPES[str(point.shape)].config["vocab_size"]
    return np.random.default_rng(0).integers(0, vocabulary, (point.batch, point.length))


def transformers_model(folder: str, dtype: torch.dtype, device: str = "cpu") -> Any:
    """transformers' own model of a folder."""
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, dtype=dtype).to(device).eval()


def chunk_loop(model: Any, ids: torch.Tensor, chunk: int) -> Callable[[], torch.Tensor]:
    """The loop of the published models' card: pieces of (B, T) ids, the cache passed on; (B, D) last vectors."""

    from thalweg.integrations.transformers.chunked import cache_name

    name = cache_name(model)

    @torch.inference_mode()
    def run() -> torch.Tensor:
        cache, hidden = None, None
        for start in range(0, ids.shape[1], chunk):
            out = model(ids[:, start : start + chunk], use_cache=True, **{name: cache})
            cache, hidden = getattr(out, name), out.last_hidden_state
        assert hidden is not None
        return hidden[:, -1].float().cpu()

    return run


def one_pass(model: Any, ids: torch.Tensor) -> Callable[[], torch.Tensor]:
    """(B, T) ids -> (B, D) last vectors in one call, as transformers does by itself."""

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return model(ids).last_hidden_state[:, -1].float().cpu()

    return run


def rwkv_loop(model: Any, ids: Any, chunk: int) -> Callable[[], None]:
    """The PyPI package `rwkv`, float32 on the CPU. It gives logits, so only its last layer differs from ours."""
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
    from rwkv.model import RWKV as Package

    format = find_format("rwkv7/pth")
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor_map, stored = format.stored_name(name)
        tensors[stored] = tensor_map.save(tensor)
    tensors["head.weight"] = torch.zeros(model.config.vocab_size, model.config.d_model)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(None):
        path = Path(folder) / "model.pth"
        torch.save(tensors, path)
        theirs = Package(model=str(path.with_suffix("")), strategy="cpu fp32")
    tokens = ids.tolist()

    def run() -> None:
        state = None
        for start in range(0, len(tokens), chunk):
            _, state = theirs.forward(tokens[start : start + chunk], state)

    return run


def _sentence_transformers(point: Point) -> Callable[[], object]:
    """The library's own modules (Transformer, Pooling) on the shipped book, tokenisation included."""
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as folder:
        path = str(point.model or _saved(point, Path(folder) / "model", with_tokenizer=True))
        theirs = SentenceTransformer(path, device=point.device, model_kwargs={"dtype": getattr(torch, point.dtype)})
    theirs.max_seq_length = point.length
    text = _text_of(theirs.tokenizer, point.length)
    return lambda: theirs.encode([text] * point.batch, batch_size=point.batch, show_progress_bar=False)


def _text_of(tokenizer: Any, length: int) -> str:
    """The shipped book, over and over, at least `length` tokens long."""
    from thalweg.assets import book

    source = book().read_text(encoding="utf-8")
    n_tokens = len(tokenizer(source[:100_000], truncation=False)["input_ids"])
    characters = int(1.3 * length / n_tokens * 100_000) + 1000
    return (source * (characters // len(source) + 1))[:characters]


def _llama_cpp(point: Point) -> Callable[[], object]:
    """A GGUF file through llama.cpp, last-token pooling, as many tokens at once as the text has."""
    if point.model is None:
        raise InvalidInputError(f"{LLAMA_CPP} reads GGUF files: name one with --gguf")
    import llama_cpp

    model = llama_cpp.Llama(
        model_path=point.model,
        embedding=True,
        n_ctx=point.length + 8,
        n_batch=point.length,
        n_ubatch=min(point.length, point.vertical_chunk_size or CHUNK),
        n_threads=point.threads or torch.get_num_threads(),
        n_gpu_layers=-1 if point.device.startswith("cuda") else 0,
        pooling_type=llama_cpp.LLAMA_POOLING_TYPE_LAST,
        verbose=False,
    )
    from thalweg.assets import book

    source = book().read_text(encoding="utf-8")
    ids = model.tokenize(source.encode())[: point.length]
    text = model.detokenize(ids).decode("utf-8", "ignore")
    return lambda: model.embed([text] * point.batch, truncate=True)


def _weights(point: Point) -> Any:
    shape = SHAPES[str(point.shape)]
    return recurrent_model(shape, getattr(torch, point.dtype), layers=point.layers, vocabulary=point.vocabulary)


def _saved(point: Point, folder: Path, with_tokenizer: bool = False) -> Path:
    """The point's weights as a folder of transformers; with the shipped tokenizer also of sentence-transformers."""
    from thalweg.assets import model_folder

    save_checkpoint(
        _weights(point),
        folder,
        tokenizer_folder=model_folder() if with_tokenizer else None,
        embedding=EmbeddingConfig(pooling="last") if with_tokenizer else None,
        dtype=getattr(torch, point.dtype),
    )
    return folder
