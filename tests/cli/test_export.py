"""`thalweg export` and `Embedder.save`: folders that every tool opens, and what cannot be written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

import thalweg
from thalweg.assets import model_folder, module_file
from thalweg.checkpoints import EmbeddingConfig, save_embedding_config
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.families import find_family

from ..checkpoints.formats import tiny_config, write_mamba_ssm, write_tokenizer
from ..checkpoints.registry import CHECKPOINTS
from ..corpus.tiny import write_model
from .conftest import Command

TEXTS = ["the river runs", "along its thalweg down to the sea", "the"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_format(name: str, thalweg_command: Command, tmp_path: Path) -> None:
    format, write = CHECKPOINTS[name]
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write(source)
    if not any(source.glob("*vocab*")):
        write_tokenizer(source)
    done = thalweg_command("export", source, out)
    if format == "rwkv7/rwkv-emb":
        assert done.exit_code == 1
        assert "a model with embedding heads cannot be saved" in done.stderr
        assert not out.exists()
        return
    assert done.exit_code == 0, done.output
    assert "trust_remote_code=True) opens it" in done.stderr
    want = thalweg.load(source).encode(TEXTS)
    assert np.abs(thalweg.load(out).encode(TEXTS) - want).max() <= 1e-5
    model = SentenceTransformer(str(out), trust_remote_code=True, device="cpu")
    assert np.abs(model.encode(TEXTS) - want).max() <= 1e-5
    stock = thalweg_command("export", source, tmp_path / "stock", "--format", "stock")
    if not find_family(format.partition("/")[0]).in_transformers:
        assert stock.exit_code == 1
        assert f"transformers has no {format.partition('/')[0]}" in stock.stderr
        assert not (tmp_path / "stock").exists()
    else:
        assert stock.exit_code == 0, stock.output
        by_stock = SentenceTransformer(str(tmp_path / "stock"), device="cpu")
        assert np.abs(by_stock.encode(TEXTS) - want).max() <= 1e-5


def test_every_setting_comes_along(thalweg_command: Command, tmp_path: Path) -> None:
    write_mamba_ssm(tmp_path / "source", tiny_config(), dtype=torch.float16)
    write_tokenizer(tmp_path / "source")
    config = EmbeddingConfig(
        pooling="mean",
        normalize=False,
        prompts={"query": "the ", "document": ""},
        default_prompt_name="query",
        similarity="dot",
        n_eos=2,
        max_seq_length=77,
    )
    save_embedding_config(tmp_path / "source", config, 32)
    assert thalweg_command("export", tmp_path / "source", tmp_path / "out").exit_code == 0
    source, out = thalweg.load(tmp_path / "source"), thalweg.load(tmp_path / "out")
    assert out.embedding_config == config
    assert out.weights_dtype == torch.float16
    assert out.token_ids == source.token_ids
    assert np.abs(out.encode(TEXTS) - source.encode(TEXTS)).max() <= 1e-5
    stock = thalweg_command(
        "export", tmp_path / "source", tmp_path / "stock", "--format", "stock", "--dtype", "float32"
    )
    assert stock.exit_code == 0, stock.output
    theirs = SentenceTransformer(str(tmp_path / "stock"), device="cpu")
    assert theirs.prompts == config.prompts
    assert np.abs(theirs.encode(TEXTS, batch_size=2) - source.encode(TEXTS)).max() <= 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"n_eos": 2}, "the vector is a mean over 2 end tokens"), ({"head": "x"}, "has no embedding head 'x'")],
    ids=str,
)
def test_what_the_stock_modules_cannot_do(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write_model(tmp_path / "model")
    save_embedding_config(tmp_path / "model", EmbeddingConfig(**{"pooling": "last", **changes}), 32)  # type: ignore[arg-type]
    with pytest.raises((InvalidInputError, CheckpointError), match=message):
        thalweg.load(tmp_path / "model").save(tmp_path / "out", format="stock")
    assert not (tmp_path / "out").exists()


def test_a_card_that_is_no_text(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_bytes(b"---\nlicense: mit\n---\n\xff\xfe words" + b"\0" * 2**21)
    thalweg.load(tmp_path / "model").save(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in card
    assert "> \ufffd\ufffd words" in card
    assert len(card) < 2**20 + 10_000


@pytest.mark.parametrize(("dtype", "size"), [("auto", 4), ("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_dtypes(thalweg_command: Command, tmp_path: Path, dtype: str, size: int) -> None:
    write_model(tmp_path / "model")
    assert thalweg_command("export", tmp_path / "model", tmp_path / "out", "--dtype", dtype).exit_code == 0
    weights = tmp_path / "out" / "model.safetensors"
    named = "float32" if dtype == "auto" else dtype
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == named
    assert thalweg.load(tmp_path / "out").weights_dtype == getattr(torch, named)
    assert weights.stat().st_size == pytest.approx(
        size / 4 * (tmp_path / "model/model.safetensors").stat().st_size, rel=0.2
    )
    assert oct(weights.stat().st_mode) == oct((tmp_path / "out" / "config.json").stat().st_mode)


def test_the_shipped_model_is_such_a_folder(tmp_path: Path) -> None:
    shipped = thalweg.load(dtype="auto")
    shipped.save(tmp_path / "out")
    for path in model_folder().rglob("*"):
        if path.suffix in (".json", ".py") and path.name not in ("special_tokens_map.json", "tokenizer_config.json"):
            assert (tmp_path / "out" / path.relative_to(model_folder())).read_bytes() == path.read_bytes(), path.name
    assert module_file().read_text().count("thalweg.integrations.sentence_transformers") == 3
    again = thalweg.load(tmp_path / "out")
    assert np.array_equal(again.encode(TEXTS), thalweg.load().encode(TEXTS))


def test_transformers_opens_it_and_its_tokenizer_ends_texts(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    embedder = thalweg.load(tmp_path / "model")
    embedder.save(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text, ids in zip(TEXTS, embedder.tokenize(TEXTS), strict=True):
        assert tokenizer(text)["input_ids"] == ids.tolist()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    hidden = AutoModel.from_pretrained(tmp_path / "out")(**batch).last_hidden_state
    assert hidden.shape == (3, batch["input_ids"].shape[1], 32)
    assert tokenizer.model_max_length > 10**9


def test_the_card_says_what_the_model_is(thalweg_command: Command, tmp_path: Path) -> None:
    write_model(tmp_path / "model", pooling="last", prompts={"query": "question: "})
    (tmp_path / "model" / "README.md").write_text(
        "---\nlicense: cc-by-4.0\ntags:\n- x\nlanguage:\n- en\n- de\nx: y\n---\n\n# Old\n\nMade from rivers.\n",
        encoding="utf-8",
    )
    assert thalweg_command("export", tmp_path / "model", tmp_path / "out").exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: cc-by-4.0\nlanguage:\n- en\n- de\nlibrary_name: sentence-transformers\n")
    for part in ("# model\n", "mamba2", "| dimensions | 32 |", "the last token, an end token put after every text"):
        assert part in card
    for part in (
        "| prompt `query` | `'question: '` |",
        "trust_remote_code=True",
        "> Made from rivers.",
        "encode_query",
    ):
        assert part in card
    assert str(tmp_path) not in card


def test_an_existing_folder(thalweg_command: Command, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    out = tmp_path / "out"
    assert thalweg_command("export", tmp_path / "model", out).exit_code == 0
    refused = thalweg_command("export", tmp_path / "model", out)
    assert (refused.exit_code, "exists; choose another folder" in refused.stderr) == (1, True)
    assert "Traceback" not in refused.output
    assert thalweg_command("export", tmp_path / "model", out, "--overwrite").exit_code == 0
    assert thalweg_command("export", out, out, "--overwrite").exit_code == 0
    assert thalweg_command("export", tmp_path / "model", out, "--format", "onnx").exit_code == 2
