"""A session on disk: a safetensors file of its state and sums, with a header that says what it belongs to.

The header is JSON in the file's metadata; long texts and rows of numbers in it are tensors beside those of the state. A
SHA-256 over it and all tensors tells damage and changes. What a file says is checked against the model in any case,
since a checksum says nothing about who made it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from thalweg.embedder.results import Embedding
from thalweg.embedder.sessions.point import Ids
from thalweg.engine.results import DocumentState, OpenSection
from thalweg.engine.states import from_tensors, nbytes, to_tensors
from thalweg.errors import InvalidInputError
from thalweg.models.protocol import State
from thalweg.pooling.pooling import RunningMean
from thalweg.storage.durable import errors_named
from thalweg.tokenization.text import Utf8Decoder

KIND, VERSION = "thalweg session", "1"
WITH_SECTIONS = "2"
"""The version of a file whose session has sections, which the first readers did not know."""

MOST_BESIDES = 64 << 20
"""Bytes that a file may have besides the tensors of the state: a text that cannot be cut is in the window whole."""

MOST_KEPT = 48 << 20
"""Bytes of vectors of sections among them."""

MOST_HEADER = 4 << 20
"""Bytes of its JSON, which takes up to 30 times as much when it is read."""

MOST_INLINE = 256
"""Characters of a text, or numbers of a row, that stay in the JSON."""

_LARGEST = float(np.finfo(np.float32).max)
_TENSOR = "in tensor"  # the one key of what stands for a text or a row in the JSON


@dataclass(frozen=True)
class Saved:
    """What a file holds.

    model: what the state belongs to, each entry of which must be the same where it is restored; settings: of the
    session; window: of its tokenizer; held, state, pending, n_bytes: see `Point`; cut: what its `Cut` knows, for JSON;
    kept: sections that have ended.
    """

    model: Mapping[str, str]
    settings: Mapping[str, Any]
    window: Mapping[str, Any]
    held: Ids
    state: DocumentState | None
    pending: bytes
    n_bytes: int
    cut: Mapping[str, Any] | None = None
    kept: Sequence[Embedding] = ()


def read_session(
    path: Path, like: State, width: int, check: Callable[[Mapping[str, str]], None] = lambda model: None
) -> Saved:
    """What `to_bytes` gave.

    Args:
        like: a state of the model, of one row; width: of the pooling's sums.
        check: raises InvalidInputError for what a session of this model does not belong to.

    Raises:
        InvalidInputError: the file is no session, of another version or another model, or damaged.
        OSError: it cannot be read.
    """
    most = nbytes(like) + 8 * width + MOST_BESIDES
    with errors_named(path), open(path, "rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise InvalidInputError(f"{path} has more than {most:,} bytes, which no session of this model has")
    return from_bytes(data, like, width, check, str(path))


def to_bytes(saved: Saved) -> bytes:
    """The file as bytes.

    Raises:
        InvalidInputError: more sections have been kept than `read_session` takes.
    """
    tensors = {"held": torch.from_numpy(saved.held)}
    header: dict[str, Any] = {
        "model": dict(saved.model),
        "settings": dict(saved.settings),
        "window": _move_out(saved.window, "window", tensors),
        "pending": saved.pending.hex(),
        "n_bytes": saved.n_bytes,
    }
    if saved.state is not None:
        tensors |= to_tensors(saved.state.model) | {"sums": torch.from_numpy(saved.state.sums.total)}
        header |= {"n_tokens": saved.state.n_tokens, "n_summed": saved.state.sums.count}
    if saved.cut is not None:
        header["sections"] = _move_out(saved.cut, "sections", tensors) | _begun(saved.state, tensors)
        tensors |= _kept(saved.kept)
    text = json.dumps(header)
    version = VERSION if saved.cut is None else WITH_SECTIONS
    metadata = {"format": KIND, "version": version, "header": text, "sha256": _digest(text, tensors)}
    return safetensors.torch.save(tensors, metadata)


def from_bytes(data: bytes, like: State, width: int, check: Callable[[Mapping[str, str]], None], where: str) -> Saved:
    """The session in these bytes; see `read_session`. where: what messages call them."""

    def refuse(reason: str, error: Exception | None = None) -> NoReturn:
        raise InvalidInputError(f"{where} cannot be restored: {reason}") from error

    try:
        metadata = _metadata(data)
    except (ValueError, RecursionError) as error:
        refuse("it is no saved session, or damaged", error)
    if metadata.get("format") != KIND:
        refuse("it is no saved session")
    if metadata.get("version") not in (VERSION, WITH_SECTIONS):
        known = f"{VERSION!r} and {WITH_SECTIONS!r}"
        refuse(f"it has version {metadata.get('version')!r:.80}, and this thalweg reads {known}; update thalweg")
    try:
        with torch.device("cpu"):
            tensors = safetensors.torch.load(data)
        text = metadata["header"]
        if _digest(text, tensors) != metadata["sha256"]:
            raise ValueError("its checksum is another one")
        header = json.loads(text)
        check({**header["model"]})
        return _parse(header, tensors, like, width)
    except InvalidInputError as error:
        refuse(str(error), error)
    except Exception as error:
        refuse(f"it is damaged, or was changed ({_brief(error)})", error)


def _parse(header: Any, tensors: dict[str, Tensor], like: State, width: int) -> Saved:
    """Raises any exception for what is no session."""
    names = {"model", "settings", "window", "pending", "n_bytes", "n_tokens", "n_summed", "sections"}
    if header.keys() - names:
        raise ValueError("its header has other entries")
    pending, n_bytes = bytes.fromhex(header["pending"]), header["n_bytes"]
    model, settings = ({**header[name]} for name in ("model", "settings"))
    window = _bring_back(header["window"], tensors)
    held = tensors.pop("held")
    if held.ndim != 1 or held.dtype != torch.int32 or not isinstance(window, dict):
        raise ValueError("its parts are of other kinds")
    decoder = Utf8Decoder(b"", 0)
    if decoder.decode(pending) or decoder.pending != pending or not _is_count(n_bytes, least=len(pending)):
        raise ValueError("it ends in something else than a part of a character")
    cut: dict[str, Any] | None = None
    kept: list[Embedding] = []
    begun = None
    if "sections" in header:
        cut = _bring_back(header["sections"], tensors)
        if not isinstance(cut, dict):
            raise ValueError("its sections are of another kind")
        kept = _kept_again(tensors)
        begun = _begun_again(tensors, cut, width)
    state = None
    if tensors:
        n_tokens = header["n_tokens"]
        sums = _sums(tensors.pop("sums"), header["n_summed"], n_tokens, width)
        if begun is not None and (begun.start > n_tokens or (begun.sums is not None and begun.sums.count > sums.count)):
            raise ValueError("its open section is ahead of it")
        state = DocumentState(from_tensors(tensors, like), sums, n_tokens, begun)
        if any(len(tensor) != 1 for layer in state.model for tensor in layer):
            raise ValueError("its state is not that of one text")
    return Saved(model, settings, window, held.numpy(), state, pending, n_bytes, cut, kept)


def _sums(total: Tensor, count: Any, n_tokens: Any, width: int) -> RunningMean:
    if total.shape != (width,) or total.dtype != torch.float64:
        raise ValueError("its sums are of another width")
    if not _is_count(n_tokens, least=1) or not _is_count(count, most=n_tokens):
        raise ValueError("its counts are no numbers of tokens")
    if not bool((total.abs() <= count * _LARGEST).all()):
        raise ValueError("its sums are too large, or no numbers")
    sums = RunningMean(0)
    sums.total, sums.count = total.numpy(), count
    return sums


def _begun(state: DocumentState | None, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The section that is under way, for the header; its sums are a tensor."""
    if state is None or state.section is None:
        return {}
    begun = state.section
    if begun.sums is None:
        return {"number": begun.number, "start": begun.start}
    tensors["sections.sums"] = torch.from_numpy(begun.sums.total)
    return {"number": begun.number, "start": begun.start, "n_summed": begun.sums.count}


def _begun_again(tensors: dict[str, Tensor], cut: dict[str, Any], width: int) -> OpenSection | None:
    """What `_begun` was given; it is taken out."""
    if "number" not in cut:
        return None
    number, start, sums = cut.pop("number"), cut.pop("start"), None
    if not _is_count(number) or not _is_count(start):
        raise ValueError("its section has no number")
    if "n_summed" in cut:
        sums = _sums(tensors.pop("sections.sums"), cut.pop("n_summed"), max(1, start), width)
    return OpenSection(number, start, sums)


def _kept(kept: Sequence[Embedding]) -> dict[str, Tensor]:
    """Sections that have ended, as tensors."""
    if not kept:
        return {}
    vectors = np.stack([each.vector for each in kept])
    if vectors.nbytes > MOST_KEPT:
        raise InvalidInputError(
            f"{len(kept):,} sections wait in the session, {vectors.nbytes:,} bytes of vectors, and a file may have "
            f"{MOST_KEPT:,}: take them with take_sections() before you save it"
        )
    rows = [[each.section, each.n_tokens, each.char_start, each.char_end] for each in kept]
    return {"kept.vectors": torch.from_numpy(vectors), "kept.rows": torch.tensor(rows, dtype=torch.int64)}


def _kept_again(tensors: dict[str, Tensor]) -> list[Embedding]:
    """What `_kept` was given; it is taken out."""
    if "kept.rows" not in tensors:
        return []
    vectors, rows = tensors.pop("kept.vectors"), tensors.pop("kept.rows")
    if vectors.dtype != torch.float32 or vectors.ndim != 2 or rows.dtype != torch.int64:
        raise ValueError("its sections are of another kind")
    if not bool(vectors.isfinite().all()):
        raise ValueError("its sections hold numbers that are none")
    if rows.shape != (len(vectors), 4) or bool((rows < 0).any()):
        raise ValueError("its sections have other characters than vectors")
    return [
        Embedding(0, section, n_tokens, start, end, vector, last=False, truncated=False)
        for (section, n_tokens, start, end), vector in zip(rows.tolist(), vectors.numpy(), strict=True)
    ]


def _metadata(data: bytes) -> dict[str, str]:
    """The strings in the header of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(len(data) - 8, MOST_HEADER):
        raise ValueError("no header")
    found = json.loads(data[8 : 8 + length].decode("utf-8"))
    metadata = found.get("__metadata__") if isinstance(found, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("no metadata")
    return metadata


def _move_out(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON that is short: what is long in it becomes a tensor of this name."""
    if isinstance(value, Mapping):
        return {key: _move_out(inner, f"{name}.{key}", tensors) for key, inner in value.items()}
    if not isinstance(value, str | list) or len(value) <= MOST_INLINE:
        return value
    raw = np.frombuffer(value.encode(), dtype=np.uint8).copy() if isinstance(value, str) else np.array(value, np.int64)
    tensors[name] = torch.from_numpy(raw)
    return {_TENSOR: name}


def _bring_back(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What `_move_out` was given; its tensors are taken out."""
    if not isinstance(value, dict):
        return value
    if value.keys() != {_TENSOR}:
        return {key: _bring_back(inner, tensors) for key, inner in value.items()}
    tensor = tensors.pop(value[_TENSOR])
    if tensor.dtype == torch.uint8:
        return bytes(tensor.numpy().data).decode()
    if tensor.dtype != torch.int64 or tensor.ndim > 2:
        raise ValueError(f"a row of numbers is {tensor.dtype}")
    return tensor.tolist()


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_count(value: Any, least: int = 0, most: int = 1 << 62) -> bool:
    return type(value) is int and least <= value <= most


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
