"""The ids of the special tokens, from whichever file of a folder states them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.checkpoints.fields import read_optional_object

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "tokenizer.model.v3",
    "spiece.model",
    "rwkv_vocab_*.txt",
)
"""Every file that a tokenizer may consist of, as patterns; fetched from the hub and copied by `save_checkpoint`."""


@dataclass(frozen=True)
class TokenIds:
    """Ids of the special tokens; None where nothing states one."""

    eos: int | None = None
    bos: int | None = None
    pad: int | None = None


def read_token_ids(folder: Path, config: Mapping[str, Any], default: TokenIds, vocab_size: int) -> TokenIds:
    """The special tokens of a folder.

    The tokenizer's own files come first: a model's config.json is often left at its class's defaults (0, 1, 2) while
    the tokenizer says otherwise, and the tokenizer is what users of the model append with. Then generation_config.json,
    config.json and `default`. An id outside the vocabulary is no answer, since it could never be embedded. Beside the
    RWKV vocabulary the configs do not count: they say 1 and 2, which are bytes of text there.
    """
    sources: tuple[Mapping[str, Any], ...] = (_tokenizer_ids(folder),)
    if not any(folder.glob("rwkv_vocab_*.txt")):
        sources += (read_optional_object(folder / "generation_config.json"), config)

    def find(kind: str, fallback: int | None) -> int | None:
        for candidate in (*(_first_id(source.get(f"{kind}_token_id")) for source in sources), fallback):
            if candidate is not None and 0 <= candidate < vocab_size:
                return candidate
        return None

    return TokenIds(eos=find("eos", default.eos), bos=find("bos", default.bos), pad=find("pad", default.pad))


def ends_with_eos(folder: Path) -> bool:
    """Whether tokenizer.json puts special tokens after a text, of its own accord."""
    post = read_optional_object(folder / "tokenizer.json").get("post_processor")
    stages = [post, *post.get("processors", [])] if isinstance(post, dict) else []
    return any(
        isinstance(stage, dict) and bool(stage.get("single")) and "SpecialToken" in stage["single"][-1]
        for stage in stages
    )


def _first_id(value: Any) -> int | None:
    """Generation configs may list several end tokens; the first is the one that ends a text."""
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _tokenizer_ids(folder: Path) -> dict[str, int | None]:
    """{"eos_token_id": 2, ...} by the tokens that tokenizer_config.json or special_tokens_map.json names."""
    config = read_optional_object(folder / "tokenizer_config.json")
    named = {**read_optional_object(folder / "special_tokens_map.json"), **config}
    tokens = {kind: _content(named.get(f"{kind}_token")) for kind in ("eos", "bos", "pad")}
    if not any(tokens.values()):
        return {}
    ids = _listed_ids(config)
    if any(token is not None and token not in ids for token in tokens.values()):
        # Only now, because the vocabulary of a large model is megabytes of JSON.
        ids = {**_vocabulary(folder), **ids}
    return {f"{kind}_token_id": ids.get(token) if token is not None else None for kind, token in tokens.items()}


def _content(token: Any) -> str | None:
    """A token is written as a string or as an object with its `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _listed_ids(config: Mapping[str, Any]) -> dict[str, int]:
    listed = config.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return {}
    return {content: int(id_) for id_, token in listed.items() if (content := _content(token)) and id_.isdigit()}


def _vocabulary(folder: Path) -> dict[str, int]:
    tokenizer = read_optional_object(folder / "tokenizer.json")
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids: dict[str, int] = {}
    if isinstance(vocabulary, dict):
        ids.update(vocabulary)
    elif isinstance(vocabulary, list):  # unigram: [token, score] in the order of the ids
        ids.update({entry[0]: id_ for id_, entry in enumerate(vocabulary)})
    ids.update({token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []})
    return ids
