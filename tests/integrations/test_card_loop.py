"""The loop of the published models' card: left padding, `cache_params`, the last token's vector.

It runs as it stands on a folder that `thalweg export` wrote, through transformers' own Mamba2Model and through ours.
Where the former goes wrong is pinned down here, too: single tokens, biases, and limits of the time step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

import thalweg
from tests.corpus.tiny import make_text, write_model
from thalweg.integrations.transformers import Mamba2Model

from .recurrent import TEXTS

# Since 5.24 transformers calls it `cache`; the card's loop is the same as before.
pytestmark = pytest.mark.filterwarnings("ignore:.*cache_params.* is deprecated:FutureWarning")

LONG = [TEXTS[2], "", make_text(38_000, seed=2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("card")
    source = write_model(path / "source", pooling="last")
    thalweg.load(source).save(path / "exported")
    return path / "exported"


@torch.no_grad()
def loop(model: Any, ids: Tensor, mask: Tensor, chunk: int) -> Tensor:
    """(B, D): the card's loop."""
    cache_params = None
    for start in range(0, ids.shape[1], chunk):
        output = model(
            input_ids=ids[:, start : start + chunk],
            attention_mask=mask[:, start : start + chunk],
            use_cache=True,
            cache_params=cache_params,
        )
        cache_params = output.cache_params
    return F.normalize(output.last_hidden_state[:, -1], dim=-1)


@pytest.mark.parametrize("model_class", [transformers.AutoModel, Mamba2Model], ids=["transformers", "thalweg"])
def test_the_exported_folder(folder: Path, model_class: Any) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = model_class.from_pretrained(folder)
    embedder = thalweg.load(folder)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    for chunk in (256, 512):
        vectors = loop(model, batch["input_ids"], batch["attention_mask"], chunk)
        assert abs(vectors.numpy() - embedder.encode(TEXTS)).max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [transformers.AutoModel, Mamba2Model], ids=["transformers", "thalweg"])
def test_fifty_thousand_tokens(folder: Path, model_class: Any) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    batch = tokenizer(LONG, padding=True, return_tensors="pt")
    assert batch["input_ids"].shape[1] >= 50_000
    vectors = loop(model_class.from_pretrained(folder), batch["input_ids"], batch["attention_mask"], 512)
    assert abs(vectors.numpy() - thalweg.load(folder).encode(LONG)).max() <= 1e-5


def models(**changes: Any) -> tuple[Any, Any]:
    """transformers' Mamba2Model of random weights, and ours of the same."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16}
    config = transformers.Mamba2Config(**sizes, n_groups=1, state_size=8, chunk_size=16, **changes)
    stock = transformers.Mamba2Model(config).eval()
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            if name.endswith("dt_bias"):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.uniform_(0, 1.5)
    ours = Mamba2Model(config).eval()
    ours.load_state_dict(stock.state_dict())
    return stock, ours


@pytest.mark.parametrize(
    ("changes", "chunk"),
    [({}, 1), ({"use_bias": True}, 8), ({"time_step_limit": (0.0, 0.5)}, 39)],
    ids=["a token at a time", "biases", "limits, and a last chunk of one token"],
)
def test_where_transformers_goes_wrong(changes: dict[str, Any], chunk: int) -> None:
    """transformers 5.23 drops the mask of a chunk of one token, lets a bias enter the convolution through padding, and
    forgets the limits of the time step where a chunk has one token."""
    stock, ours = models(**changes)
    ids = torch.randint(100, (3, 40))
    lengths = (40, 13, 1)
    mask = torch.stack([(torch.arange(40) >= 40 - length).long() for length in lengths])
    with torch.no_grad():
        texts = [ids[row : row + 1, 40 - length :] for row, length in enumerate(lengths)]
        alone = torch.cat([stock(input_ids=text, use_cache=False).last_hidden_state[:, -1] for text in texts])
    expected = F.normalize(alone, dim=-1)
    assert (loop(ours, ids, mask, chunk) - expected).abs().max() <= 1e-5
    assert (loop(stock, ids, mask, chunk) - expected).abs().max() >= 1e-3
