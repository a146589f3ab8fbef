"""RWKV-7 checkpoints: configs from shapes, single files, embedding heads, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import thalweg
from thalweg.checkpoints import EmbeddingConfig, load_checkpoint, resolve, save_checkpoint
from thalweg.checkpoints.embedding import save_embedding_config
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.models.rwkv7 import RWKV7Config
from thalweg.packing import Packing

from .formats_rwkv7 import reference, tiny_tensors, write_emb, write_fla, write_pth, write_world_vocabulary

CONFIG = RWKV7Config(
    vocab_size=96, d_model=32, n_layers=3, head_dim=8, d_value=32, d_ffn=64, rank_w=4, rank_a=5, rank_v=6, rank_g=7
)


def test_a_pth_tells_its_config_by_its_shapes(tmp_path: Path) -> None:
    path = write_pth(tmp_path, tiny_tensors())
    for source in (tmp_path, path, str(path)):
        checkpoint = load_checkpoint(source)
        assert checkpoint.config == CONFIG
        assert (checkpoint.format, checkpoint.eos_token_id, checkpoint.folder) == ("rwkv7/pth", 0, tmp_path)
        assert checkpoint.embedding.untuned


def test_one_layer_has_no_value_rank(tmp_path: Path) -> None:
    write_pth(tmp_path, tiny_tensors(n_layers=1))
    assert load_checkpoint(tmp_path).config.n_layers == 1


def test_of_several_pth_the_one_that_is_named(tmp_path: Path) -> None:
    write_world_vocabulary(tmp_path)
    one = write_pth(tmp_path, tiny_tensors(vocab_size=300), "one.pth")
    two = write_pth(tmp_path, tiny_tensors(vocab_size=300, seed=1), "two.pth")
    with pytest.raises(CheckpointError, match=r"nor one \*\.pth \(of several, give the path of one\)"):
        load_checkpoint(tmp_path)
    assert resolve(one) == one
    a, b = thalweg.load(one), thalweg.load(two)
    assert a.fingerprint != b.fingerprint
    assert np.abs(a.encode("the river") - b.encode("the river")).max() > 0.01
    with pytest.raises(InvalidInputError, match="no meaning for the local file"):
        resolve(one, revision="main")


def test_a_pth_without_its_vocabulary_says_which_file_to_add(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no tokenizer .*rwkv_vocab_v20230424\.txt"):
        thalweg.load(write_pth(tmp_path, tiny_tensors()))


@pytest.mark.parametrize("stacked", [False, True])
def test_fla_gives_the_same_model_as_its_pth(stacked: bool, tmp_path: Path) -> None:
    tensors = tiny_tensors(d_model=128, head_dim=64)
    write_pth(tmp_path / "pth", tensors)
    write_fla(tmp_path / "fla", tensors, stacked=stacked)
    pth, fla = load_checkpoint(tmp_path / "pth"), load_checkpoint(tmp_path / "fla")
    assert fla.config == pth.config
    assert fla.format == "rwkv7/fla"
    theirs = fla.model.state_dict()
    assert theirs.keys() == pth.model.state_dict().keys()
    for name, tensor in pth.model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def test_save_and_load_again(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_pth(tmp_path, tiny_tensors(d_model=128, head_dim=64)))
    save_checkpoint(checkpoint.model, tmp_path / "out", tokenizer_folder=None, embedding=None, dtype=torch.float32)
    again = load_checkpoint(tmp_path / "out")
    assert again.config == checkpoint.config
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, again.model.get_parameter(name)), name
    tiny = load_checkpoint(write_pth(tmp_path / "tiny", tiny_tensors()))
    with pytest.raises(InvalidInputError, match="implies head_norm_eps = head_dim × norm_eps = 8 × 1e-05, but it is"):
        save_checkpoint(tiny.model, tmp_path / "no", tokenizer_folder=None, embedding=None, dtype=torch.float32)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"attn": {"layers": [1]}}, "attn names attention layers"),
        ({"hidden_act": "relu"}, 'hidden_act is "relu", which is not supported'),
        ({"value_dim": [32, 32, 64]}, r"layers of different width are not supported, but is \[32, 32, 64\]"),
        ({"head_dim": 7}, "head_dim=7 does not divide d_model=32"),
        ({"gate_low_rank_dim": 8}, r"g_lora.lora.0.weight is \[7, 32\] in the file but should be \[8, 32\]"),
    ],
    ids=str,
)
def test_fla_refusals_quote_the_value(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_fla(tmp_path, tiny_tensors(), config=config)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("blocks.1.att.x_k", None, r"1 missing: layers.1.att.mix.k"),
        ("blocks.1.att.s1", torch.ones(3), r"1 left over: blocks.1.att.s1"),
        ("blocks.1.att.x_k", torch.ones(1, 2, 32), r"x_k is \[1, 2, 32\] in the file but should be \[1, 1, 32\]"),
        ("blocks.1.att.w1", torch.ones(4, 32), r"w1 is \[4, 32\] in the file but should be \[32, 4\]"),
        ("blocks.0.att.w1", None, "blocks.0.att.w1 should be a tensor of 2 axes .* but is missing"),
        ("blocks.0.att.r_k", torch.ones(4, 4), r"blocks.0.att.r_k is \[4, 4\], but the width is 32"),
        ("emb.weight", None, "of no known format: it holds blocks.0"),
    ],
    ids=str,
)
def test_pth_refusals_name_the_tensor(name: str, tensor: torch.Tensor | None, message: str, tmp_path: Path) -> None:
    tensors = tiny_tensors()
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(write_pth(tmp_path, tensors))


@pytest.fixture(scope="module")
def embedding_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("emb")
    write_world_vocabulary(folder)
    return folder, write_emb(folder, tiny_tensors(vocab_size=65536))


def peer_embedding(stored: dict[str, torch.Tensor], ids: list[int], head: str) -> torch.Tensor:
    """What rwkv-emb 0.2.6 computes (on CUDA in float16 only, so it cannot run here), in float64."""
    tensors = {name.removeprefix("rwkv."): tensor for name, tensor in stored.items() if name.startswith("rwkv.")}
    tokens = torch.tensor(ids)
    x = reference(tensors, tokens)[tokens == 65535].mean(0)
    weights = {name.removeprefix(f"head.{head}_head."): tensor.double() for name, tensor in stored.items()}
    y = weights["fc2.weight"] @ (weights["fc1.weight"] @ x).relu() + x
    return F.layer_norm(y, y.shape, weights["norm.weight"], weights["norm.bias"])


@pytest.mark.parametrize("head", [None, "sts", "cls"])
def test_rwkv_emb_appends_one_eos_and_applies_the_head(
    head: str | None, embedding_model: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    folder, stored = embedding_model
    model = thalweg.load(folder, head=head)
    assert (model.format, model.heads, model.head) == ("rwkv7/rwkv-emb", ("retr", "sts", "cls"), head or "retr")
    assert model.notice is None
    text = "the river runs along"
    ids = model.tokenizer.encode_batch([text])[0].tolist()
    assert ids.count(65535) == 1
    assert ids[-1] == 65535
    want = peer_embedding(stored, ids, head or "retr")
    got = torch.from_numpy(model.encode(text, normalize_embeddings=False))
    assert ((got - want).abs().max() / want.abs().max()).item() <= 2e-5
    pieces = model.encode(
        [text, text * 9], normalize_embeddings=False, vertical_chunk_size=1, max_tokens_per_step=5, max_in_flight=2
    )
    torch.testing.assert_close(torch.from_numpy(pieces[0]), got, rtol=0, atol=1e-5)


def test_several_eos_are_averaged(tmp_path: Path) -> None:
    """Set in the folder, `n_eos` end tokens stand behind every text; steps may cut between them."""
    write_world_vocabulary(tmp_path)
    stored = write_emb(tmp_path, tiny_tensors(vocab_size=65536))
    save = EmbeddingConfig(pooling="last", n_eos=3, head="sts")
    save_embedding_config(tmp_path, save, 32)
    model = thalweg.load(tmp_path)
    assert model.head == "sts"
    ids = model.tokenizer.encode_batch(["the river"])[0].tolist()
    assert ids[-4] != 65535
    assert ids[-3:] == [65535] * 3
    want = peer_embedding(stored, ids, "sts")
    for bounds in (
        {},
        {"vertical_chunk_size": 1},
        {"vertical_chunk_size": 4, "max_tokens_per_step": 5, "max_in_flight": 1},
    ):
        got = torch.from_numpy(model.encode("the river", normalize_embeddings=False, **bounds))
        assert ((got - want).abs().max() / want.abs().max()).item() <= 2e-5
    sections = list(model.encode_stream(["the river runs " * 5], section_size=7, normalize_embeddings=False))
    whole = model.encode("the river runs " * 5, normalize_embeddings=False)
    np.testing.assert_allclose(sections[-1].vector, whole, rtol=0, atol=1e-5)
    first = model.tokenizer.encode_batch(["the river runs " * 5])[0][:7].tolist()
    want = peer_embedding(stored, [*first, 65535, 65535, 65535], "sts")
    assert ((torch.from_numpy(sections[0].vector) - want).abs().max() / want.abs().max()).item() <= 2e-5


def test_heads_do_not_mix(embedding_model: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    folder, _ = embedding_model
    assert thalweg.load(folder).fingerprint != thalweg.load(folder, head="sts").fingerprint
    with pytest.raises(InvalidInputError, match="has no embedding head 'x'; its heads: 'retr', 'sts', 'cls'"):
        thalweg.load(folder, head="x")
    write_world_vocabulary(tmp_path)
    with pytest.raises(InvalidInputError, match="its heads: none"):
        thalweg.load(write_pth(tmp_path, tiny_tensors(vocab_size=300)), head="sts")


def test_a_reranker_is_refused(tmp_path: Path) -> None:
    tensors = {f"reranker.{name}": tensor for name, tensor in tiny_tensors().items()}
    with pytest.raises(CheckpointError, match=r"of no known format: it holds reranker\.blocks"):
        load_checkpoint(write_pth(tmp_path, tensors))


def test_weights_stay_in_the_files_dtype_where_asked(tmp_path: Path) -> None:
    write_pth(tmp_path, tiny_tensors(), dtype=torch.bfloat16)
    model = load_checkpoint(tmp_path, dtype="auto").model
    assert model.layers[0].att.key.weight.dtype == torch.bfloat16
    assert model.layers[0].att.lora_w.bias.dtype == torch.float32
    hidden, _ = model(torch.arange(20), Packing.whole([20]))
    assert hidden.dtype == torch.float32
