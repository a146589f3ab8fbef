"""Long texts through a transformers model that carries a cache, chunk by chunk.

    chunked_forward(model, input_ids, attention_mask, pooling="last")

Padding is taken away before the model sees anything, and rows of equal length run together: masks are ignored by some
recurrent models (xlstm, rwkv), and under a mask others still change their state at padding. Nothing is taken on trust:
before a model's first use `verify` compares its chunks with one whole pass, and refuses the model if they differ.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.func import functional_call

from thalweg.errors import InvalidInputError, MissingExtraError, UnsupportedModelError

log = logging.getLogger("thalweg")

CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state")
"""What the cache is called as an argument of `forward` and in its output: by transformers since 5.24; before that by
most models, by Mamba and xLSTM, and by RWKV."""

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.03}
"""How much of the past's influence may get lost: right models lose up to 2e-6 and 9e-3, wrong ones 3e-3 to 0.85."""

_INNER_CHUNK = 64  # of models that do not state theirs


class Chunk(NamedTuple):
    """The hidden vectors of a few tokens of a few texts of equal length."""

    rows: torch.Tensor  # (b,) int64: which rows of the batch
    start: int  # the first token within the text, padding not counted
    hidden: torch.Tensor  # (b, n, D) in the dtype that the model returns
    last: bool  # whether the texts end here


@torch.no_grad()
def chunked_forward(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    vertical_chunk_size: int = 512,
    pooling: Literal["last", "mean"] | None = None,
) -> torch.Tensor:
    """The last hidden states of a batch, or one vector for each row.

    Args:
        model: a transformers model, with or without a head, in eval mode. Verified at first use (see `verify`).
        input_ids: int (B, T).
        attention_mask: (B, T), 1 at tokens and 0 at padding, which may be left, right or both; None: no padding.
        vertical_chunk_size: tokens that go through all layers at a time, at least 2. It changes memory and speed only.
        pooling: None for all hidden states, "last" for each row's last token, "mean" for the mean over its tokens.

    Returns:
        Without pooling (B, T, D) in the dtype that the model returns, zero at padding. With pooling (B, D), at least
        float32; then memory does not grow with T, apart from the cache of attention layers, which a warning names.

    Raises:
        UnsupportedModelError: chunk by chunk this model gives other results than in one pass.
        InvalidInputError: a wrong argument, a row without tokens or with padding between its tokens.
        MissingExtraError: transformers is not installed.
    """
    if pooling not in (None, "last", "mean"):
        raise InvalidInputError(f"pooling must be None, 'last' or 'mean', not {pooling!r}")
    batch, length = _check_ids(input_ids)
    starts, lengths = _spans(input_ids, attention_mask)
    result = torch.zeros(0, device="cpu")
    total: torch.Tensor | float = 0.0
    for rows, start, hidden, last in iterate_chunks(
        model, input_ids, attention_mask, vertical_chunk_size=vertical_chunk_size
    ):
        if not len(result):
            dtype = hidden.dtype if pooling is None else torch.promote_types(hidden.dtype, torch.float32)
            shape = (batch, length, hidden.shape[-1]) if pooling is None else (batch, hidden.shape[-1])
            result = torch.zeros(shape, dtype=dtype, device=hidden.device)
        if pooling is None:
            for row, part in zip(rows.tolist(), hidden, strict=True):
                first = starts[row] + start
                result[row, first : first + len(part)] = part
        elif pooling == "last" and last:
            result[rows.to(result.device)] = hidden[:, -1].to(result.dtype)
        elif pooling == "mean":
            total = (total if start else 0.0) + hidden.sum(dim=1, dtype=result.dtype).double().cpu()
            if last:
                result[rows.to(result.device)] = (total / lengths[int(rows[0])]).to(result)
    return result


@torch.no_grad()
def iterate_chunks(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    vertical_chunk_size: int = 512,
) -> Iterator[Chunk]:
    """The hidden states of `chunked_forward` as they come, for what its poolings do not offer.

    Texts of one length run side by side, and those of another length after them.
    """
    backbone = _backbone(model)
    _check_ids(input_ids)
    if vertical_chunk_size < 2:
        raise InvalidInputError(f"vertical_chunk_size must be at least 2, not {vertical_chunk_size}")
    starts, lengths = _spans(input_ids, attention_mask)
    verify(model)
    device = _device(backbone)
    for length in dict.fromkeys(lengths):
        rows = [row for row, own in enumerate(lengths) if own == length]
        ids = torch.stack([input_ids[row, starts[row] : starts[row] + length] for row in rows]).to(device)
        start = 0
        for hidden, _ in _run(backbone, ids, _sizes(length, vertical_chunk_size)):
            end = start + hidden.shape[1]
            yield Chunk(torch.tensor(rows, device="cpu"), start, hidden, end == length)
            start = end


class _Verdict(NamedTuple):
    distance: float
    refusal: str | None


_verdicts: WeakKeyDictionary[nn.Module, dict[tuple[torch.dtype, torch.device], _Verdict]] = WeakKeyDictionary()


@torch.no_grad()
def verify(model: nn.Module, *, in_float32: bool = True) -> float:
    """Check that this model, as it is now, gives the same chunk by chunk as in one pass.

    Short random texts go through it in one pass, in chunks, and in chunks that know nothing of each other. The result
    is the difference of the second from the first, as a share of the third's: how much of the past gets lost. It is
    kept per model object, dtype and device. Attention layers, whose cache grows with the text, are logged as a warning.

    Args:
        in_float32: check a half-precision model with its weights in float32, too. In half precision alone a small
            error cannot be told from rounding. It takes twice the weights' memory for the moment; to go without, call
            `verify(model, in_float32=False)` before `chunked_forward`.

    Raises:
        UnsupportedModelError: the two differ, with the figure, or the model cannot be run in chunks at all.
    """
    backbone = _backbone(model)
    parameter = next(backbone.parameters())
    known = _verdicts.setdefault(backbone, {})
    key = (parameter.dtype, parameter.device)
    if key not in known:
        known[key] = _examine(backbone, parameter.dtype, in_float32)
    if known[key].refusal is not None:
        raise UnsupportedModelError(known[key].refusal)
    return known[key].distance


def _examine(backbone: Any, dtype: torch.dtype, in_float32: bool) -> _Verdict:
    name = f"{type(backbone).__name__} of transformers {_transformers().__version__}"
    checks: list[tuple[torch.dtype, Callable[..., Any]]] = [(dtype, backbone)]
    if in_float32 and dtype in (torch.bfloat16, torch.float16):
        checks.append((torch.float32, functools.partial(_call_in_float32, backbone)))
    distances = []
    for checked, call in checks:
        try:
            distance = _distance(backbone, call)
        except Exception as error:  # whatever a model raises that was not made to be run like this
            return _Verdict(
                float("nan"), f"{name} in {checked} cannot be run in chunks here: {type(error).__name__}: {error}"
            )
        distances.append(distance)
        tolerance = TOLERANCE.get(checked, 0.0)
        if not distance <= tolerance:
            return _Verdict(
                distance,
                f"{name} in {checked} gives other results in chunks than in one pass: {distance:.1e} of what the past "
                f"contributes gets lost, where rounding explains {tolerance:.0e}; run its texts in one pass, or load "
                "the checkpoint with thalweg.load if its family is among those of thalweg",
            )
    _warn_of_growth(backbone, name)
    return _Verdict(max(distances), None)


def _distance(backbone: Any, call: Callable[..., Any]) -> float:
    config = backbone.config.get_text_config()
    inner = max(int(getattr(config, key, None) or _INNER_CHUNK) for key in ("chunk_size", "mamba_chunk_size"))
    # A first chunk, a short one, one longer than what a model treats at once; then several rows.
    return max(_lost(backbone, call, 1, (7, 2, inner + 3)), _lost(backbone, call, 2, (7, 2, 3)))


def _lost(backbone: Any, call: Callable[..., Any], rows: int, sizes: Sequence[int]) -> float:
    vocabulary = backbone.get_input_embeddings().weight.shape[0]
    generator = torch.Generator(device="cpu").manual_seed(0)
    ids = torch.randint(vocabulary, (rows, sum(sizes)), generator=generator, device="cpu").to(_device(backbone))
    whole = call(input_ids=ids, use_cache=False).last_hidden_state
    chunked = torch.cat([hidden for hidden, _ in _run(backbone, ids, sizes, call)], dim=1)
    if chunked.shape != whole.shape:
        raise ValueError(f"the chunks' hidden states have shape {tuple(chunked.shape)} instead of {tuple(whole.shape)}")
    parts = ids.split(list(sizes), dim=1)
    apart = torch.cat([call(input_ids=part, use_cache=False).last_hidden_state for part in parts], dim=1)
    reference = whole.double().cpu()
    error, influence = ((hidden.double().cpu() - reference).norm() for hidden in (chunked, apart))
    return float(error / (influence if influence else reference.norm()))


def _warn_of_growth(backbone: Any, name: str) -> None:
    ids = torch.zeros((1, 4), dtype=torch.int64, device=_device(backbone))
    *_, (_, cache) = _run(backbone, ids, (2, 2))
    growing = {
        index: layer.keys.nbytes + layer.values.nbytes
        for index, layer in enumerate(getattr(cache, "layers", ()))
        if isinstance(getattr(layer, "keys", None), torch.Tensor) and not getattr(layer, "is_sliding", False)
    }
    if growing:
        log.warning(
            "%s: memory grows with the text, by %d bytes a token, because these of its %d layers are attention: %s",
            name,
            sum(growing.values()) // ids.shape[1],
            len(cache.layers),
            ", ".join(map(str, growing)),
        )


def _run(
    backbone: Any, ids: torch.Tensor, sizes: Sequence[int], call: Callable[..., Any] | None = None
) -> Iterator[tuple[torch.Tensor, Any]]:
    """The hidden states (b, size, D) of each chunk of `ids` (b, n) without padding, and the cache after it."""
    call = call or backbone
    if ids.shape[1] == 1:
        yield call(input_ids=ids, use_cache=False).last_hidden_state, None
        return
    name = cache_name(backbone)
    cache: Any = None
    for part in ids.split(list(sizes), dim=1):
        output = call(input_ids=part, use_cache=True, **{name: cache})
        cache = getattr(output, name, None)
        if cache is None:
            raise ValueError(f"its output has no {name}")
        yield output.last_hidden_state, cache


def cache_name(model: nn.Module) -> str:
    """What a model calls its cache.

    Raises:
        ValueError: its forward takes none.
    """
    parameters = inspect.signature(model.forward).parameters
    name = next((name for name in CACHE_NAMES if name in parameters), None)
    if name is None:
        raise ValueError(f"its forward takes none of {', '.join(CACHE_NAMES)}")
    return name


def _call_in_float32(backbone: nn.Module, **inputs: Any) -> Any:
    tensors = chain(backbone.named_parameters(), backbone.named_buffers())
    widened = {name: tensor.float() for name, tensor in tensors if tensor.dtype in (torch.bfloat16, torch.float16)}
    return functional_call(backbone, widened, kwargs=inputs)


def _sizes(length: int, chunk: int) -> list[int]:
    """Chunks of a text, none of a single token: models run that by code of its own, which in rwkv mixes the rows."""
    sizes = [min(chunk, length - start) for start in range(0, length, chunk)]
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [chunk + 1]
    return sizes


def _check_ids(input_ids: torch.Tensor) -> tuple[int, int]:
    if input_ids.ndim != 2 or input_ids.is_floating_point() or 0 in input_ids.shape:
        shape, dtype = tuple(input_ids.shape), input_ids.dtype
        raise InvalidInputError(f"input_ids must be integers (B, T) with at least one of each, not {shape} of {dtype}")
    return input_ids.shape[0], input_ids.shape[1]


def _spans(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[list[int], list[int]]:
    """The first token of each row and its number of tokens."""
    batch, length = input_ids.shape
    if attention_mask is None:
        return [0] * batch, [length] * batch
    if attention_mask.shape != input_ids.shape:
        shapes = f"{tuple(attention_mask.shape)} instead of {tuple(input_ids.shape)}"
        raise InvalidInputError(f"attention_mask must have the shape of input_ids, but has {shapes}")
    mask = attention_mask.bool().cpu()
    lengths = mask.sum(dim=1)
    starts = mask.int().argmax(dim=1)
    ends = length - mask.flip(1).int().argmax(dim=1)
    for row in range(batch):
        if not lengths[row]:
            raise InvalidInputError(f"row {row} of attention_mask has no token; leave the row out")
        if ends[row] - starts[row] != lengths[row]:
            raise InvalidInputError(f"row {row} of attention_mask has padding between its tokens")
    return starts.tolist(), lengths.tolist()


def _backbone(model: nn.Module) -> Any:
    """The model without its head, whose output would be the logits of every token."""
    transformers = _transformers()
    if not isinstance(model, transformers.PreTrainedModel):
        raise InvalidInputError(f"model must be a transformers model, not {type(model).__name__}")
    backbone = model.base_model
    if backbone.training:
        raise InvalidInputError(f"{type(model).__name__} is in training mode; call model.eval() first")
    if backbone.config.is_encoder_decoder:
        raise UnsupportedModelError(f"{type(model).__name__} has an encoder, which cannot be run in chunks")
    return backbone


def _device(backbone: Any) -> torch.device:
    """Where the ids have to be; with a device map the rest of the model can be elsewhere."""
    device = backbone.get_input_embeddings().weight.device
    assert isinstance(device, torch.device)
    return device


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtraError(
            "thalweg.integrations.transformers needs: pip install 'thalweg[transformers]'"
        ) from error
