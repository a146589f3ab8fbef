"""The third module of a folder that has a lexicon: its files, which the first module has used already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from thalweg.checkpoints.lexicon import read_lexicon, write_lexicon
from thalweg.pooling.lexicon import Lexicon


class LexiconModule(nn.Module):
    """Keeps a lexicon beside the model, and adds nothing: `ThalwegModule` has done so while the tokens came by."""

    def __init__(self, lexicon: Lexicon, d_model: int) -> None:
        super().__init__()
        self.lexicon, self.d_model = lexicon, d_model

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Nothing."""
        return features

    def get_sentence_embedding_dimension(self) -> int:
        """Width of the vectors from here on."""
        return self.d_model + self.lexicon.d_lexicon

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """The module's folder, as every export has it."""
        write_lexicon(Path(output_path), self.lexicon, self.d_model)

    @classmethod
    def load(cls, input_path: str) -> LexiconModule:
        """Called by `SentenceTransformer`, which fetches the folder.

        Raises:
            CheckpointError: its files are not those of a lexicon.
        """
        return cls(*read_lexicon(Path(input_path)))
