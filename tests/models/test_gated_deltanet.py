"""Gated DeltaNet against the layers of transformers' hybrids, and whole against its formulas in float64.

Where transformers is imprecise (largest error over largest value against float64, 5.23): its `cum_decay` is a float32
prefix sum, and differences of it lose digits where decays are strong. The mixer of qwen3_next with one value head a key
head, exp(A_log) e^3 times larger, 2000 tokens: 2.6e-5, here 2.0e-6; 150 tokens: 7.5e-6, here 1.1e-6. Its
`torch_chunk_gated_delta_rule` with log decays in [-30, 0]: 1.1e-5, here 2.0e-7; with 32 decays of -30 before 32 of
-1e-3: 2.8e-5, here 2.5e-7. With the decays of these tests all agree to 2e-6. flash-linear-attention is the peer in
tests/checkpoints/test_gated_deltanet.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import OlmoHybridConfig, Qwen3NextConfig
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from thalweg.errors import InvalidInputError
from thalweg.models.gated_deltanet import GatedDeltaNet, GatedDeltaNetConfig, GatedDeltaNetMixer
from thalweg.packing import Packing

TOKENS = 150


def tiny(**changes: Any) -> GatedDeltaNetConfig:
    keys: dict[str, Any] = {
        "vocab_size": 50,
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 2,
        "head_dim": 16,
        "n_value_heads": 4,
        "value_head_dim": 12,
        "d_mlp": 48,
    }
    return GatedDeltaNetConfig(**{**keys, **changes})


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Every parameter away from its special initial value, decays of a token between 1 and e^-20."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("A_log"):
                parameter.copy_(noise)
            elif name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(noise if parameter.ndim == 1 else noise * parameter.shape[-1] ** -0.5)


def relative(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).abs().max() / want.double().abs().max()).item()


def qwen3_next(config: GatedDeltaNetConfig) -> Qwen3NextGatedDeltaNet:
    return Qwen3NextGatedDeltaNet(
        Qwen3NextConfig(
            hidden_size=config.d_model,
            num_hidden_layers=1,
            layer_types=["linear_attention"],
            linear_num_key_heads=config.n_heads,
            linear_num_value_heads=config.n_value_heads,
            linear_key_head_dim=config.head_dim,
            linear_value_head_dim=config.value_head_dim,
            linear_conv_kernel_dim=config.d_conv,
            rms_norm_eps=config.norm_eps,
        ),
        0,
    )


def from_qwen3_next(theirs: Qwen3NextGatedDeltaNet, c: GatedDeltaNetConfig) -> dict[str, Tensor]:
    """Its projections hold, for each key head, the rows of q, k, v, z and of b, a; one convolution is for q, k, v."""
    shared = c.n_value_heads // c.n_heads
    widths = [c.head_dim, c.head_dim, shared * c.value_head_dim, shared * c.value_head_dim]
    qkvz = theirs.in_proj_qkvz.weight.unflatten(0, (c.n_heads, sum(widths))).split(widths, dim=1)
    q, k, v, z = (part.flatten(0, 1) for part in qkvz)
    b, a = (part.flatten(0, 1) for part in theirs.in_proj_ba.weight.unflatten(0, (c.n_heads, 2, shared)).unbind(1))
    taps = theirs.conv1d.weight.squeeze(1).split([c.key_dim, c.key_dim, c.value_dim])
    return {
        **{f"{name}.proj.weight": weight for name, weight in zip("qkv", (q, k, v), strict=True)},
        **{f"{name}.conv.weight": weight for name, weight in zip("qkv", taps, strict=True)},
        "a_proj.weight": a,
        "b_proj.weight": b,
        "g_proj.weight": z,
        "A_log": theirs.A_log,
        "dt_bias": theirs.dt_bias,
        "o_norm.weight": theirs.norm.weight,
        "o_proj.weight": theirs.out_proj.weight,
    }


def olmo_hybrid(config: GatedDeltaNetConfig) -> OlmoHybridGatedDeltaNet:
    return OlmoHybridGatedDeltaNet(
        OlmoHybridConfig(
            hidden_size=config.d_model,
            num_hidden_layers=2,
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=config.n_heads,
            linear_num_value_heads=config.n_value_heads,
            linear_key_head_dim=config.head_dim,
            linear_value_head_dim=config.value_head_dim,
            linear_conv_kernel_dim=config.d_conv,
            linear_allow_neg_eigval=config.allow_neg_eigval,
        ),
        0,
    )


def from_olmo_hybrid(theirs: OlmoHybridGatedDeltaNet, c: GatedDeltaNetConfig) -> dict[str, Tensor]:
    """fla's names but for one convolution over q, k, v."""
    taps = theirs.conv1d.weight.squeeze(1).split([c.key_dim, c.key_dim, c.value_dim])
    same = {name: weight for name, weight in theirs.state_dict().items() if not name.startswith("conv1d")}
    named = {
        f"{name[0]}.proj.weight" if name[:6] in ("q_proj", "k_proj", "v_proj") else name: w for name, w in same.items()
    }
    return {**named, **{f"{name}.conv.weight": weight for name, weight in zip("qkv", taps, strict=True)}}


PEERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen3_next": (qwen3_next, from_qwen3_next, {}),
    "qwen3_next, one value head a key head": (qwen3_next, from_qwen3_next, {"n_value_heads": 2, "value_head_dim": 32}),
    "qwen3_next, two taps": (qwen3_next, from_qwen3_next, {"d_conv": 2, "norm_eps": 1e-2}),
    "olmo_hybrid": (olmo_hybrid, from_olmo_hybrid, {"norm_eps": 1e-5}),
    "olmo_hybrid, negative eigenvalues": (olmo_hybrid, from_olmo_hybrid, {"norm_eps": 1e-5, "allow_neg_eigval": True}),
}


@pytest.mark.parametrize("name", PEERS)
def test_the_mixer_equals_that_of_transformers(name: str) -> None:
    make, convert, changes = PEERS[name]
    config = tiny(**changes)
    theirs = make(config)
    randomise(theirs)
    ours = GatedDeltaNetMixer(config)
    ours.load_state_dict(convert(theirs, config))
    x = torch.randn(TOKENS, config.d_model, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        want = theirs(x[None])[0]
        got, _ = ours(x, Packing.whole([TOKENS]), None, None)
    assert relative(got, want) <= 2e-5


def by_the_formulas(model: GatedDeltaNet, ids: Tensor) -> Tensor:
    """(N, D) float64 from the formulas of the paper, token by token, with no op of ours."""
    c = model.config
    p = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + c.norm_eps) * weight

    def conv_silu(x: Tensor, name: str) -> Tensor:
        if f"{name}.conv.weight" in p:
            taps = p[f"{name}.conv.weight"]
            bias = p.get(f"{name}.conv.bias", torch.zeros(len(taps), dtype=torch.float64))
            past = torch.cat([torch.zeros(taps.shape[1] - 1, len(taps), dtype=torch.float64), x])
            x = torch.stack([(past[t : t + taps.shape[1]].T * taps).sum(1) + bias for t in range(len(x))])
        return x / (1 + torch.exp(-x))

    h = p["embeddings.weight"][ids]
    for i in range(c.n_layers):
        at = f"layers.{i}.attn"
        x = norm(h, p[f"layers.{i}.attn_norm.weight"])
        q, k, v = (conv_silu(x @ p[f"{at}.{n}.proj.weight"].T, f"{at}.{n}") for n in "qkv")
        y = torch.zeros(len(ids), c.n_value_heads, c.value_head_dim, dtype=torch.float64)
        alpha = torch.exp(
            -torch.exp(p[f"{at}.A_log"]) * torch.log1p(torch.exp(x @ p[f"{at}.a_proj.weight"].T + p[f"{at}.dt_bias"]))
        )
        beta = (2 if c.allow_neg_eigval else 1) / (1 + torch.exp(-x @ p[f"{at}.b_proj.weight"].T))
        for head in range(c.n_value_heads):
            shared = head * c.n_heads // c.n_value_heads * c.head_dim
            memory = torch.zeros(c.value_head_dim, c.head_dim, dtype=torch.float64)
            for t in range(len(ids)):
                kt, qt = (z[t, shared : shared + c.head_dim] for z in (k, q))
                kt, qt = (z / torch.sqrt((z * z).sum() + 1e-6) for z in (kt, qt))
                vt = v[t, head * c.value_head_dim : (head + 1) * c.value_head_dim]
                keep = torch.eye(c.head_dim, dtype=torch.float64) - beta[t, head] * torch.outer(kt, kt)
                memory = alpha[t, head] * memory @ keep + beta[t, head] * torch.outer(vt, kt)
                y[t, head] = memory @ qt / c.head_dim**0.5
        y = norm(y, p[f"{at}.o_norm.weight"]).flatten(1)
        if c.output_gate:
            gate = x @ p[f"{at}.g_proj.weight"].T
            y = y * (gate if c.output_gate == "silu" else 1) / (1 + torch.exp(-gate))
        h = h + y @ p[f"{at}.o_proj.weight"].T
        x = norm(h, p[f"layers.{i}.mlp_norm.weight"])
        gate = x @ p[f"layers.{i}.mlp.gate_proj.weight"].T
        up = x @ p[f"layers.{i}.mlp.up_proj.weight"].T
        h = h + (gate / (1 + torch.exp(-gate)) * up) @ p[f"layers.{i}.mlp.down_proj.weight"].T
    return norm(h, p["norm.weight"])


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"n_value_heads": 2},
    "grouped values": {},
    "wide values": {"n_value_heads": 2, "value_head_dim": 32},
    "negative eigenvalues": {"allow_neg_eigval": True},
    "no gate": {"output_gate": None},
    "sigmoid gate": {"output_gate": "sigmoid"},
    "no convolution": {"d_conv": 0},
    "convolution with bias": {"conv_bias": True, "d_conv": 3},
    "one tap": {"d_conv": 1, "norm_eps": 1e-3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_model_equals_the_formulas_in_float64(variant: str) -> None:
    torch.manual_seed(0)
    model = GatedDeltaNet(tiny(**VARIANTS[variant]))
    randomise(model)
    ids = torch.randint(50, (TOKENS,), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        got, _ = model(ids, Packing.whole([TOKENS]))
        assert relative(got, by_the_formulas(model, ids)) <= 2e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = GatedDeltaNet(tiny(d_model=64, head_dim=32))
    ids = torch.randint(50, (TOKENS,), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        exact, _ = model(ids, Packing.whole([TOKENS]))
        for name, parameter in model.named_parameters():
            if not name.endswith(("A_log", "dt_bias")):
                parameter.data = parameter.data.to(dtype)
        got, state = model(ids, Packing([TOKENS], wanted=(0,)))
    assert got.dtype == torch.float32
    assert (state[0].q.dtype, state[0].memory.dtype) == (dtype, torch.float32)
    distance = (got - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert distance.item() <= 0.03


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_value_heads": 3}, "n_value_heads must be a multiple of n_heads=2, got 3"),
        ({"d_mlp": 0}, "d_mlp must be at least 1, got 0"),
        ({"d_conv": -1}, "d_conv must be at least 0 .* got -1"),
        ({"output_gate": "relu"}, "output_gate must be one of .* got 'relu'"),
    ],
)
def test_wrong_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        tiny(**changes)
