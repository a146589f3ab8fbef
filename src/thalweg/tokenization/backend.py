"""What `thalweg.tokenization.tokenizer` asks of a tokenizer: the ids of short texts, and a window over one long
text.

BOS, EOS and the length limit are none of a backend's business: they are put on by `Tokenizer` and `TokenStream`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

WINDOW_CHARS = 1 << 12  # of a stream, which makes others wait for 2 ms; speed differs little from 2 Ki to 64 Ki
WHOLE_CHARS = 1 << 14  # of a text that is encoded whole beside others
MAX_UNCUT_CHARS = 1 << 20  # 200 to 650 MiB in the worst case

SpecialTokens = Literal["token", "text"]
"""What the literal of a special token in a text ("<|endoftext|>") is read as."""


class Block(NamedTuple):
    """Some ids of a text in order."""

    ids: npt.NDArray[np.int32]  # (n,)
    offsets: npt.NDArray[np.int64] | None  # (n, 2): start and end character of each, if asked for

    def part(self, start: int, stop: int | None) -> "Block":
        return Block(self.ids[start:stop], None if self.offsets is None else self.offsets[start:stop])

    @staticmethod
    def join(blocks: Sequence["Block"]) -> "Block":
        """Blocks of one text, all with offsets or all without."""
        if len(blocks) == 1:
            return blocks[0]
        offsets = [block.offsets for block in blocks if block.offsets is not None]
        return Block(np.concatenate([block.ids for block in blocks]), np.concatenate(offsets) if offsets else None)

    @staticmethod
    def specials(ids: Sequence[int], char: int, *, with_offsets: bool) -> "Block":
        """Ids that stand for no characters, at one place of the text."""
        offsets = np.full((len(ids), 2), char, dtype=np.int64) if with_offsets else None
        return Block(np.array(ids, dtype=np.int32), offsets)


EMPTY = Block(np.zeros(0, dtype=np.int32), np.zeros((0, 2), dtype=np.int64))


class Window(Protocol):
    """One text on its way through a tokenizer: pieces go in, ids come out once what follows cannot change them.

    What it knows is plain data: it can be copied in the middle of a text, and saved and restored.
    """

    @property
    def end(self) -> int:
        """Characters of the text so far, the skipped ones not counted."""
        ...

    def push(self, text: str) -> list[Block]:
        """The ids that the next piece of the text decides. Raises TokenizationError where they cannot be had in bounded
        memory."""
        ...

    def flush(self) -> list[Block]:
        """The ids that the text so far decides, however little of it there is; what is left over stays short. Cheap
        where nothing has come since."""
        ...

    def finish(self) -> list[Block]:
        """The other ids: the text has ended. Nothing can be pushed afterwards."""
        ...

    def copy(self) -> "Window":
        """An independent one that has read the same text."""
        ...

    def state(self) -> dict[str, Any]:
        """All that it knows, as JSON holds it: `Backend.restored` makes it again."""
        ...


class Backend(Protocol):
    """The tokenizer of one checkpoint, without special tokens of its own."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...

    def reading(self, special_tokens: SpecialTokens) -> "Backend":
        """This tokenizer, with the literals of special tokens read so."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """The ids (n,) of each text. The texts hold no lone surrogate and are small enough to be encoded at once."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of ids below `vocab_size`. What is no UTF-8 becomes "\ufffd"."""
        ...

    def window(self, *, with_offsets: bool, skip: int, window_chars: int, max_uncut_chars: int) -> Window:
        """For one text, of whose characters the first `skip` (the prompt) count as none in offsets."""
        ...

    def restored(self, state: Mapping[str, Any]) -> Window:
        """The window of this state. Raises ValueError, TypeError or KeyError if it cannot be that of any text."""
        ...
