"""QLoRA: frozen weights of linear layers in 4 bits (bitsandbytes), under adapters that are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def quantize_4bit(model: nn.Module) -> None:
    """Hold the weights of all linear layers in 4 bits (NF4, scales quantised too), in place; bfloat16 is computed with.

    A model so changed cannot be saved: adapters trained on it are merged into the weights that it was made from. Stored
    as bfloat16, two numbers a byte, so that what asks for a weight's dtype gets the one that is computed with.
    """
    import bitsandbytes as bnb

    linear = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    for name, module in linear:
        if name.startswith("heads."):  # embedding heads follow the pooling, in float32
            continue
        quantized: Any = bnb.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
            compress_statistics=True,
            quant_storage=torch.bfloat16,
            device="meta",
        )
        quantized.weight = bnb.nn.Params4bit(
            module.weight.detach().to("cpu", torch.bfloat16),
            requires_grad=False,
            quant_type="nf4",
            compress_statistics=True,
            quant_storage=torch.bfloat16,
            module=quantized,
        )
        quantized.bias = module.bias
        device = module.weight.device
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, quantized.to(device))
