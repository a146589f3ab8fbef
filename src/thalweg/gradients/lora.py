"""LoRA adapters (peft) on every linear layer of any family."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from thalweg.errors import InvalidInputError, MissingExtraError


def lora_targets(model: nn.Module) -> list[str]:
    """peft's `target_modules` for all linear layers of a model of thalweg, `in_proj` and `out_proj` among them.

    Names without the layer's number, such as "mixer.in_proj". Embedding heads, which follow the pooling, are left out.
    """
    names = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return sorted({re.sub(r"^\w+\.\d+\.", "", name) for name in names if not name.startswith("heads.")})


def add_lora(model: nn.Module, *, rank: int = 16, alpha: float = 16, dropout: float = 0.0, **options: Any) -> None:
    """Put adapters on all linear layers, in place, and freeze everything else.

    Args:
        options: further arguments of `peft.LoraConfig`, such as `target_modules` or `use_rslora`.

    Raises:
        MissingExtraError: peft is not installed.
    """
    peft = _peft()
    config = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": lora_targets(model)}
    peft.inject_adapter_in_model(peft.LoraConfig(**config | options), model)


def merge_lora(model: nn.Module) -> None:
    """Add the adapters to the weights they belong to, in place; the model is then as it was before, and can be saved.

    Raises:
        InvalidInputError: the model has no adapters.
        ValueError: an adapter has values that are not finite (peft); nothing of that layer is merged.
        MissingExtraError: peft is not installed.
    """
    layer_class = _peft().tuners.tuners_utils.BaseTunerLayer
    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, layer_class)]
    if not adapted:
        raise InvalidInputError("the model has no adapters to merge; add_lora(model) puts them on")
    for name, layer in adapted:
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise MissingExtraError("LoRA needs: pip install 'thalweg[train]'") from error
    return peft
