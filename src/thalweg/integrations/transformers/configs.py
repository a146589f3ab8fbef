"""Config classes of the families that transformers lacks: the keys of their format's config.json, with its defaults.

There is one for each such row of `families.py`. Which keys there are, what they mean and their defaults is decided by
the format (`checkpoints/`); here they become attributes.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PretrainedConfig

from thalweg.checkpoints.fields import Fields
from thalweg.checkpoints.format import Format
from thalweg.checkpoints.formats import find_format
from thalweg.families import FAMILIES, TransformersClass


class FormatConfig(PretrainedConfig):
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


def _config_class(row: TransformersClass) -> type[FormatConfig]:
    def __init__(self: FormatConfig, **keys: Any) -> None:  # each needs its own: transformers makes one where none is
        FormatConfig.__init__(self, **keys)

    attributes: dict[str, Any] = {
        "__init__": __init__,
        "__module__": __name__,
        "__doc__": f"A config with the keys of {row.format}'s config.json: hidden_size, num_hidden_layers, …",
        "model_type": row.model_type,
        "format": find_format(row.format),
    }
    return type(row.config, (FormatConfig,), attributes)


def _described(config_class: type[FormatConfig], keys: dict[str, Any]) -> dict[str, Any]:
    format = config_class.format
    assert format.write_config is not None
    written = format.write_config(format.read_config(Fields(keys, config_class.__name__)))
    return {key: value for key, value in written.items() if key not in ("architectures", "model_type")}


CONFIGS: dict[str, type[FormatConfig]] = {
    row.model_type: _config_class(row)
    for family in FAMILIES
    if not family.in_transformers
    for row in family.transformers
}
"""`model_type` → class."""

globals().update({each.__name__: each for each in CONFIGS.values()})  # where pickle and `auto_map` look for them
