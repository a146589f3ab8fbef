"""A tiny random model of every family, one row each: `test_families.py` proves the engine's promises on all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from thalweg.models.gated_deltanet import GatedDeltaNet, GatedDeltaNetConfig
from thalweg.models.mamba import Mamba, MambaConfig
from thalweg.models.mamba2 import Mamba2, Mamba2Config
from thalweg.models.rwkv7 import RWKV7, RWKV7Config
from thalweg.models.xlstm import XLSTM, XLSTMConfig

VOCABULARY = 64


def mamba2() -> Mamba2:
    return Mamba2(
        Mamba2Config(
            vocab_size=VOCABULARY,
            d_model=24,
            n_layers=3,
            n_heads=4,
            head_dim=8,
            d_state=8,
            n_groups=2,
            time_step_limit=(0.0, 2.0),
        )
    )


def gated_deltanet() -> GatedDeltaNet:
    return GatedDeltaNet(
        GatedDeltaNetConfig(
            vocab_size=VOCABULARY,
            d_model=24,
            n_layers=3,
            n_heads=2,
            head_dim=8,
            n_value_heads=4,
            value_head_dim=6,
            d_mlp=32,
            allow_neg_eigval=True,
        )
    )


def mamba() -> Mamba:
    return Mamba(MambaConfig(vocab_size=VOCABULARY, d_model=24, n_layers=3, d_inner=48, dt_rank=3, d_state=8))


def falcon_mamba() -> Mamba:
    return Mamba(
        MambaConfig(
            vocab_size=VOCABULARY,
            d_model=24,
            n_layers=2,
            d_inner=40,
            dt_rank=5,
            d_state=4,
            d_conv=3,
            mixer_norm_eps=1e-6,
            activation="gelu",
            conv_bias=False,
            proj_bias=True,
        )
    )


def xlstm() -> XLSTM:
    model = XLSTM(
        XLSTMConfig(
            vocab_size=VOCABULARY,
            d_model=24,
            n_layers=3,
            n_heads=2,
            d_qk=12,
            d_v=24,
            d_ffn=40,
            bias=True,
            norm_eps=1e-5,
        )
    )
    for block in model.layers:
        block.mlstm.i.bias.data.uniform_(-2, 1)  # open gates: at their first values hardly anything is remembered
    return model


def rwkv7() -> RWKV7:
    return RWKV7(
        RWKV7Config(
            vocab_size=VOCABULARY,
            d_model=24,
            n_layers=3,
            head_dim=8,
            d_value=48,
            d_ffn=40,
            rank_w=4,
            rank_a=5,
            rank_v=6,
            rank_g=7,
        )
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "mamba2": mamba2,
    "rwkv7": rwkv7,
    "xlstm": xlstm,
    "mamba": mamba,
    "falcon_mamba": falcon_mamba,
    "gated_deltanet": gated_deltanet,
}
