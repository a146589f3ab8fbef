"""thalweg's models as models of transformers: every family, any padding, any chunks, and the Auto classes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer

import thalweg
from tests.models.registry import FAMILIES
from thalweg import families
from thalweg.checkpoints import load_checkpoint
from thalweg.checkpoints.formats import format_to_write
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.integrations.transformers import (
    GatedDeltaNetConfig,
    Mamba2Model,
    RecurrentCache,
    RWKV7Config,
    RWKV7Model,
    RWKVWorldTokenizer,
    ThalwegModel,
    chunked_forward,
    register,
    verify,
)
from thalweg.integrations.transformers.modeling import MODELS
from thalweg.packing import Packing

from ..checkpoints.formats import tiny_config, write_mamba_ssm
from ..checkpoints.formats_rwkv7 import tiny_tensors, write_emb, write_pth
from .recurrent import TEXTS, VOCABULARY, alone, auto_classes_restored, make, padded, write_folder

LENGTHS = [13, 40, 1, 13, 21, 2]


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with auto_classes_restored():
        register(replace=True)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("auto")
    return {family: write_folder(path / family, family) for family in FAMILIES}


def wrapped(family: str) -> tuple[Any, Any]:
    """The model of `make`, and the same one for transformers."""
    stack = make(family)
    format = format_to_write(stack)
    assert format.write_config is not None
    keys = format.write_config(stack.config)
    model_class = MODELS[keys.pop("model_type")]
    assert model_class.config_class is not None
    return stack, model_class(model_class.config_class(**keys), stack=stack).eval()


def in_chunks(model: Any, ids: Tensor, mask: Tensor, size: int, *, whole_mask: bool = False) -> tuple[Tensor, Any]:
    cache, hidden = None, []
    for start in range(0, ids.shape[1], size):
        stop = min(start + size, ids.shape[1])
        output = model(
            input_ids=ids[:, start:stop],
            attention_mask=mask[:, 0 if whole_mask else start : stop],
            use_cache=True,
            cache_params=cache,
        )
        cache = output.cache_params
        hidden.append(output.last_hidden_state)
    return torch.cat(hidden, dim=1), cache


def check(hidden: Tensor, mask: Tensor, expected: list[Tensor]) -> None:
    for row, vectors in enumerate(expected):
        own = mask[row].bool()
        assert (hidden[row, own] - vectors).norm() <= 1e-5 * vectors.norm()
        assert not hidden[row, ~own].any()


@pytest.mark.parametrize("sides", [["left"], ["right"], ["left", "right", "both"]], ids="-".join)
@pytest.mark.parametrize("family", FAMILIES)
def test_batches_are_each_text_alone(family: str, sides: list[str]) -> None:
    stack, model = wrapped(family)
    ids, mask = padded(LENGTHS, sides, 44)
    expected = alone(stack, ids, mask)
    with torch.no_grad():
        for size in (1, 7, 44):
            hidden, cache = in_chunks(model, ids, mask, size)
            check(hidden, mask, expected)
            assert cache.lengths == LENGTHS
            assert cache.get_seq_length() == 44
        check(in_chunks(model, ids, mask, 9, whole_mask=True)[0], mask, expected)
        model.max_tokens_per_step = 16
        check(model(ids, mask).last_hidden_state, mask, expected)
        check(model(ids, mask, use_cache=False).last_hidden_state, mask, expected)


def test_padding_is_not_computed_and_steps_are_bounded() -> None:
    _, model = wrapped("mamba2")
    seen: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    ids, mask = padded(LENGTHS, ["left"], 44)
    model.max_tokens_per_step = 16
    with torch.no_grad():
        model(ids, mask)
    assert sum(seen) == sum(LENGTHS)
    assert max(seen) <= 16
    with torch.no_grad():
        model(ids, torch.zeros_like(mask))
    assert sum(seen) == sum(LENGTHS)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_the_embedder(family: str, pooling: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", family, pooling=pooling)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModel.from_pretrained(folder)
    assert type(model) is MODELS[model.config.model_type]
    assert not model.training
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = in_chunks(model, batch["input_ids"], batch["attention_mask"], 64)[0]
    mask = batch["attention_mask"][..., None]
    pooled = hidden[:, -1] if pooling == "last" else hidden.sum(1) / mask.sum(1)
    vectors = F.normalize(pooled, dim=-1)
    assert abs(vectors.numpy() - thalweg.load(folder).encode(TEXTS)).max() <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_forward_takes_them(family: str) -> None:
    stack, model = wrapped(family)
    ids, mask = padded(LENGTHS, ["left", "right"], 44)
    check(chunked_forward(model, ids, mask, vertical_chunk_size=8), mask, alone(stack, ids, mask))
    assert verify(model) <= 1e-5


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_texts_alone(family: str, checkpointing: bool) -> None:
    stack, model = wrapped(family)
    ids, mask = padded([5, 12], ["left"], 12)
    direction = torch.randn(12, stack.d_model, generator=torch.Generator().manual_seed(2))
    loss = torch.zeros(())
    for row, own in zip(ids, mask.bool(), strict=True):
        hidden = stack(row[own], Packing.whole([int(own.sum())]))[0]
        loss = loss + (hidden * direction[own]).sum()
    loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in stack.named_parameters()}
    stack.zero_grad()

    model.train()
    if checkpointing:
        model.activation_checkpointing_enable()
        model.max_tokens_per_step = 6
        hidden = model(ids, mask).last_hidden_state
    else:  # through the cache of a call before
        first = model(ids[:, :8], mask[:, :8], use_cache=True)
        second = model(ids[:, 8:], mask[:, 8:], cache_params=first.cache_params, use_cache=True)
        hidden = torch.cat([first.last_hidden_state, second.last_hidden_state], dim=1)
    (hidden * direction).sum().backward()
    for name, parameter in stack.named_parameters():
        scale = max(1.0, float(expected[name].norm()))
        assert (parameter.grad - expected[name]).norm() <= 1e-4 * scale, name
    assert model(ids, mask).cache_params is None


def test_reentrant_checkpoints_are_refused() -> None:
    _, model = wrapped("mamba2")
    model.train().activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(InvalidInputError, match="use_reentrant=True loses the gradients"):
        model(torch.ones((1, 4), dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_opened_again(family: str, dtype: torch.dtype, folders: dict[str, Path], tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(folders[family], dtype=dtype)
    assert model.dtype == dtype == model.config.dtype
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert again.dtype == dtype
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert load_checkpoint(tmp_path).config == load_checkpoint(folders[family]).config
    assert all(parameter.requires_grad for parameter in again.parameters())

    fresh = type(model)(model.config).to(dtype)
    wide = {name for name, tensor in fresh.state_dict().items() if tensor.dtype == torch.float32}
    assert wide == {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.float32}
    fresh.load_state_dict(transformers.modeling_utils.load_state_dict(tmp_path / "model.safetensors"))
    ids = torch.randint(VOCABULARY, (2, 9))
    with torch.no_grad():
        assert torch.equal(fresh.eval()(ids).last_hidden_state, again(ids).last_hidden_state)


@pytest.mark.parametrize(
    "family", [variant for family in families.FAMILIES if family.in_transformers for variant in family.tiny]
)
def test_transformers_own_classes_open_what_is_saved(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(folders[family])
    model.save_pretrained(tmp_path)
    stock = getattr(transformers, type(model).__name__).from_pretrained(tmp_path).eval()
    ids = torch.randint(VOCABULARY, (1, 20))
    with torch.no_grad():
        expected = stock(input_ids=ids, use_cache=False).last_hidden_state
        assert (model(ids).last_hidden_state - expected).norm() <= 1e-5 * expected.norm()


def test_adapters_are_not_saved_as_weights(tmp_path: Path) -> None:
    _, model = wrapped("mamba2")
    with pytest.raises(InvalidInputError, match=r"'lora.weight', which is no parameter"):
        model.save_pretrained(tmp_path, state_dict={"lora.weight": torch.zeros(1)})


def test_register_adds_what_lacks_and_leaves_the_rest(folders: dict[str, Path]) -> None:
    with auto_classes_restored():
        for mapping in (transformers.CONFIG_MAPPING, AutoModel._model_mapping):
            mapping._extra_content.clear()
        with pytest.raises(ValueError, match="rwkv7"):
            AutoConfig.from_pretrained(folders["rwkv7"])
        for _ in range(2):
            register()
            assert type(AutoModel.from_pretrained(folders["rwkv7"])) is RWKV7Model
            assert type(AutoConfig.from_pretrained(folders["gated_deltanet"])) is GatedDeltaNetConfig
            assert type(AutoModel.from_pretrained(folders["mamba2"])) is transformers.Mamba2Model
        for _ in range(2):
            register(replace=True)
            assert type(AutoModel.from_pretrained(folders["mamba2"])) is Mamba2Model


@pytest.mark.subprocess
def test_a_folder_names_its_classes(folders: dict[str, Path], tmp_path: Path) -> None:
    """With trust_remote_code alone, in a process that has not heard of thalweg; its own code is not copied."""
    code = (
        "import sys; from transformers import AutoConfig, AutoModel, AutoTokenizer\n"
        "for folder in sys.argv[1:]:\n"
        "    model = AutoModel.from_pretrained(folder, trust_remote_code=True)\n"
        "    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)\n"
        "    model.save_pretrained(folder + '-again'); tokenizer.save_pretrained(folder + '-again')\n"
        "    again = AutoModel.from_pretrained(folder + '-again', trust_remote_code=True)\n"
        "    print(type(model).__module__, type(again).__name__, tokenizer('the river runs')['input_ids'][-1])\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(folders["rwkv7"]), str(folders["gated_deltanet"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    module = "thalweg.integrations.transformers.modeling"
    assert done.stdout.splitlines() == [f"{module} RWKV7Model 0", f"{module} GatedDeltaNetModel 0"]
    copied = folders["rwkv7"].with_name("rwkv7-again").glob("*.py")
    assert [path.name for path in copied] == ["modeling_thalweg.py"]


def test_a_cache_is_moved_on_copied_cut_and_kept_small() -> None:
    _, model = wrapped("rwkv7")
    ids, mask = padded([9, 4, 12], ["left"], 12)
    with torch.no_grad():
        cache = model(ids[:, :6], mask[:, :6]).cache_params
        assert isinstance(cache, RecurrentCache)
        assert cache.rows == [0, 2]  # row 1 has not begun
        fork, swapped = cache.copy(), cache.select_rows([2, 1, 0])
        output = model(ids[:, 6:], mask[:, 6:], cache_params=cache)
        assert output.cache_params is cache
        assert cache.positions == 12
        assert fork.positions == 6
        expected = output.last_hidden_state
        assert torch.equal(model(ids[:, 6:], mask[:, 6:], cache_params=fork.copy()).last_hidden_state, expected)
        order = torch.tensor([2, 1, 0])
        turned = model(ids[order, 6:], mask[order, 6:], cache_params=swapped).last_hidden_state
        assert (turned - expected[order]).abs().max() <= 1e-5
        assert model(ids[:, 6:], mask[:, 6:], cache_params=fork, use_cache=False).cache_params is None
        assert fork.positions == 6
        assert cache.nbytes == 3 * fork.nbytes // 2
        with pytest.raises(IndexError):
            model(torch.full((3, 1), VOCABULARY), cache_params=fork)
        assert fork.rows == [0, 2]
    trained = model(ids, mask, use_cache=True).cache_params
    assert trained.state[0].wkv.requires_grad
    assert not trained.detach().state[0].wkv.requires_grad


def test_wrong_arguments() -> None:
    _, model = wrapped("mamba2")
    ids = torch.ones((2, 4), dtype=torch.int64)
    cache = model(ids).cache_params
    with pytest.raises(InvalidInputError, match=r"must be a tensor of integers .* not NoneType"):
        model()
    with pytest.raises(InvalidInputError, match=r"not \(2, 4\) of torch.float32"):
        model(ids.float())
    with pytest.raises(InvalidInputError, match=r"must be \(2, 4\), but is \(2, 3\)"):
        model(ids, ids[:, :3])
    with pytest.raises(InvalidInputError, match=r"must be \(2, 4\) or \(2, 8\), but is \(2, 5\)"):
        model(ids, torch.ones(2, 5), cache_params=cache)
    with pytest.raises(InvalidInputError, match="cache_params holds 2 rows, but input_ids has 1"):
        model(ids[:1], cache_params=cache)
    with pytest.raises(InvalidInputError, match="what an earlier call returned, not a DynamicCache"):
        model(ids, cache_params=transformers.DynamicCache())
    with pytest.raises(InvalidInputError, match="output_hidden_states is not available"):
        model(ids, output_hidden_states=True)
    with pytest.raises(InvalidInputError, match=r"rows must be some of 0 … 1, got \[2\]"):
        cache.select_rows([2])
    with pytest.raises(InvalidInputError, match="batch_size must be at least 1, not 0"):
        RecurrentCache(0)
    assert isinstance(model(ids, return_dict=False), tuple)


def test_from_pretrained_takes_every_format_of_thalweg(tmp_path: Path) -> None:
    write_mamba_ssm(tmp_path / "mamba2", tiny_config(head_dim=64, num_heads=1, n_groups=1, state_size=128))
    file = write_pth(tmp_path / "rwkv7", tiny_tensors(vocab_size=96, d_model=128, head_dim=64))
    for source, expected in ((tmp_path / "mamba2", Mamba2Model), (file, RWKV7Model)):
        model = ThalwegModel.from_pretrained(source, device_map="auto")
        assert type(model) is expected
        ids = torch.randint(90, (1, 12))
        mask = torch.ones_like(ids)
        with torch.no_grad():
            check(model(ids).last_hidden_state, mask, alone(load_checkpoint(source).model, ids, mask))


def test_from_pretrained_refuses_what_it_would_ignore(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["mamba2"]
    with pytest.raises(InvalidInputError, match="holds a Mamba2Model, not a RWKV7Model; use ThalwegModel"):
        RWKV7Model.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 1
    with pytest.raises(InvalidInputError, match=r"config does not describe .*: n_layers=1 instead of 3"):
        AutoModel.from_pretrained(folder, config=config)
    with pytest.raises(InvalidInputError, match="from_pretrained has no use for load_in_8bit; leave it out"):
        Mamba2Model.from_pretrained(folder, load_in_8bit=True)
    with pytest.raises(InvalidInputError, match="device_map must be one device for the whole model"):
        Mamba2Model.from_pretrained(folder, device_map={"layers.0": 0, "layers.1": "cpu"})
    with pytest.raises(InvalidInputError, match="must be a device or 'auto', not 'balanced'"):
        Mamba2Model.from_pretrained(folder, device_map="balanced")
    with pytest.raises(InvalidInputError, match="dtype must be 'auto' or one of torch, not 'flota'"):
        Mamba2Model.from_pretrained(folder, dtype="flota")
    with pytest.raises(CheckpointError, match="there is no folder"):
        ThalwegModel.from_pretrained(tmp_path / "nothing")
    write_emb(tmp_path / "emb", tiny_tensors(vocab_size=96))
    with pytest.raises(InvalidInputError, match="has embedding heads"):
        ThalwegModel.from_pretrained(tmp_path / "emb")
    with pytest.raises(CheckpointError, match="RWKV7Config: attn names attention layers"):
        RWKV7Config(attn={"layers": [0]})


@pytest.mark.parametrize("config_class", [RWKV7Config, GatedDeltaNetConfig])
def test_configs_state_every_key(config_class: Any, tmp_path: Path) -> None:
    """An MLP as wide as that of the default config, in a model that is not: left out, it would be read as another."""
    width = config_class().intermediate_size
    config = config_class(hidden_size=64, head_dim=32, num_heads=2, intermediate_size=width, use_cache=False)
    assert (config.hidden_size, config.use_cache, config_class().use_cache) == (64, False, True)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is config_class
    assert again.intermediate_size == width
    assert {**again.to_dict(), "_name_or_path": ""} == config.to_dict()


def test_world_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["rwkv7"])
    assert type(tokenizer) is RWKVWorldTokenizer
    texts = [*TEXTS, "naïve 🦢\x00", " <|rwkv_tokenizer_end_of_text|> a thalweg "]
    expected = [ids.tolist() for ids in thalweg.load(folders["rwkv7"]).tokenizer.encode_batch(texts)]
    assert tokenizer(texts)["input_ids"] == expected
    assert tokenizer(texts, add_special_tokens=False)["input_ids"] == [ids[:-1] for ids in expected]
    assert tokenizer.batch_decode(expected, skip_special_tokens=True) == texts
    assert tokenizer.decode([196]) == "�"  # a byte that is no character
    assert tokenizer.pad(tokenizer(texts))["attention_mask"][1][-2:] == [0, 1]
    assert tokenizer.vocab_size == len(tokenizer.get_vocab()) == len(tokenizer) == 261
    tokenizer.save_pretrained(tmp_path)
    again = RWKVWorldTokenizer.from_pretrained(tmp_path)
    assert again(texts)["input_ids"] == expected
    with pytest.raises(InvalidInputError, match="300 is no id of"):
        tokenizer.decode([300])
    with pytest.raises(InvalidInputError, match="'no entry' is no token of"):
        tokenizer.convert_tokens_to_ids("no entry")
    for n_eos in (10**12, -1, "1", None, True):
        with pytest.raises(InvalidInputError, match="n_eos must be from 0 to 256, not"):
            RWKVWorldTokenizer.from_pretrained(tmp_path, n_eos=n_eos)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_stock_modules_of_sentence_transformers(pooling: Any, tmp_path: Path) -> None:
    """`Transformer` and `Pooling` as they are, over a family that transformers lacks."""
    folder = write_folder(tmp_path / "model", "rwkv7", pooling=pooling)
    model = SentenceTransformer(str(folder), device="cpu")
    assert type(model[0].model) is RWKV7Model
    assert abs(model.encode(TEXTS, batch_size=4) - thalweg.load(folder).encode(TEXTS)).max() <= 1e-5
    model.save_pretrained(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert abs(again.encode(TEXTS) - model.encode(TEXTS)).max() <= 1e-6
