"""The published models by id: transformers Mamba2 weights, a model type and code of their own, a custom first module.

Tiny checkpoints of that layout lie in a hub cache as a download leaves them; no code of theirs may run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

import thalweg
from thalweg.cli.app import app
from thalweg.integrations.sentence_transformers import load

from ..checkpoints.formats import (
    WORDS,
    mistral_config,
    tiny_config,
    write_mamba_ssm,
    write_mistral,
    write_tokenizer,
    write_transformers,
)
from ..checkpoints.formats_rwkv7 import tiny_tensors, write_fla, write_pth, write_world_vocabulary
from ..checkpoints.formats_xlstm import tiny_xlstm_config, write_xlstm

COMMIT = "c" * 40
INSTRUCTION = "Instruct: Given a query, retrieve documents that answer the query\nQuery: "
TEXTS = ["the river runs", "", "along its thalweg down to the sea " * 30, "sea"]
PUBLISHED = ["dynatrace-oss/llama-embed-mamba2-7b", "dynatrace-oss/llama-embed-mamba2-1.3b"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def _repository(cache: Path, name: str) -> Path:
    """The snapshot folder of a repository whose main branch was downloaded."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    return repository / "snapshots" / COMMIT


def _write_published(folder: Path, witness: Path, *, sharded: bool) -> Any:
    """The layout of the published models; its Python files write `witness` when they run."""
    oracle = write_transformers(
        folder,
        tiny_config(),
        prefix=False,
        sharded=sharded,
        dtype=torch.bfloat16,
        extra={
            "model_type": "embed_mamba2",
            "architectures": ["EmbedMamba2Model"],
            "auto_map": {
                "AutoConfig": "configuration_embed_mamba2.EmbedMamba2Config",
                "AutoModel": "modeling_embed_mamba2.EmbedMamba2Model",
            },
            "torch_dtype": "bfloat16",
            "dtype": None,
        },
    )
    write_tokenizer(folder)
    stock = "sentence_transformers.models."
    modules = [("", "modeling_embed_mamba2.Mamba2Transformer"), ("1_Pooling", stock + "Pooling")]
    modules.append(("2_Normalize", stock + "Normalize"))
    files: dict[str, Any] = {
        "modules.json": [
            {
                "idx": i,
                "name": str(i),
                "path": path,
                "type": kind,
                **({"kwargs": ["vertical_chunk_size"]} if not i else {}),
            }
            for i, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": 32,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_lasttoken": True,
            "include_prompt": True,
        },
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": "5.1.0", "transformers": "4.56.0", "pytorch": "2.8.0"},
            "model_type": "SentenceTransformer",
            "prompts": {"query": INSTRUCTION, "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    for name in ("configuration_embed_mamba2.py", "modeling_embed_mamba2.py"):
        (folder / name).write_text(f"from pathlib import Path\nPath({str(witness)!r}).touch()\n")
    return oracle


def _expected(oracle: Any, text: str) -> np.ndarray:
    """The normalised hidden vector of EOS, by transformers."""
    words = re.findall(r"\w+|[^\w\s]+", text)
    ids = [*(WORDS.index(word) if word in WORDS else 0 for word in words), WORDS.index("</s>")]
    with torch.no_grad():
        hidden = oracle.backbone(torch.tensor([ids])).last_hidden_state[0, -1]
    return F.normalize(hidden, dim=0).numpy()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_models(name: str, cache: Path, tmp_path: Path) -> None:
    witness = tmp_path / "code ran"
    oracle = _write_published(_repository(cache, name), witness, sharded=name.endswith("7b"))
    model = thalweg.load(name)
    assert (model.family, model.format, model.notice) == ("mamba2", "mamba2/transformers", None)
    assert (model.embedding_config.pooling, model.embedding_config.normalize, model.embedding_config.append_eos) == (
        "last",
        True,
        True,
    )
    assert model.embedding_config.max_seq_length == 512  # recorded; texts longer than that are read whole
    vectors = model.encode(TEXTS, vertical_chunk_size=7)
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert np.abs(vector - _expected(oracle, text)).max() <= 1e-5
    query = model.encode_query("the river runs")
    assert np.abs(query - _expected(oracle, INSTRUCTION + "the river runs")).max() <= 1e-5
    assert np.array_equal(model.encode_document("sea"), model.encode("sea"))
    assert not witness.exists()


def test_the_published_models_in_sentence_transformers(cache: Path, tmp_path: Path) -> None:
    """By id, run by us, without their code; and written to a folder that any sentence-transformers opens."""
    witness, name = tmp_path / "code ran", PUBLISHED[1]
    oracle = _write_published(_repository(cache, name), witness, sharded=False)
    model = load(name, device="cpu")
    assert model.prompts == {"query": INSTRUCTION, "document": ""}
    vectors = model.encode(TEXTS, vertical_chunk_size=512)
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert np.abs(vector - _expected(oracle, text)).max() <= 1e-5
    query = model.encode_query(TEXTS[0])
    assert np.abs(query - _expected(oracle, INSTRUCTION + TEXTS[0])).max() <= 1e-5
    done = CliRunner().invoke(app, ["export", name, str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert f"from `{name}`" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "modeling_embed_mamba2.py").exists()
    assert np.abs(thalweg.load(tmp_path / "out").encode(TEXTS) - vectors).max() <= 1e-5
    assert not witness.exists()


RAW = {
    "state-spaces/mamba2-130m": lambda folder: write_mamba_ssm(folder, tiny_config()),
    "mistralai/Mamba-Codestral-7B-v0.1": lambda folder: write_mistral(folder, mistral_config()),
    "fla-hub/rwkv7-0.1B-g1": lambda folder: write_fla(folder, tiny_tensors(vocab_size=300)),
    "BlinkDL/rwkv7-g1": lambda folder: write_pth(folder, tiny_tensors(vocab_size=300)),
    "NX-AI/xLSTM-7b": lambda folder: write_xlstm(folder, tiny_xlstm_config(bos_token_id=1), published=True),
}


@pytest.mark.parametrize("name", RAW)
def test_raw_language_models_say_what_is_assumed(
    name: str, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _repository(cache, name)
    RAW[name](folder)
    write_world_vocabulary(folder) if "rwkv" in name else write_tokenizer(folder)
    (folder / "modeling_any.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'code ran')!r}).touch()\n")
    for model in (thalweg.load(name), load(name, device="cpu")[0].embedder):
        ours = [record.getMessage() for record in caplog.records if record.name == "thalweg"]
        assert ours[-1] == model.notice
        assert model.notice == (
            f"{name} is a language model that was not tuned for embeddings: "
            "using last-token pooling, an appended EOS and no prompt"
        )
        vectors = model.encode(TEXTS)
        assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() <= 1e-5
        assert model.embedding_config.untuned
    done = CliRunner().invoke(app, ["info", name])
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "code ran").exists()
