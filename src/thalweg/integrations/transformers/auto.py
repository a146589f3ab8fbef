"""AutoConfig, AutoModel and AutoTokenizer of transformers find thalweg's models."""

from __future__ import annotations

from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoTokenizer

from thalweg.integrations.transformers.configs import CONFIGS
from thalweg.integrations.transformers.modeling import MODELS
from thalweg.integrations.transformers.world import RWKVWorldTokenizer


def register(*, replace: bool = False) -> None:
    """Let `AutoModel.from_pretrained` open the families that transformers lacks; more calls change nothing.

    Args:
        replace: also take thalweg's models for the families that transformers has. Then loops over chunks, left padding
            and single tokens are exact in all of them, and padding costs nothing. Models that are there already stay
            what they are.
    """
    for model_type, config_class in CONFIGS.items():
        known = CONFIG_MAPPING.get(model_type)
        if known in (None, config_class) or replace:
            AutoConfig.register(model_type, config_class, exist_ok=True)
            AutoModel.register(config_class, MODELS[model_type], exist_ok=True)
    AutoTokenizer.register(CONFIGS["rwkv7"], tokenizer_class=RWKVWorldTokenizer, exist_ok=True)
    if replace:
        for model in MODELS.values():
            AutoModel.register(model.config_class, model, exist_ok=True)
