"""What the config.json of the mamba-ssm package says of its stack, whichever kind of layer that holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from thalweg.checkpoints.fields import Fields
from thalweg.checkpoints.tokens import TokenIds

KEYS = frozenset({"d_model", "n_layer", "ssm_cfg"})

PREFIXES = ("backbone.", "")

TOKEN_IDS = TokenIds(eos=0, bos=0, pad=0)
"""These repositories hold no tokenizer; they were trained with GPT-NeoX's, whose <|endoftext|> is 0."""


def is_config(config: Mapping[str, Any]) -> bool:
    """Whether a parsed config.json is of this package."""
    # What was converted for transformers may keep these keys beside its own.
    return config.keys() >= KEYS and "hidden_size" not in config


def has_mamba1(config: Mapping[str, Any]) -> bool:
    """Whether its layers are Mamba1: that is what they are if nothing is said."""
    ssm = config["ssm_cfg"]
    return isinstance(ssm, Mapping) and (ssm.get("layer") or "Mamba1") == "Mamba1"


def check_stack(fields: Fields) -> None:
    """Refuse what no layer has here: attention, MLPs and LayerNorm."""
    fields.require("attn_layer_idx", [], ([],), "hybrids with attention layers cannot run in constant memory")
    fields.require("d_intermediate", 0, (0,), "layers with an MLP are not implemented")
    fields.require("rms_norm", True, (True,), "only RMSNorm is implemented, not LayerNorm")


def padded_vocab_size(fields: Fields) -> int:
    """Rows of the embedding: the vocabulary, padded."""
    multiple = fields.integer("pad_vocab_size_multiple", 8)
    return math.ceil(fields.integer("vocab_size") / multiple) * multiple
