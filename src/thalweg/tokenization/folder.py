"""A checkpoint folder → its tokenizer."""

import importlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import tokenizers

from thalweg.errors import CheckpointError, MissingExtraError
from thalweg.storage.untrusted_json import check_size, read_json
from thalweg.tokenization.backend import Backend, SpecialTokens
from thalweg.tokenization.library import LibraryBackend
from thalweg.tokenization.library_errors import library_errors
from thalweg.tokenization.world import WorldBackend, read_vocabulary

# What transformers reads to build a tokenizer without a tokenizer.json. config.json is left out on purpose: from its
# model type alone transformers takes GPT-NeoX's class for a Mamba2 folder, whatever the vocabulary is.
_VOCABULARY_FILES = ("vocab.json", "merges.txt", "vocab.txt")
_SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_WORLD_VOCABULARY = "rwkv_vocab_*.txt"
_SENTENCEPIECE_SAMPLE = "It's a  test: 12 naïve cafés\n\n日本語 «ok» 😀 x"


def load_backend(folder: Path, special_tokens: SpecialTokens = "token") -> Backend:
    """The tokenizer of `folder` as its files describe it, with the literals of its special tokens read as told.

    A vocabulary of the RWKV models means their own tokenizer, whatever Python code and settings lie beside it. Else
    tokenizer.json is read as it is. A sentencepiece model (also Mistral's tokenizer.model.v3) or vocabulary files that
    name their `tokenizer_class` are converted by transformers; code from the folder is never run.
    Raises CheckpointError or MissingExtraError.
    """
    vocabularies = sorted(folder.glob(_WORLD_VOCABULARY))
    if len(vocabularies) > 1:
        names = ", ".join(file.name for file in vocabularies)
        raise CheckpointError(f"{folder} holds several RWKV vocabularies ({names}); leave the model's own one there")
    if vocabularies:
        return WorldBackend(read_vocabulary(vocabularies[0]))
    return LibraryBackend(_load_library(folder), special_tokens)


def _load_library(folder: Path) -> tokenizers.Tokenizer:
    file = folder / "tokenizer.json"
    if file.is_file():
        check_size(file)
        with library_errors(
            CheckpointError, f"{file} is no tokenizer that tokenizers {tokenizers.__version__} can read"
        ):
            return tokenizers.Tokenizer.from_file(str(file))
    models = sorted([*folder.glob("tokenizer.model*"), *folder.glob("*.model")])
    if models:
        return _from_sentencepiece(folder, models[0])
    if any((folder / name).is_file() for name in _VOCABULARY_FILES):
        return _from_vocabulary(folder)
    models_tried = ("tokenizer.json", "tokenizer.model", "tokenizer.model.v3", "*.model")
    tried = ", ".join((*models_tried, *_VOCABULARY_FILES, _WORLD_VOCABULARY))
    raise CheckpointError(
        f"{folder} holds no tokenizer (looked for {tried}); copy the model's tokenizer.json there, or the "
        "rwkv_vocab_v20230424.txt of an RWKV model"
    )


def _from_sentencepiece(folder: Path, model: Path) -> tokenizers.Tokenizer:
    sentencepiece = _import("sentencepiece")
    _import("google.protobuf")
    settings = {"tokenizer_class": "LlamaTokenizer", **_settings(folder)}  # Mistral's own format has no settings
    name = "tokenizer.model" if model.name.startswith("tokenizer.model") else model.name
    backend = _convert(folder, {name: model}, settings)
    try:
        expected = sentencepiece.SentencePieceProcessor(model_file=str(model)).encode(_SENTENCEPIECE_SAMPLE)
    except Exception as error:
        raise CheckpointError(f"{model} is not a sentencepiece model: {error}") from error
    ids = backend.encode(_SENTENCEPIECE_SAMPLE, add_special_tokens=False).ids
    if ids != expected:
        raise CheckpointError(
            f"{model} converted as {settings['tokenizer_class']} gives the ids {ids[:8]}… where sentencepiece gives "
            f"{expected[:8]}…; put the model's tokenizer.json into the folder"
        )
    return backend


def _from_vocabulary(folder: Path) -> tokenizers.Tokenizer:
    settings = _settings(folder)
    if "tokenizer_class" not in settings:
        raise CheckpointError(
            f"{folder} holds a vocabulary but no tokenizer.json, and no tokenizer_config.json with a tokenizer_class "
            "that says how to use it; put the model's tokenizer.json into the folder"
        )
    files = {name: folder / name for name in _VOCABULARY_FILES if (folder / name).is_file()}
    return _convert(folder, files, settings)


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    settings = read_json(file)
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file} is not a JSON object")
    return {key: value for key, value in settings.items() if key != "auto_map"}  # that names code of the folder


def _convert(folder: Path, files: dict[str, Path], settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """What transformers makes of `files` (file name → source) and `settings`."""
    transformers = _import("transformers")
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for target, source in files.items():
            shutil.copyfile(source, copy / target)
        for target in _SETTINGS_FILES[1:]:
            if (folder / target).is_file():
                shutil.copyfile(folder / target, copy / target)
        (copy / _SETTINGS_FILES[0]).write_text(json.dumps(settings), encoding="utf-8")
        try:
            converted = transformers.AutoTokenizer.from_pretrained(
                str(copy), use_fast=True, trust_remote_code=False, local_files_only=True
            )
            backend = converted.backend_tokenizer
        except Exception as error:
            raise CheckpointError(
                f"{folder} has no tokenizer.json, and transformers cannot convert {sorted(files)} as "
                f"{settings['tokenizer_class']}: {error}"
            ) from error
    if not isinstance(backend, tokenizers.Tokenizer):
        raise CheckpointError(f"{folder} has no tokenizer.json, and {type(converted).__name__} has no fast form")
    return backend


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            "a folder without tokenizer.json needs more packages: pip install transformers sentencepiece protobuf"
        ) from error
