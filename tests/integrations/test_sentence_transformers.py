"""`SentenceTransformer` with our module: the vectors of `Embedder`, whatever the arguments, and saved folders."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings, truncate_embeddings

import thalweg
from thalweg import families
from thalweg.engine.states import nbytes
from thalweg.errors import InvalidInputError, TokenizationError
from thalweg.integrations.sentence_transformers import Pooling, ThalwegModule, from_embedder, load

from ..corpus.tiny import make_text, write_model
from ..models.registry import FAMILIES
from .recurrent import write_folder
from .sentence_transformers_elsewhere import TEXTS as FEW

ROOT = Path(__file__).parent.parent.parent
RELEASE_5 = ROOT / ".venv" / "sentence-transformers-5"
PROMPTS = {"query": "question: ", "document": "text: ", "other": "naïve "}
TEXTS = ["the river runs", "", *(make_text(n, seed=n) for n in (1, 700, 30, 5, 90)), "swans — and an emoji 🦢"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as `thalweg export` writes it."""
    path = tmp_path_factory.mktemp("models")
    thalweg.load(write_model(path / "tiny", pooling="last", prompts=PROMPTS)).save(path / "exported")
    return path / "exported"


@pytest.fixture(scope="module")
def embedder(folder: Path) -> thalweg.Embedder:
    return thalweg.load(folder)


@pytest.fixture(scope="module")
def shared(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


@pytest.fixture
def model(shared: SentenceTransformer) -> Iterator[SentenceTransformer]:
    yield shared
    shared.max_seq_length = None


def close(a: Any, b: Any) -> bool:
    return bool(np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)).max() <= 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 1000])
@pytest.mark.parametrize(
    "schedule",
    [{}, {"vertical_chunk_size": 1, "max_tokens_per_step": 50, "max_in_flight": 3}, {"vertical_chunk_size": 512}],
    ids=str,
)
def test_the_vectors_of_the_embedder(
    model: SentenceTransformer, embedder: thalweg.Embedder, schedule: dict[str, int], batch_size: int
) -> None:
    vectors = model.encode(TEXTS, batch_size=batch_size, **schedule)
    assert vectors.dtype == np.float32
    assert close(vectors, embedder.encode(TEXTS))


@pytest.mark.slow
def test_a_long_text_beside_short_ones_is_neither_cut_nor_padded(
    model: SentenceTransformer, embedder: thalweg.Embedder
) -> None:
    texts = ["a", make_text(160_000), *TEXTS]
    features = model.preprocess(texts)
    n_tokens = sum(len(ids) for ids in embedder.tokenize(texts))
    assert n_tokens > 200_000
    assert features["input_ids"].shape == (1, n_tokens)
    assert close(model.encode(texts[:3], vertical_chunk_size=512), embedder.encode(texts[:3]))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "source", family)
    source = thalweg.load(tmp_path / "source")
    source.save(tmp_path / "exported")
    expected = source.encode(TEXTS)
    for model in (
        load(tmp_path / "source", device="cpu"),
        SentenceTransformer(str(tmp_path / "exported"), trust_remote_code=True, device="cpu"),
    ):
        assert close(model.encode(TEXTS, vertical_chunk_size=64), expected)
    assert close(thalweg.load(tmp_path / "exported").encode(TEXTS), expected)


def test_prompts(model: SentenceTransformer, embedder: thalweg.Embedder) -> None:
    assert model.prompts == PROMPTS
    for arguments in ({"prompt_name": "other"}, {"prompt": "any text "}, {"prompt": ""}):
        assert close(model.encode(TEXTS, **arguments), embedder.encode(TEXTS, **arguments))
    assert close(model.encode_query(TEXTS), embedder.encode_query(TEXTS))
    assert close(model.encode_document(TEXTS), embedder.encode_document(TEXTS))
    assert not close(model.encode_query(TEXTS), model.encode_document(TEXTS))
    with pytest.raises(ValueError, match="'nonsense' not found"):
        model.encode(TEXTS, prompt_name="nonsense")


def test_shapes_and_types(model: SentenceTransformer, embedder: thalweg.Embedder) -> None:
    vectors = embedder.encode(TEXTS)
    assert model.get_embedding_dimension() == 32
    assert close(model.encode(TEXTS[0]), vectors[0])
    tensor = model.encode(TEXTS, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert close(tensor, vectors)
    rows = model.encode(TEXTS, convert_to_numpy=False)
    assert isinstance(rows, list)
    assert close(torch.stack(rows), vectors)
    part = model.encode(TEXTS, truncate_dim=8)
    assert close(part, truncate_embeddings(torch.from_numpy(vectors), 8))
    unit = model.encode(TEXTS, truncate_dim=8, normalize_embeddings=True)
    assert close(unit, embedder.encode(TEXTS, truncate_dim=8))
    assert len(model.encode([])) == 0
    assert close(model.similarity(vectors, vectors), embedder.similarity(vectors, vectors))


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precisions(model: SentenceTransformer, precision: Any) -> None:
    expected = quantize_embeddings(model.encode(TEXTS), precision=precision)
    actual = model.encode(TEXTS, precision=precision)
    assert actual.dtype == expected.dtype
    assert np.array_equal(actual, expected)


def test_token_vectors_are_made_when_asked_for(model: SentenceTransformer, embedder: thalweg.Embedder) -> None:
    tokens = model.encode(TEXTS, output_value="token_embeddings")
    raw = embedder.encode(TEXTS, normalize_embeddings=False)
    for rows, ids, vector in zip(tokens, embedder.tokenize(TEXTS), raw, strict=True):
        assert rows.shape == (len(ids), 32)
        assert close(rows[-1], vector)
    whole = model.encode(TEXTS[:2], output_value=None)
    assert [close(item["sentence_embedding"], vector) for item, vector in zip(whole, raw, strict=False)]


@pytest.mark.subprocess
def test_several_processes(folder: Path, model: SentenceTransformer, embedder: thalweg.Embedder) -> None:
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        vectors = model.encode(TEXTS * 3, pool=pool, chunk_size=5, vertical_chunk_size=100, prompt_name="query")
    finally:
        model.stop_multi_process_pool(pool)
    assert close(vectors, embedder.encode_query(TEXTS * 3))


def test_wrong_arguments(model: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match=r"vertical_chunk_sise.*vertical_chunk_size"):
        model.encode(TEXTS, vertical_chunk_sise=512)
    with pytest.raises(InvalidInputError, match="vertical_chunk_size must be at least 1, got 0"):
        model.encode(TEXTS, vertical_chunk_size=0)
    with pytest.raises(InvalidInputError, match="text 0 must be str, not tuple"):
        model.encode([("a", "pair")])
    with pytest.raises(TokenizationError, match="surrogate"):
        model.encode(["\ud800"])
    with pytest.raises(InvalidInputError, match="'padding' mean nothing here"):
        model.encode(TEXTS, processing_kwargs={"text": {"padding": True}})


def test_nothing_is_cut_silently(
    model: SentenceTransformer, embedder: thalweg.Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    assert model.max_seq_length is None
    expected = embedder.encode(TEXTS, max_length=20)
    caplog.clear()
    assert close(model.encode(TEXTS, processing_kwargs={"text": {"max_length": 20, "truncation": True}}), expected)
    assert "max_seq_length=20 cut 3 of 8 texts" in caplog.text
    model.max_seq_length = 20
    assert close(model.encode(TEXTS), expected)
    model.max_seq_length = None
    assert close(model.encode(TEXTS), embedder.encode(TEXTS))


def test_a_recorded_length_is_not_applied(folder: Path, tmp_path: Path, embedder: thalweg.Embedder) -> None:
    (tmp_path / "model").mkdir()
    for path in folder.rglob("*"):
        if path.is_file():
            target = tmp_path / "model" / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    (tmp_path / "model" / "sentence_bert_config.json").write_text('{"max_seq_length": 10}')
    model = SentenceTransformer(str(tmp_path / "model"), trust_remote_code=True, device="cpu")
    assert model.max_seq_length is None
    assert close(model.encode(TEXTS), embedder.encode(TEXTS))
    model.save_pretrained(str(tmp_path / "again"))
    assert json.loads((tmp_path / "again" / "sentence_bert_config.json").read_text())["max_seq_length"] == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saved_and_loaded_again(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu").to(dtype)
    assert model[0].embedder.dtype == dtype
    vectors = model.encode(TEXTS, prompt_name="query")
    model.save_pretrained(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    assert again[0].embedder.dtype == dtype
    assert np.array_equal(again.encode(TEXTS, prompt_name="query"), vectors)
    ours = thalweg.load(tmp_path / "saved", dtype=dtype)
    assert (ours.embedding_config, ours.weights_dtype) == (model[0].embedder.embedding_config, dtype)
    # Packed otherwise, and so rounded otherwise.
    difference = np.abs(ours.encode(TEXTS, prompt_name="query") - vectors).max()
    assert difference <= (1e-5 if dtype == torch.float32 else 0.02)
    again.save_pretrained(str(tmp_path / "saved"))  # over the file that its weights are mapped from
    assert np.array_equal(again.encode(TEXTS, prompt_name="query"), vectors)


def test_dtype_and_arguments_for_transformers(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = SentenceTransformer(
        str(folder),
        trust_remote_code=True,
        device="cpu",
        model_kwargs={"dtype": "bfloat16", "attn_implementation": "sdpa"},
        processor_kwargs={"padding_side": "left"},
    )
    assert model.dtype == torch.bfloat16
    assert "mean nothing here: attn_implementation, padding_side" in caplog.text
    with pytest.raises(InvalidInputError, match="backend must be 'torch', not 'onnx'"):
        SentenceTransformer(str(folder), trust_remote_code=True, backend="onnx")


def test_from_an_embedder(tmp_path: Path) -> None:
    """Settings come along, also those that no file of sentence-transformers knows; its saved form is read by both."""
    write_model(tmp_path / "tiny", pooling="mean", normalize=False, prompts=PROMPTS)
    embedder = thalweg.load(tmp_path / "tiny")
    model = from_embedder(embedder, truncate_dim=16, default_prompt_name="document")
    assert [type(module) for module in model] == [ThalwegModule, Pooling]
    expected = embedder.encode_document(TEXTS)[:, :16]
    assert close(model.encode(TEXTS), expected)
    assert close(copy.deepcopy(model).encode(TEXTS), expected)
    model.save_pretrained(str(tmp_path / "saved"))
    kinds = [module["type"].rpartition(".")[2] for module in json.loads((tmp_path / "saved/modules.json").read_text())]
    assert kinds == ["ThalwegModule", "Pooling"]
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    assert close(again.encode(TEXTS), expected)
    assert close(thalweg.load(tmp_path / "saved").encode(TEXTS, prompt_name="document")[:, :16], expected)


def test_a_prompt_that_the_mean_leaves_out_is_refused(tmp_path: Path) -> None:
    model = load(write_model(tmp_path / "tiny", pooling="mean"), device="cpu")
    model.set_pooling_include_prompt(False)
    assert close(model.encode(TEXTS), load(tmp_path / "tiny", device="cpu").encode(TEXTS))
    with pytest.raises(InvalidInputError, match="include_prompt=false"):
        model.encode(TEXTS, prompt="question: ")


def test_our_pooling_after_another_model() -> None:
    with pytest.raises(InvalidInputError, match="follows thalweg's module only"):
        Pooling(32).forward({"token_embeddings": torch.zeros(1, 2, 32), "attention_mask": torch.ones(1, 2)})


def test_states_are_held_for_long_texts_only(model: SentenceTransformer) -> None:
    """What a text of any length holds between steps: one state, and the ids."""
    small, large = (model.preprocess([make_text(n)])["input_ids"].nbytes for n in (500, 5000))
    assert 9.5 < large / small < 10.5
    assert nbytes(model[0].model.init_state(1)) < 10_000


def _elsewhere(folder: Path, out: Path, *flags: str, release: Path | None = None) -> list[str]:
    """Run `sentence_transformers_elsewhere.py`; the lines that name release and module."""
    script = Path(__file__).with_name("sentence_transformers_elsewhere.py")
    environment = {**os.environ, "PYTHONPATH": str(release) if release else ""}
    done = subprocess.run(
        [sys.executable, script, folder, out, *flags], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if re.match(r"\d+\.\d+", line)]


@pytest.mark.parametrize(
    "family", [variant for family in families.FAMILIES if family.in_transformers for variant in family.tiny]
)
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_stock_modules_give_the_same_vectors(family: str, pooling: Any, tmp_path: Path) -> None:
    write_folder(tmp_path / "source", family, pooling=pooling)
    thalweg.load(tmp_path / "source").save(tmp_path / "stock", format="stock")
    texts = [text for text in TEXTS if len(text) < 1000]
    stock = SentenceTransformer(str(tmp_path / "stock"), device="cpu")
    assert type(stock[0]).__module__.startswith("sentence_transformers.")
    assert close(stock.encode(texts), thalweg.load(tmp_path / "stock").encode(texts))
    # Saved by sentence-transformers alone, which drops what only thalweg knows.
    stock.save_pretrained(str(tmp_path / "saved"))
    assert close(stock.encode(texts), thalweg.load(tmp_path / "saved").encode(texts))


@pytest.mark.subprocess
def test_without_thalweg_the_stock_modules_open_the_same_folder(
    folder: Path, embedder: thalweg.Embedder, tmp_path: Path
) -> None:
    (said,) = _elsewhere(folder, tmp_path / "out")
    assert "sentence_transformers.base.modules.transformer" in said
    assert close(np.load(tmp_path / "out" / "without.npy"), embedder.encode(FEW))
    assert close(thalweg.load(tmp_path / "out" / "without").encode(FEW), embedder.encode(FEW))
    again = SentenceTransformer(str(tmp_path / "out" / "without"), trust_remote_code=True, device="cpu")
    assert isinstance(again[0], ThalwegModule)
    assert close(again.encode(FEW), embedder.encode(FEW))


@pytest.mark.subprocess
@pytest.mark.skipif(
    not (RELEASE_5 / "sentence_transformers").is_dir(),
    reason="sentence-transformers 5 is not in .venv: `make test` puts it there",
)
def test_release_5(folder: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    """The newest 5.x: the stock modules without thalweg; then ours, with most arguments of `encode` and a training."""
    stock, ours = _elsewhere(folder, tmp_path / "out", "--and-with-thalweg", release=RELEASE_5)
    assert stock.startswith("5.")
    assert stock.endswith("sentence_transformers.base.modules.transformer")
    assert ours.endswith("thalweg.integrations.sentence_transformers.module")
    for kind in ("with", "without"):
        assert close(np.load(tmp_path / "out" / f"{kind}.npy"), embedder.encode(FEW))
        assert close(thalweg.load(tmp_path / "out" / kind).encode(FEW), embedder.encode(FEW))


def test_the_flag_is_asked_for(folder: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(folder), device="cpu")


@pytest.mark.subprocess
def test_without_the_extra_the_pip_command_is_named() -> None:
    code = (
        "import sys; sys.modules['sentence_transformers'] = None\n"
        "try: import thalweg.integrations.sentence_transformers\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingExtraError")
    assert "pip install 'thalweg[sentence-transformers]'" in done.stdout


@pytest.fixture(autouse=True)
def log_of_thalweg(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="thalweg")
