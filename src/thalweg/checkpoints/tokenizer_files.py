"""A tokenizer's files → a folder where every reader gets the same ids: thalweg, transformers and what builds on it.

thalweg puts BOS and EOS on itself and never looks at the post-processor of tokenizer.json; transformers does nothing
else. So that both agree the post-processor is made to say what thalweg does. transformers is also told to take
tokenizer.json as it is: the classes that it has for families of tokenizers build a tokenizer of their own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.checkpoints.fields import read_json_object, read_optional_object
from thalweg.checkpoints.tokens import TOKENIZER_FILES, TokenIds
from thalweg.errors import InvalidInputError

if TYPE_CHECKING:
    import tokenizers

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """All files of a tokenizer as they are.

    Raises:
        InvalidInputError: there are none.
    """
    files = [file for pattern in TOKENIZER_FILES for file in source.glob(pattern) if file.is_file()]
    for file in files:
        _copy(file, folder)
    if not files:
        raise InvalidInputError(f"{source} holds no tokenizer file; looked for {', '.join(TOKENIZER_FILES)}")


def write_tokenizer(
    source: Path,
    folder: Path,
    tokens: TokenIds,
    *,
    prefix: list[int],
    suffix: list[int],
    special_tokens_are_text: bool = False,
) -> None:
    """The tokenizer of `source` in the files that transformers reads, putting `prefix` and `suffix` around a text.

    `tokens`: the special tokens to state. A tokenizer without tokenizer.json is copied as it is.
    `special_tokens_are_text`: their literals in a text are.

    Raises:
        InvalidInputError: there is no tokenizer.
    """
    if not (source / "tokenizer.json").is_file():
        copy_tokenizer(source, folder)
        return
    import tokenizers

    library = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    if _wraps(library, prefix, suffix):
        _copy(source / "tokenizer.json", folder)
    else:
        raw = read_json_object(source / "tokenizer.json")
        raw |= {"post_processor": _template(library, prefix, suffix), "truncation": None, "padding": None}
        (folder / "tokenizer.json").write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")
    settings = _settings(source, library, tokens)
    if special_tokens_are_text:
        settings["split_special_tokens"] = True
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _copy(file: Path, folder: Path) -> None:
    if file.parent.resolve() != folder.resolve():  # a model may be saved where it was loaded from
        shutil.copyfile(file, folder / file.name)


def _wraps(library: tokenizers.Tokenizer, prefix: list[int], suffix: list[int]) -> bool:
    """Whether the tokenizer, as it is, does nothing but what is wanted."""
    if library.truncation is not None or library.padding is not None:
        return False
    return all(
        library.encode(text).ids == [*prefix, *library.encode(text, add_special_tokens=False).ids, *suffix]
        for text in ("", "a", "the end")
    )


def _template(library: tokenizers.Tokenizer, prefix: list[int], suffix: list[int]) -> dict[str, Any] | None:
    if not prefix and not suffix:
        return None
    names = {token: library.id_to_token(token) for token in (*prefix, *suffix)}

    def special(tokens: list[int]) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": names[token], "type_id": 0}} for token in tokens]

    def sequence(name: str) -> list[dict[str, Any]]:
        return [*special(prefix), {"Sequence": {"id": name, "type_id": 0}}, *special(suffix)]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A"),
        "pair": [*sequence("A"), *sequence("B")],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]} for token, name in names.items()},
    }


def _settings(source: Path, library: tokenizers.Tokenizer, tokens: TokenIds) -> dict[str, Any]:
    """tokenizer_config.json: no limit of length, and a padding token, without which transformers makes no batch."""
    stated = {
        **read_optional_object(source / "special_tokens_map.json"),
        **read_optional_object(source / "tokenizer_config.json"),
    }
    special = {key: stated[key] for key in SPECIAL_TOKENS if stated.get(key) is not None}
    for key, token in (("eos_token", tokens.eos), ("bos_token", tokens.bos), ("pad_token", tokens.pad)):
        name = None if token is None else library.id_to_token(token)
        if name is not None:
            special[key] = name
    padding = next((special[key] for key in ("pad_token", "eos_token", "unk_token") if key in special), None)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        **({} if padding is None else {"pad_token": padding}),
        "model_max_length": 10**30,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
