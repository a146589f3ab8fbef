"""Configs of the families that transformers lacks: the keys of flash-linear-attention's config.json, with its defaults.

Which keys there are, what they mean and their defaults is decided by the formats' own rows (`checkpoints/rwkv7.py`,
`checkpoints/gated_deltanet.py`); here they become attributes.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PretrainedConfig

from thalweg.checkpoints import gated_deltanet, rwkv7
from thalweg.checkpoints.fields import Fields
from thalweg.checkpoints.format import Format


class _FormatConfig(PretrainedConfig):
    """A config whose attributes are the keys of one format, all of them always written."""

    format: ClassVar[Format]
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "cache_params"]

    def __init__(self, *, use_cache: bool = True, **keys: Any) -> None:
        """`keys`: those of the format's config.json; missing ones take its defaults.

        Raises:
            CheckpointError: a value of another type, or a variant that thalweg does not have.
        """
        super().__init__(**{**keys, **_described(type(self), keys)})
        self.use_cache = use_cache  # set here: transformers takes it out of what it is given

    def to_diff_dict(self) -> dict[str, Any]:
        """With every key of the format: some defaults follow from other keys, so leaving one out could change it."""
        return {**super().to_diff_dict(), **_described(type(self), self.to_dict())}

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing to do: this code is installed and need not be copied into folders (see `checkpoints/auto_map.py`)."""


class RWKV7Config(_FormatConfig):
    """RWKV-7 "Goose", keys as in fla's RWKV7Config: hidden_size, num_hidden_layers, head_dim, value_dim, …"""

    model_type = "rwkv7"
    format = rwkv7.FORMATS[0]

    def __init__(self, **keys: Any) -> None:  # each class needs its own: transformers makes one where there is none
        """See `_FormatConfig`."""
        super().__init__(**keys)


class GatedDeltaNetConfig(_FormatConfig):
    """Gated DeltaNet without attention layers, keys as in fla's GatedDeltaNetConfig: hidden_size, num_heads, …"""

    model_type = "gated_deltanet"
    format = gated_deltanet.FORMATS[0]

    def __init__(self, **keys: Any) -> None:
        """See `_FormatConfig`."""
        super().__init__(**keys)


def _described(config_class: type[_FormatConfig], keys: dict[str, Any]) -> dict[str, Any]:
    format = config_class.format
    assert format.write_config is not None
    written = format.write_config(format.read_config(Fields(keys, config_class.__name__)))
    return {key: value for key, value in written.items() if key not in ("architectures", "model_type")}
