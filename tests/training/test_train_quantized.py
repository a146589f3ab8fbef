"""Weights in 4 bits under adapters. bitsandbytes has kernels for the CPU too, which is what is tested where it is
installed; a run with them wants CUDA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import thalweg
from tests.models.registry import FAMILIES, VOCABULARY
from thalweg.errors import InvalidInputError, MissingExtraError
from thalweg.gradients.embed import embed_for_training
from thalweg.gradients.lora import add_lora
from thalweg.gradients.qlora import quantize_4bit
from thalweg.training import run
from thalweg.training.extras import require_4bit
from thalweg.training.recipes import find_recipe, override

from ..corpus.tiny import write_model
from .training_data import write_pairs


def test_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match="needs a CUDA device, but this run is on 'cpu'"):
        require_4bit("cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install bitsandbytes"):
        require_4bit("cuda")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_and_trains(family: str) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = FAMILIES[family]()
    n_linear = sum(type(module) is torch.nn.Linear for module in model.modules())
    tokens = torch.randint(0, VOCABULARY, (90,))
    with torch.no_grad():
        before = embed_for_training(model, tokens, [50, 40], pooling="mean")
        quantize_4bit(model)
        after = embed_for_training(model, tokens, [50, 40], pooling="mean")
    assert sum(isinstance(module, bnb.nn.Linear4bit) for module in model.modules()) == n_linear
    assert torch.cosine_similarity(before, after).min() > 0.95
    add_lora(model, rank=2, init_lora_weights=False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * n_linear
    loss = embed_for_training(model, tokens, [50, 40], pooling="mean").square().sum()
    assert all(grad.norm() > 0 for grad in torch.autograd.grad(loss, trained))


def test_adapters_are_added_to_the_weights_that_were_not_quantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(run, "require_4bit", lambda device: None)
    model, pairs = write_model(tmp_path / "base", pooling="last"), write_pairs(tmp_path / "pairs.jsonl", 16)
    settings = ["quantize_4bit=true", "lora_rank=2", "batch_size=16", "warmup_steps=1", "max_steps=3"]
    recipe = override(find_recipe("e5-mistral"), [*settings, "learning_rate=1e-2"])
    run.train(model, [str(pairs)], tmp_path / "out", recipe, device="cpu")
    weights = [thalweg.load(folder).model.state_dict() for folder in (model, tmp_path / "out")]
    for name, before in weights[0].items():
        change = (weights[1][name] - before).numpy()
        if "proj" in name:
            assert 1 <= np.linalg.matrix_rank(change, tol=1e-6) <= 2, name
        else:
            assert not change.any(), name
