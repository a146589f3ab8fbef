"""What the embedder gives back."""

from __future__ import annotations

from dataclasses import dataclass, fields

from thalweg.pooling.vectors import FloatArray


@dataclass(frozen=True, slots=True)
class Embedding:
    """One finished vector.

    index: number of the document in the input; section: number of the section in it (0 without sections);
    n_tokens: tokens it stands for, BOS and EOS included; char_start, char_end: its characters in the document, the
    prompt not counted; vector: (d,) float32; last: nothing more of this document; truncated: `max_length` cut it.
    """

    index: int
    section: int
    n_tokens: int
    char_start: int
    char_end: int
    vector: FloatArray
    last: bool
    truncated: bool

    def __repr__(self) -> str:
        shown = {field.name: getattr(self, field.name) for field in fields(self)}
        values = ", ".join(f"{name}={value!r}" for name, value in shown.items() if name != "vector")
        return f"Embedding({values}, vector={self.vector.shape} {self.vector.dtype})"
