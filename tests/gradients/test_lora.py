"""Adapters on every linear layer: they train, under checkpointing too, and merging them changes no vector."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.registry import FAMILIES, VOCABULARY
from thalweg.errors import InvalidInputError
from thalweg.gradients.checkpointed import embed_checkpointed
from thalweg.gradients.embed import embed_for_training
from thalweg.gradients.forward import embed_packed
from thalweg.gradients.lora import add_lora, lora_targets, merge_lora
from thalweg.gradients.steps import Checkpointing

CHECKPOINTING = Checkpointing(16, 64)


def _batch(seed: int, n: int = 8, length: int = 30) -> Tensor:
    """(2 n, length): n texts, then each once more with two thirds of its tokens replaced."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randint(0, VOCABULARY, (n, length), generator=generator)
    noise = torch.randint(0, VOCABULARY, (n, length), generator=generator)
    return torch.cat([texts, torch.where(torch.rand(n, length, generator=generator) < 0.67, noise, texts)])


def _info_nce(vectors: Tensor) -> Tensor:
    queries, positives = F.normalize(vectors, dim=1).chunk(2)
    return F.cross_entropy(queries @ positives.T / 0.05, torch.arange(len(queries)))


def _vectors(model: Any, batch: Tensor) -> Tensor:
    lengths = [batch.shape[1]] * len(batch)
    return embed_checkpointed(model, batch.flatten(), lengths, pooling="last", checkpointing=CHECKPOINTING).vectors


@pytest.mark.training
@pytest.mark.parametrize("family", ["mamba2", "rwkv7", "xlstm"])
def test_training_reaches_a_loss_and_merging_changes_nothing(family: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    frozen = {name: parameter.clone() for name, parameter in model.named_parameters()}
    add_lora(model, rank=8, alpha=16)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    batch = _batch(0)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = _info_nce(_vectors(model, batch))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        unmerged = _vectors(model, batch)
        merge_lora(model)
        merged = _vectors(model, batch)
    assert losses[0] > 1
    assert losses[-1] < 0.1
    torch.testing.assert_close(F.normalize(merged), F.normalize(unmerged), rtol=0, atol=1e-5)
    assert [name for name, _ in model.named_parameters()] == list(frozen)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, frozen[name])}
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert changed == linear


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_on_every_linear_layer_get_gradients(family: str) -> None:
    """None is bypassed, and those of the checkpointed pass are those of the full one."""
    torch.manual_seed(0)
    model = FAMILIES[family]()
    n_linear = sum(isinstance(module, nn.Linear) for module in model.modules())
    add_lora(model, rank=2, alpha=0.2, init_lora_weights=False)  # no zeros, so that both halves have gradients
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * n_linear
    tokens, lengths = _batch(0, 2, 50).flatten(), [50] * 4
    gradients = [
        torch.autograd.grad(vectors.square().sum(), list(trained.values()))
        for vectors in (
            embed_packed(model, tokens, lengths, pooling="mean"),
            embed_checkpointed(model, tokens, lengths, pooling="mean", checkpointing=CHECKPOINTING).vectors,
        )
    ]
    floor = torch.stack([grad.norm() for grad in gradients[0]]).mean()
    for name, full, checkpointed in zip(trained, *gradients, strict=True):
        assert full.norm() > 0, name
        assert (full - checkpointed).norm() <= 1e-5 * max(full.norm(), floor), name


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_and_unmerged_are_the_same(family: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    add_lora(model, rank=2, alpha=0.2, init_lora_weights=False)
    tokens = _batch(0, 2, 50).flatten()
    with torch.no_grad():
        unmerged = embed_packed(model, tokens, [50] * 4, pooling="mean")
        merge_lora(model)
        merged = embed_packed(model, tokens, [50] * 4, pooling="mean")
    torch.testing.assert_close(merged, unmerged, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [None, Checkpointing(600, 600, two_level=True)])
@pytest.mark.parametrize("family", ["rwkv7", "xlstm"])
def test_dropout_drops_the_same_again(family: str, checkpointing: Checkpointing | None) -> None:
    """Gradients against differences of the loss, under the same random numbers; and GradCache's first pass."""
    torch.manual_seed(0)
    model = FAMILIES[family]().train()
    add_lora(model, rank=4, alpha=0.4, dropout=0.3, init_lora_weights=False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tokens = torch.randint(0, VOCABULARY, (1900,))
    weight = torch.randn(24)

    def vectors(seed: int = 5) -> Tensor:
        torch.manual_seed(seed)
        return embed_for_training(model, tokens, [1900], pooling="mean", checkpointing=checkpointing)

    torch.manual_seed(7)
    with_graph = vectors()
    gradients = torch.autograd.grad((with_graph @ weight).sum(), trained)
    with torch.no_grad():
        torch.testing.assert_close(vectors(), with_graph, rtol=1e-5, atol=1e-6)
        assert (vectors(6) - with_graph).abs().max() > 1e-3
        directions = [grad / torch.stack([g.norm() for g in gradients]).norm() for grad in gradients]
        losses = []
        for sign in (1, -2):
            for parameter, direction in zip(trained, directions, strict=True):
                parameter += sign * 1e-2 * direction
            losses.append((vectors() @ weight).sum().item())
    slope = (losses[0] - losses[1]) / 2e-2
    expected = torch.stack([g.norm() for g in gradients]).norm().item()
    assert abs(slope - expected) <= 0.01 * expected


def test_targets_name_all_linear_layers_once() -> None:
    assert lora_targets(FAMILIES["mamba2"]()) == ["mixer.in_proj", "mixer.out_proj"]
    assert "att.lora_w.down" in lora_targets(FAMILIES["rwkv7"]())
    with pytest.raises(InvalidInputError, match="no adapters"):
        merge_lora(FAMILIES["mamba2"]())
