"""The tokenizer of the RWKV models for transformers' AutoTokenizer, with the ids of `thalweg.tokenization.world`.

A token is a run of bytes, which need not be whole characters. Its name among transformers' tokens has one character for
each byte, of the same number; `convert_tokens_to_string` turns names back into text.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

from thalweg.checkpoints.embedding import MAX_EOS
from thalweg.errors import InvalidInputError
from thalweg.tokenization.world import WorldBackend, read_vocabulary

END_OF_TEXT = "<|rwkv_tokenizer_end_of_text|>"
"""The name of id 0, which ends a text and never comes out of one."""


class RWKVWorldTokenizer(PreTrainedTokenizer):
    """Longest match on bytes. Id 0 is EOS, BOS and padding; a text that spells its name has no such id."""

    vocab_files_names = {"vocab_file": "rwkv_vocab_v20230424.txt"}  # noqa: RUF012 - transformers' way
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, *, n_eos: int = 0, **settings: Any) -> None:
        """`vocab_file`: `rwkv_vocab_v20230424.txt`; `n_eos`: EOS at the end of every text; embedding needs one.

        Padding goes to the left unless `padding_side` says otherwise. `settings` are those of every tokenizer of
        transformers; the special tokens are fixed.
        """
        if type(n_eos) is not int or not 0 <= n_eos <= MAX_EOS:  # tokenizer_config.json may say anything
            raise InvalidInputError(f"n_eos must be from 0 to {MAX_EOS}, not {n_eos!r:.80}")
        vocabulary = read_vocabulary(Path(vocab_file))
        self.vocab_file = vocab_file
        self.n_eos = n_eos
        self._world = WorldBackend(vocabulary)
        self._ids = {END_OF_TEXT: 0, **{entry.decode("latin-1"): id_ for entry, id_ in vocabulary.items()}}
        self._names = {id_: name for name, id_ in self._ids.items()}
        fixed = {f"{kind}_token": END_OF_TEXT for kind in ("eos", "bos", "pad")}
        settings = {"padding_side": "left", "split_special_tokens": True, **settings, **fixed}
        super().__init__(n_eos=n_eos, **settings)  # type: ignore[no-untyped-call]

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._world.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Every token's name and id."""
        return dict(self._ids)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [self._names[id_] for id_ in self._world.encode_batch([text])[0].tolist()]

    def _convert_token_to_id(self, token: str) -> int:
        if token not in self._ids:
            raise InvalidInputError(f"{token!r} is no token of {self.vocab_file}")
        return self._ids[token]

    def _convert_id_to_token(self, index: int) -> str:
        if index not in self._names:
            raise InvalidInputError(f"{index} is no id of {self.vocab_file}")
        return self._names[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(token.encode("latin-1") for token in tokens).decode(errors="replace")

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """One text after the other, each with its `n_eos` EOS."""
        end = [0] * self.n_eos
        return token_ids_0 + end + ([] if token_ids_1 is None else token_ids_1 + end)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy the vocabulary file."""
        name = self.vocab_files_names["vocab_file"]
        target = Path(save_directory, f"{filename_prefix}-{name}" if filename_prefix else name)
        if not target.exists() or not target.samefile(self.vocab_file):
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoTokenizer") -> None:
        """Nothing to do: this code is installed and need not be copied into folders (see `checkpoints/auto_map.py`)."""
