"""The "world" tokenizer of the RWKV models: from each byte on, the longest entry of the vocabulary, over and over.

The vocabulary file has a line `id repr(entry) length-in-bytes` per entry. All 256 single bytes are entries, so that any
text has ids. Nothing comes before the matching and nothing after it, and an entry is decided by the bytes it could
cover: a text may be cut wherever as many bytes follow as the longest entry has.

Legend: the entries form a trie, whose nodes are the prefixes of entries. It is stored as a double array (Aoe 1989): the
child of node s by byte c is t = base[s] + c, and it exists if parent[t] = s. A leaf has base 0, which leads to nodes
with another parent. The longest entry is looked up for all bytes of a window side by side, one level of the trie at a
time, and then followed from the first byte on.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thalweg.checks import whole_number
from thalweg.errors import CheckpointError
from thalweg.storage.untrusted_json import check_size
from thalweg.tokenization.backend import Block, SpecialTokens

_LINE = re.compile(r"([0-9]{1,9}) (.+) ([0-9]{1,9})")
_MAX_ID = 65535  # the largest of an RWKV vocabulary
_MAX_LENGTH = 255  # so that lengths are single bytes
_MOST = 1 << 61  # characters of a text
_MOST_REST = 1 << 24  # bytes of a window that are not given out
_NOT_UTF8 = b"\xff"  # occurs in no text: an entry of its own, put between texts
_WINDOW_BYTES = 1 << 16  # the tables of a window and of the trie stay in cache


def read_vocabulary(file: Path) -> dict[bytes, int]:
    """Entry → id. Raises CheckpointError naming the first line that is not as it must be."""
    vocabulary: dict[bytes, int] = {}
    ids: set[int] = set()
    check_size(file)
    try:
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read as an RWKV vocabulary: {error}") from error
    for number, line in enumerate(lines, start=1):
        id_, entry = _read_line(line, f"line {number} of {file}")
        if entry in vocabulary or id_ in ids:
            raise CheckpointError(f"line {number} of {file} repeats an id or an entry: {line[:80]!r}")
        vocabulary[entry] = id_
        ids.add(id_)
    missing = [byte for byte in range(256) if bytes([byte]) not in vocabulary]
    if missing:
        raise CheckpointError(f"{file} is incomplete: it has no entry for the byte {missing[0]:#04x}")
    return vocabulary


def _read_line(line: str, where: str) -> tuple[int, bytes]:
    parts = _LINE.fullmatch(line)
    if parts is None:
        raise CheckpointError(f"{where} is not `id repr(entry) length`: {line[:80]!r}")
    try:
        entry = ast.literal_eval(parts[2])
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise CheckpointError(f"{where} holds no Python literal: {line[:80]!r}") from error
    if isinstance(entry, str):
        entry = entry.encode(errors="surrogatepass")
    if not isinstance(entry, bytes) or not 1 <= len(entry) <= _MAX_LENGTH or len(entry) != int(parts[3]):
        raise CheckpointError(
            f"{where} is not an entry of 1 to {_MAX_LENGTH} bytes of the stated length: {line[:80]!r}"
        )
    if not 1 <= int(parts[1]) <= _MAX_ID:
        raise CheckpointError(f"{where} has an id outside 1 … {_MAX_ID}: {line[:80]!r}")
    return int(parts[1]), entry


class WorldBackend:
    """The tokenizer of one vocabulary. Id 0, which ends a text, is no entry and never comes out of a text."""

    def __init__(self, vocabulary: Mapping[bytes, int]) -> None:
        self._trie = _Trie(vocabulary)
        self._entries = {id_: entry for entry, id_ in vocabulary.items()}
        self._separator = vocabulary[_NOT_UTF8]
        self.vocab_size = max(vocabulary.values()) + 1

    def reading(self, special_tokens: SpecialTokens) -> "WorldBackend":
        """A text is text in any case: the vocabulary has no literals of special tokens."""
        return self

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        data = b"".join(text.encode() + _NOT_UTF8 for text in texts)
        ids = self._trie.tokens(data, len(data))[0]
        ends = np.flatnonzero(ids == self._separator)
        return [ids[start:end] for start, end in zip([0, *(ends + 1)], ends, strict=False)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The id that ends a text has none, whether it is skipped or not."""
        return b"".join(self._entries.get(int(each), b"") for each in ids).decode(errors="replace")

    def window(self, *, with_offsets: bool, skip: int, window_chars: int, max_uncut_chars: int) -> "_WorldWindow":
        """Any text can be cut: `max_uncut_chars` has no meaning here."""
        return _WorldWindow(self._trie, _WorldState(with_offsets, window_chars, -skip, -skip))

    def restored(self, state: Mapping[str, Any]) -> "_WorldWindow":
        """See `Backend`. Raises ValueError, TypeError or KeyError for what cannot be that of any text."""
        n = {name: whole_number(name, state[name], -_MOST, _MOST) for name in ("chars_read", "chars_done")}
        rest = bytes.fromhex(state["rest"])
        if _NOT_UTF8 in rest or len(rest) > _MOST_REST:
            raise ValueError("what is left of the text is no text")
        window_chars = whole_number("window_chars", state["window_chars"], 1)
        waiting = whole_number("chars_waiting", state["chars_waiting"], 0, window_chars)
        return _WorldWindow(
            self._trie, _WorldState(bool(state["with_offsets"]), window_chars, **n, rest=rest, chars_waiting=waiting)
        )


@dataclass
class _WorldState:
    """Plain data: settings, and where a text is on its way."""

    with_offsets: bool
    window_chars: int
    chars_read: int
    chars_done: int  # characters that begin in a byte given out
    rest: bytes = b""  # read, not given out
    chars_waiting: int = 0  # read since ids were looked for


class _WorldWindow:
    """One text on its way through the tokenizer.

    An entry may end inside a character. Its offsets take in every character of which it has a byte, so that the ids of
    one character can have the same offsets.
    """

    def __init__(self, trie: "_Trie", state: _WorldState) -> None:
        self._trie = trie
        self._state = state

    @property
    def end(self) -> int:
        return self._state.chars_read

    def push(self, text: str) -> list[Block]:
        state = self._state
        state.rest += text.encode()
        state.chars_read += len(text)
        state.chars_waiting += len(text)
        if state.chars_waiting <= state.window_chars:
            return []
        state.chars_waiting = 0
        return [self._block(max(0, len(state.rest) - self._trie.max_length + 1))]

    def flush(self) -> list[Block]:
        self._state.chars_waiting = 0
        return [self._block(max(0, len(self._state.rest) - self._trie.max_length + 1))]

    def finish(self) -> list[Block]:
        return [self._block(len(self._state.rest))]

    def copy(self) -> "_WorldWindow":
        return _WorldWindow(self._trie, replace(self._state))

    def state(self) -> dict[str, Any]:
        return vars(self._state) | {"rest": self._state.rest.hex()}

    def _block(self, decided: int) -> Block:
        """The ids that begin before byte `decided` of what is left."""
        state = self._state
        ids, starts, stop = self._trie.tokens(state.rest, decided)
        offsets = self._offsets(state.rest, starts, stop) if state.with_offsets else None
        state.rest = state.rest[stop:]
        return Block(ids, offsets)

    def _offsets(self, data: bytes, starts: npt.NDArray[np.int64], stop: int) -> npt.NDArray[np.int64]:
        """Offsets of the ids from byte 0 to `stop` of `data`, int64 (n, 2)."""
        leads = np.frombuffer(data, dtype=np.uint8)[:stop] & 0xC0 != 0x80
        char_after = self._state.chars_done + np.cumsum(leads)  # the first character that begins after this byte
        if stop:
            self._state.chars_done = int(char_after[-1])
        ends = np.append(starts[1:], stop)[: len(starts)]
        return np.maximum(np.stack([char_after[starts] - 1, char_after[ends - 1]], axis=1), 0)


class _Trie:
    """All entries, and for each of its nodes the longest entry on the way to it."""

    def __init__(self, vocabulary: Mapping[bytes, int]) -> None:
        # What UTF-8 never holds but in `_NOT_UTF8` alone cannot match in a text.
        entries = {entry: id_ for entry, id_ in vocabulary.items() if _NOT_UTF8 not in entry or len(entry) == 1}
        self.max_length = max(map(len, entries))
        self._padding = _NOT_UTF8 * self.max_length
        children: dict[bytes, list[int]] = {}
        for prefix in sorted({entry[:stop] for entry in entries for stop in range(1, len(entry) + 1)}):
            children.setdefault(prefix[:-1], []).append(prefix[-1])
        bases = _place(children)
        size = max(bases.values()) + 256
        self._base, self._parent = np.zeros(size, dtype=np.int32), np.full(size, -1, dtype=np.int32)
        self._id, self._length = np.zeros(size, dtype=np.int32), np.zeros(size, dtype=np.uint8)
        nodes = {b"": 0}
        for prefix in sorted(children, key=len):
            node = nodes[prefix]
            self._base[node] = bases[prefix]
            for byte in children[prefix]:
                longer, child = prefix + bytes([byte]), bases[prefix] + byte
                nodes[longer] = child
                self._parent[child] = node
                known = longer in entries
                self._id[child] = entries[longer] if known else self._id[node]
                self._length[child] = len(longer) if known else self._length[node]
        self._after_pair, self._pair_goes_on = self._pairs(nodes)

    def _pairs(self, nodes: Mapping[bytes, int]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """For each two bytes, first byte first, (65536,): the deepest node that they lead to, and if both count."""
        pairs = [bytes([first, second]) for first in range(256) for second in range(256)]
        goes_on = np.array([pair in nodes for pair in pairs])
        return np.array([nodes.get(pair, nodes[pair[:1]]) for pair in pairs], dtype=np.int32), goes_on

    def tokens(self, data: bytes, stop: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], int]:
        """The tokens of `data` that begin before byte `stop`: their ids (n,), their first bytes (n,), and the byte
        after the last of them."""
        padded = np.frombuffer(data + self._padding, dtype=np.uint8)
        ids, starts = [np.zeros(0, dtype=np.int32)], [np.zeros(0, dtype=np.int64)]
        position = 0
        while position < stop:
            count = min(_WINDOW_BYTES, stop - position)
            nodes = self._deepest(padded[position : position + count + self.max_length], count)
            lengths = self._length.take(nodes).tobytes()
            begins, at = [], 0
            while at < count:
                begins.append(at)
                at += lengths[at]
            chosen = np.array(begins)
            ids.append(self._id.take(nodes.take(chosen)))
            starts.append(chosen + position)
            position += at
        return np.concatenate(ids), np.concatenate(starts), position

    def _deepest(self, window: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.int32]:
        """The deepest node that the bytes from each of the first `count` positions on lead to, int32 (count,)."""
        wide = window.astype(np.int32)
        pairs = wide[:count] << 8
        pairs |= wide[1 : count + 1]
        nodes = self._after_pair.take(pairs)
        positions = np.flatnonzero(self._pair_goes_on.take(pairs))
        node = nodes.take(positions)
        level = 2
        while len(positions):
            child = self._base.take(node)
            child += wide[level:].take(positions)
            found = np.flatnonzero(self._parent.take(child) == node)
            positions, node = positions.take(found), child.take(found)
            nodes[positions] = node
            level += 1
        return nodes


def _place(children: Mapping[bytes, Sequence[int]]) -> dict[bytes, int]:
    """A base for each node, so that no two children of any nodes fall together.

    The root comes first, with all 256 bytes. Nodes with many children are placed one after the other, always further
    on; those with one child, which are most, fill the gaps.
    """
    bases: dict[bytes, int] = {}
    taken: set[int] = set()
    base = gap = 1
    for prefix in sorted(children, key=lambda prefix: -len(children[prefix])):
        offsets = children[prefix]
        if len(offsets) > 1:
            while any(base + offset in taken for offset in offsets):
                base += 1
            bases[prefix] = base
        else:
            while gap in taken:
                gap += 1
            bases[prefix] = gap - offsets[0]
        taken.update(bases[prefix] + offset for offset in offsets)
    return bases
