"""AutoConfig, AutoModel and AutoTokenizer of transformers find thalweg's models."""

from __future__ import annotations

from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoTokenizer

from thalweg.integrations.transformers.configs import GatedDeltaNetConfig, RWKV7Config
from thalweg.integrations.transformers.modeling import MODELS
from thalweg.integrations.transformers.world import RWKVWorldTokenizer

OWN_CONFIGS = (RWKV7Config, GatedDeltaNetConfig)


def register(*, replace: bool = False) -> None:
    """Let `AutoModel.from_pretrained` open the families that transformers lacks; more calls change nothing.

    Args:
        replace: also take thalweg's models for those that transformers has: mamba, mamba2, falcon_mamba, xlstm. Then
            loops over chunks, left padding and single tokens are exact in all of them, and padding costs nothing.
            Models that are there already stay what they are.
    """
    for config_class in OWN_CONFIGS:
        known = CONFIG_MAPPING.get(config_class.model_type)
        if known in (None, config_class) or replace:
            AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
            AutoModel.register(config_class, MODELS[config_class.model_type], exist_ok=True)
    AutoTokenizer.register(RWKV7Config, tokenizer_class=RWKVWorldTokenizer, exist_ok=True)
    if replace:
        for model in MODELS.values():
            AutoModel.register(model.config_class, model, exist_ok=True)
