"""What a folder says about pooling, prompts and normalisation, in the spellings of all releases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thalweg.checkpoints import EmbeddingConfig, load_checkpoint, read_embedding_config, save_embedding_config
from thalweg.errors import CheckpointError, InvalidInputError

from .formats import tiny_config, write_transformers

OLD = "sentence_transformers.models."
NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}


def _write(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def _modules(*types: str, first: str = OLD + "Transformer") -> list[dict[str, Any]]:
    rest = [
        {"idx": i, "name": str(i), "path": f"{i}_{type.rpartition('.')[2]}", "type": type}
        for i, type in enumerate(types, start=1)
    ]
    return [{"idx": 0, "name": "0", "path": "", "type": first}, *rest]


LAST = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}


def test_a_plain_language_model(tmp_path: Path) -> None:
    write_transformers(tmp_path, tiny_config())
    config = load_checkpoint(tmp_path).embedding
    assert config == EmbeddingConfig(untuned=True)
    assert (config.pooling, config.normalize, config.append_eos, config.prompts) == ("last", True, True, {})


@pytest.mark.parametrize("style", ["old", "new"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (LAST, "last"),
        ({"embedding_dimension": 32, "pooling_mode": "lasttoken", "include_prompt": True}, "last"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}, "mean"),
        ({"word_embedding_dimension": 32}, "mean"),  # sentence-transformers' default
    ],
)
def test_pooling(tmp_path: Path, pooling: dict[str, Any], expected: str, normalize: bool, style: str) -> None:
    kinds = ["Pooling"] + ["Normalize"] * normalize
    types = [OLD + kind if style == "old" else NEW[kind] for kind in kinds]
    first = NEW["Transformer"] if style == "new" else OLD + "Transformer"
    _write(tmp_path, "modules.json", _modules(*types, first=first))
    _write(tmp_path, "1_Pooling/config.json", pooling)
    config = read_embedding_config(tmp_path)
    assert (config.pooling, config.normalize, config.untuned) == (expected, normalize, False)
    # Written elsewhere: an end token is meant where its vector is taken, and not for a mean.
    assert config.append_eos == (expected == "last")


def test_everything_else(tmp_path: Path) -> None:
    """The published models: a first module of the repository's own, prompts, a length that is recorded only."""
    _write(tmp_path, "modules.json", _modules(OLD + "Pooling", OLD + "Normalize", first="custom_st.Mamba2Transformer"))
    _write(tmp_path, "1_Pooling/config.json", {**LAST, "include_prompt": False})
    _write(
        tmp_path,
        "config_sentence_transformers.json",
        {
            "__version__": {"sentence_transformers": "5.1.0"},
            "prompts": {"query": "Instruct: find\nQuery: ", "document": "", "unset": None},
            "default_prompt_name": "document",
            "similarity_fn_name": "dot",
        },
    )
    _write(tmp_path, "sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": False})
    assert read_embedding_config(tmp_path) == EmbeddingConfig(
        prompts={"query": "Instruct: find\nQuery: ", "document": ""},
        default_prompt_name="document",
        similarity="dot",
        max_seq_length=512,
        include_prompt=False,
    )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", {}, "must hold a list of modules"),
        ("modules.json", [], "must hold a list of modules"),
        ("modules.json", _modules(), "expected Pooling"),
        ("modules.json", _modules(OLD + "Normalize", OLD + "Pooling"), r"found \['Normalize', 'Pooling'\]"),
        ("modules.json", _modules(OLD + "Pooling", OLD + "Dense"), r"'sentence_transformers\.models\.Dense'"),
        ("modules.json", _modules("my_code.Pooling"), r"'my_code\.Pooling' is not supported"),
        ("modules.json", [{"path": "0_Transformer", "type": "x"}], "the model lies in '0_Transformer'"),
        ("modules.json", [*_modules(), {"path": "../up", "type": OLD + "Pooling"}], r"'\.\./up' is not a folder"),
        ("modules.json", [*_modules(), {"path": "/etc", "type": OLD + "Pooling"}], "'/etc' is not a folder"),
        ("modules.json", [*_modules(), {"type": OLD + "Pooling"}], "None is not a folder"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "pooling cls is not supported"),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "pooling weightedmean is not supported"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}, r"pooling mean\+max is not supported"),
        ("1_Pooling/config.json", {"include_prompt": 1}, "include_prompt must be true or false"),
        ("1_Pooling/config.json", [], "must hold a JSON object"),
        (
            "2_Normalize/config.json",
            {"module_input_name": "token_embeddings"},
            'module_input_name is "token_embeddings"',
        ),
        ("config_sentence_transformers.json", {"prompts": {"query": 3}}, "prompts must be texts by name"),
        ("config_sentence_transformers.json", {"prompts": []}, "prompts must be an object"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default_prompt_name must be one of"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "hamming"}, "similarity must be one of cosine"),
        ("thalweg.json", {"append_eos": "yes"}, "append_eos must be true or false"),
        ("thalweg.json", {"n_eos": 0}, "n_eos must be an integer of at least 1"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length must be an integer of at least 1"),
    ],
)
def test_refused(tmp_path: Path, file: str, content: object, message: str) -> None:
    save_embedding_config(tmp_path, EmbeddingConfig(), 32)
    _write(tmp_path, file, content)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_embedding_config(tmp_path)
    assert str(tmp_path / file.split("/")[0]) in str(raised.value)


def test_missing_pooling_file(tmp_path: Path) -> None:
    _write(tmp_path, "modules.json", _modules(OLD + "Pooling"))
    with pytest.raises(CheckpointError, match=r"1_Pooling.config\.json"):
        read_embedding_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "cls"}, "pooling must be one of last, mean, but is 'cls'"),
        ({"similarity": "angle"}, "similarity must be one of"),
        ({"default_prompt_name": "query"}, r"default_prompt_name must be one of \(none defined\), but is 'query'"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        EmbeddingConfig(**changes)


@pytest.mark.parametrize(
    "config",
    [
        EmbeddingConfig(),
        EmbeddingConfig(pooling="mean", normalize=False, append_eos=True, max_seq_length=256),
        EmbeddingConfig(
            pooling="mean",
            append_eos=False,
            prompts={"query": "Für: ", "document": ""},
            default_prompt_name="query",
            similarity="euclidean",
            include_prompt=False,
        ),
    ],
)
def test_round_trip(tmp_path: Path, config: EmbeddingConfig) -> None:
    save_embedding_config(tmp_path, config, 32)
    assert read_embedding_config(tmp_path) == config


def test_what_other_readers_find(tmp_path: Path) -> None:
    """text-embeddings-inference knows only the flags, and exactly one may be set."""
    save_embedding_config(tmp_path, EmbeddingConfig(pooling="last"), 32)
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert pooling.pop("word_embedding_dimension") == 32
    assert [key for key, value in pooling.items() if value] == ["pooling_mode_lasttoken", "include_prompt"]
    assert (tmp_path / "2_Normalize" / "config.json").read_text() == "{}\n"
