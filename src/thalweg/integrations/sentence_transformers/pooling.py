"""The second module of a folder: `1_Pooling`, which other readers need and the engine has done already."""

from __future__ import annotations

from typing import Any

from sentence_transformers.sentence_transformer import modules

from thalweg.checkpoints import EmbeddingConfig
from thalweg.errors import InvalidInputError
from thalweg.pooling import POOLINGS


class Pooling(modules.Pooling):
    """Says how token vectors are pooled, and pools none: `ThalwegModule` has done so while they came by."""

    @classmethod
    def of(cls, config: EmbeddingConfig, dimension: int) -> Pooling:
        """The module that says what `config` says."""
        mode = POOLINGS[config.pooling].stored_name
        return cls(dimension, pooling_mode=mode, include_prompt=config.include_prompt)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Nothing, but for a prompt that the mean should leave out.

        Raises:
            InvalidInputError: `include_prompt` is off, the pooling is a mean, and there is a prompt.
        """
        if "sentence_embedding" not in features:
            raise InvalidInputError(
                "thalweg's Pooling follows thalweg's module only; use sentence_transformers' own after other models"
            )
        averaged = any(kind.averages_prompt and kind.stored_name in self.pooling_mode for kind in POOLINGS.values())
        if features.get("has_prompt") and not self.include_prompt and averaged:
            raise InvalidInputError(
                "the model leaves the prompt out of its mean (include_prompt=false), which is not supported; use it "
                "without a prompt"
            )
        return features
