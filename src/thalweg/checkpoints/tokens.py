"""The ids of the special tokens, from whichever file of a folder states them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.checkpoints.fields import Fields, read_optional_object
from thalweg.errors import CheckpointError

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
    config.json and `default`. Beside the RWKV vocabulary the configs do not count: they say 1 and 2, which are bytes of
    text there.

    Raises:
        CheckpointError: an id outside the vocabulary, which could never be embedded, or what is no id.
    """
    sources = [Fields(_tokenizer_ids(folder), f"{folder}: the tokenizer's files")]
    if not any(folder.glob("rwkv_vocab_*.txt")):
        generation = folder / "generation_config.json"
        sources += [Fields(read_optional_object(generation), str(generation)), Fields(config, f"{folder}: the config")]

    def find(kind: str, fallback: int | None) -> int | None:
        for source in sources:
            stated = _stated_id(source, f"{kind}_token_id")
            if stated is not None and stated >= vocab_size:
                raise source.wrong(f"{kind}_token_id", stated, f"below {vocab_size:,}, the number of embeddings")
            if stated is not None:
                return stated
        return fallback if fallback is not None and fallback < vocab_size else None

    return TokenIds(eos=find("eos", default.eos), bos=find("bos", default.bos), pad=find("pad", default.pad))


def ends_with_eos(folder: Path) -> bool:
    """Whether tokenizer.json puts special tokens after a text, of its own accord."""
    post = read_optional_object(folder / "tokenizer.json").get("post_processor")
    stages = [post] if isinstance(post, dict) else []
    stages += _objects(post.get("processors")) if isinstance(post, dict) else []
    ends = (stage["single"][-1] for stage in stages if isinstance(stage.get("single"), list) and stage["single"])
    return any(isinstance(end, dict) and "SpecialToken" in end for end in ends)


def _stated_id(source: Fields, key: str) -> int | None:
    """Generation configs may list several end tokens; the first is the one that ends a text. -1 stands for none."""
    value = source.raw.get(key)
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None:
        return None
    stated = Fields({key: value}, source.source).integer(key, minimum=-1)
    return None if stated == -1 else stated


def _tokenizer_ids(folder: Path) -> dict[str, int | None]:
    """{"eos_token_id": 2, ...} by the tokens that tokenizer_config.json or special_tokens_map.json names."""
    path = folder / "tokenizer_config.json"
    config = read_optional_object(path)
    named = {**read_optional_object(folder / "special_tokens_map.json"), **config}
    tokens = {kind: _content(named.get(f"{kind}_token")) for kind in ("eos", "bos", "pad")}
    if not any(tokens.values()):
        return {}
    ids = _listed_ids(config, path)
    missing = {token for token in tokens.values() if token is not None and token not in ids}
    if missing:
        # Only now, because the vocabulary of a large model is megabytes of JSON.
        ids |= _vocabulary(folder, missing)
    return {f"{kind}_token_id": ids.get(token) if token is not None else None for kind, token in tokens.items()}


def _content(token: Any) -> str | None:
    """A token is written as a string or as an object with its `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _listed_ids(config: Mapping[str, Any], path: Path) -> dict[str, int]:
    listed = Fields(config, str(path)).section("added_tokens_decoder").raw
    wrong = [id_ for id_ in listed if not re.fullmatch("[0-9]{1,9}", id_)]
    if wrong:
        raise CheckpointError(f"{path}: added_tokens_decoder must be by token ids, but one is {wrong[0]!r:.80}")
    return {content: int(id_) for id_, token in listed.items() if (content := _content(token))}


def _vocabulary(folder: Path, wanted: Collection[str]) -> dict[str, int]:
    """The ids of some tokens in tokenizer.json. What is not as it must be the tokenizers library will refuse."""
    tokenizer = read_optional_object(folder / "tokenizer.json")
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids: dict[str, Any] = {}
    if isinstance(vocabulary, dict):
        ids |= {token: vocabulary.get(token) for token in wanted}
    elif isinstance(vocabulary, list):  # unigram: [token, score] in the order of the ids
        entries = ((entry[0], id_) for id_, entry in enumerate(vocabulary) if isinstance(entry, list) and entry)
        ids |= {token: id_ for token, id_ in entries if isinstance(token, str) and token in wanted}
    added = ((token.get("content"), token.get("id")) for token in _objects(tokenizer.get("added_tokens")))
    ids |= {token: id_ for token, id_ in added if isinstance(token, str) and token in wanted}
    return {token: id_ for token, id_ in ids.items() if isinstance(id_, int)}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
