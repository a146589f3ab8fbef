"""The tokens of one word of any length from its symbols, a few at a time, in memory that does not grow with the word.

A word is what the pre-tokenizer gives to the model; its symbols are what the model starts from (characters, or bytes).

BPE: a boundary that no merge crosses leaves both sides with the encoding that each has alone. So tokens t1 … tn are the
encoding of what they spell if, and only if, each two neighbours are the encoding of what those two spell: up to the
first merge across a boundary both sides have done just what they do in the pair alone. It follows that every prefix of
a word has one last token, the entry that ends there and may stand beside the last token of what is before it, and that
the chain of last tokens is the prefix's encoding. Ranks may be in any order for that; of equal ones the leftmost is
first. (Incremental BPE: the `bpe` crate of rust-gems, 2024.)

Unigram: Viterbi's algorithm has the same form, with the score of the best path in place of the neighbour. Scores are
summed from the start of the word, in float64 and in the order of the library, so that even ties fall the same way.

A token of a longer word that crosses the end of what is known starts within the last `longest` positions. What the
chains from all of these share is part of the encoding of every longer word: it is given out and forgotten.

WordPiece and WordLevel turn a word that is longer than they allow, or than any entry, into one unknown token.

Legend: n symbols that are known but not decided; V ids.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import tokenizers

from thalweg.tokenization import last_tokens
from thalweg.tokenization.backend import Block

_LARGEST_ID = 1 << 24
_MOST_CHARS = 1 << 62  # of a text
_LONGEST_ENTRY = 1024  # symbols; entries of published tokenizers have up to 256

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


class UnprovenError(Exception):
    """A setting, or a character, for which this file cannot prove its claim; the text names it."""


class Symbols(NamedTuple):
    """symbols, starts, ends (k,): what a model starts from, and the characters that each stands for."""

    symbols: Int32
    starts: Int64
    ends: Int64


@dataclass
class Path:
    """The undecided end of a word: plain data, to be copied and saved.

    symbols, tokens, lengths (n,): each symbol, and the last token of the prefix that ends with it, in symbols.
    starts, ends (n,): the characters of the document that each symbol stands for.
    best (n + 1,): scores of the prefixes, for Unigram.
    before: the last token that was decided, -1 at the start of the word.
    unknown, unknown_span: symbols and characters of unknown tokens that become one with those that follow.
    """

    symbols: Int32 = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    tokens: Int32 = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    lengths: Int32 = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    starts: Int64 = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    ends: Int64 = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    best: Float64 = field(default_factory=lambda: np.zeros(1))
    before: int = -1
    unknown: list[int] = field(default_factory=list)
    unknown_span: list[int] | None = None

    @property
    def size(self) -> int:
        """Symbols held in memory."""
        return len(self.symbols) + len(self.unknown)

    def add(self, further: Symbols) -> None:
        """Symbols whose last tokens are yet to be found."""
        room = np.zeros(len(further.symbols), dtype=np.int32)
        self.symbols = np.concatenate([self.symbols, further.symbols])
        self.tokens, self.lengths = np.concatenate([self.tokens, room]), np.concatenate([self.lengths, room])
        self.starts, self.ends = (
            np.concatenate([self.starts, further.starts]),
            np.concatenate([self.ends, further.ends]),
        )
        self.best = np.concatenate([self.best, room])

    def forget(self, n: int) -> None:
        """The first n symbols, which end with a token and are decided."""
        self.before = int(self.tokens[n - 1])
        for name in _ARRAYS:
            setattr(self, name, getattr(self, name)[n:].copy())

    def copy(self) -> "Path":
        return replace(self, unknown=list(self.unknown))  # arrays are never changed in place

    def plain(self) -> dict[str, Any]:
        """What `Segmenter.restored` makes it of again, as JSON holds it: last tokens are found anew."""
        return {
            "symbols": self.symbols.tolist(),
            "starts": self.starts.tolist(),
            "ends": self.ends.tolist(),
            "best": float(self.best[0]),
            "before": self.before,
            "unknown": list(self.unknown),
            "unknown_span": None if self.unknown_span is None else list(self.unknown_span),
        }


def _path_of(plain: Mapping[str, Any], symbols: range, ids: range) -> tuple[Path, Symbols]:
    """A path without its symbols, and those. What is stated is checked: symbols and ids are indices elsewhere.

    Raises:
        ValueError, TypeError, KeyError: it cannot be that of any word.
    """
    rows = [plain[name] for name in ("symbols", "starts", "ends")]
    span = plain["unknown_span"]
    for row in (*rows, plain["unknown"], [] if span is None else span):
        if not isinstance(row, list) or any(type(value) is not int or abs(value) > _MOST_CHARS for value in row):
            raise ValueError("a word's path holds what are no whole numbers")
    if len(set(map(len, rows))) != 1 or (span is not None and len(span) != 2):
        raise ValueError("a word's path has parts of different lengths")
    if any(symbol not in symbols for symbol in (*rows[0], *plain["unknown"])):
        raise ValueError("a word's path has a symbol that the tokenizer lacks")
    before, best = plain["before"], plain["best"]
    if type(before) is not int or (before != -1 and before not in ids):
        raise ValueError(f"a word's path has the id {before!r:.80}")
    if not isinstance(best, float) or not math.isfinite(best):
        raise ValueError(f"a word's path has the score {best!r:.80}")
    path = Path(best=np.array([best]), before=before, unknown=list(plain["unknown"]), unknown_span=span and list(span))
    starts, ends = (np.array(row, dtype=np.int64) for row in rows[1:])
    return path, Symbols(np.array(rows[0], dtype=np.int32), starts, ends)


_ARRAYS = ("symbols", "tokens", "lengths", "starts", "ends", "best")


class Segmenter(Protocol):
    """The model of one tokenizer, for words of more than `least` characters."""

    least: int

    def symbols(self, text: str, *, first: bool, last: bool) -> Sequence[Sequence[int]]:
        """Those of each character of a part of a word, `first` or `last` of it. Raises UnprovenError."""
        ...

    def extend(self, path: Path, further: Symbols) -> Block:
        """The tokens that further symbols decide; changes `path`."""
        ...

    def finish(self, path: Path) -> Block:
        """The other tokens: the word has ended."""
        ...

    def restored(self, plain: Mapping[str, Any]) -> Path:
        """The path of which `Path.plain` gave this. Raises ValueError, TypeError or KeyError if it can be that of no
        word."""
        ...


def make_segmenter(library: tokenizers.Tokenizer, kernels: ModuleType | None = None) -> Segmenter:
    """The model of `library`. `kernels` has the names of `last_tokens`; None takes the compiled ones if they are there.

    Raises:
        UnprovenError: one of its settings.
    """
    model = json.loads(library.to_str())["model"]
    if kernels is None:
        kernels = _kernels()
    if model["type"] == "BPE":
        return _Bpe(model, kernels)
    if model["type"] == "Unigram":
        return _Unigram(model, kernels)
    return _WholeWord(model)


def _kernels() -> ModuleType:
    from thalweg import kernels  # not before it is needed: it takes PyTorch a while to be imported
    from thalweg.kernels import native

    if native.BACKEND not in kernels.enabled():
        return last_tokens
    from thalweg.kernels.native import segment

    return segment


class _Chains:
    """What BPE and Unigram share: chains of last tokens, and unknown tokens in a row."""

    def __init__(self, kernels: ModuleType, longest: int, unknown: int | None, byte_ids: Mapping[int, int]) -> None:
        if longest > _LONGEST_ENTRY:
            raise UnprovenError(f"its vocabulary has an entry of {longest} symbols (more than {_LONGEST_ENTRY})")
        self._shared = kernels.shared
        self._longest = longest
        self._unknown = unknown  # the id of tokens that are fused with their like, None for none
        self._byte_ids = byte_ids  # for what was fused, byte → id

    def _decided(self, path: Path) -> Block:
        return self._give_out(path, self._shared(path.lengths, self._longest), final=False)

    def finish(self, path: Path) -> Block:
        ends = self._shared(path.lengths, 1) if len(path.symbols) else np.zeros(0, dtype=np.int32)
        return self._give_out(path, ends, final=True)

    def _give_out(self, path: Path, ends: Int32, *, final: bool) -> Block:
        """The tokens that end at symbols `ends`, all up to the last of them."""
        begins = ends - path.lengths[ends - 1]
        ids, starts, stops = path.tokens[ends - 1], path.starts[begins], path.ends[ends - 1]
        if self._unknown is not None and (path.unknown_span is not None or (ids == self._unknown).any()):
            ids, starts, stops = self._fuse(path, ids, starts, stops, ends, final=final)
        if len(ends):
            path.forget(int(ends[-1]))
        return Block(ids, np.stack([starts, stops], axis=1))

    def _fuse(
        self, path: Path, ids: Int32, starts: Int64, stops: Int64, ends: Int32, *, final: bool
    ) -> tuple[Int32, Int64, Int64]:
        """Unknown tokens in a row become one, or the bytes of all their characters. One at the end waits in `path`."""
        assert self._unknown is not None
        symbols = path.symbols[: ends[-1] if len(ends) else 0].tolist()
        if path.unknown_span is not None:
            ids = np.concatenate([[np.int32(self._unknown)], ids])
            starts = np.concatenate([path.unknown_span[:1], starts])
            stops = np.concatenate([path.unknown_span[1:], stops])
            symbols = path.unknown + symbols
            ends = np.concatenate([[0], ends]).astype(np.int32) + np.int32(len(path.unknown))
            path.unknown, path.unknown_span = [], None
        is_unknown = ids == self._unknown
        opens = np.flatnonzero(~(is_unknown & np.concatenate([[False], is_unknown[:-1]])))
        closes = np.append(opens[1:], len(ids)) - 1
        ids, starts, stops, ends = ids[opens], starts[opens], stops[closes], ends[closes]
        if is_unknown[-1] and not final:
            path.unknown_span = [int(starts[-1]), int(stops[-1])]
            if self._byte_ids:
                path.unknown = symbols[ends[-2] if len(ends) > 1 else 0 :]
            ids, starts, stops, ends = ids[:-1], starts[:-1], stops[:-1], ends[:-1]
        return self._spelled_in_bytes(symbols, ids, starts, stops, ends) if self._byte_ids else (ids, starts, stops)

    def _spelled_in_bytes(
        self, symbols: list[int], ids: Int32, starts: Int64, stops: Int64, ends: Int32
    ) -> tuple[Int32, Int64, Int64]:
        parts = [[token] for token in ids.tolist()]
        for i in np.flatnonzero(ids == self._unknown).tolist():
            text = "".join(map(chr, symbols[ends[i - 1] if i else 0 : ends[i]]))
            found = [self._byte_ids.get(byte) for byte in text.encode()]
            if None not in found and text != self._unknown_text:
                parts[i] = [token for token in found if token is not None]
        counts = [len(part) for part in parts]
        flat = np.array([token for part in parts for token in part], dtype=np.int32)
        return flat, np.repeat(starts, counts), np.repeat(stops, counts)

    _unknown_text = ""  # of the unknown token: spelled out in a text it is that token


class _Bpe(_Chains):
    def __init__(self, model: Mapping[str, Any], kernels: ModuleType) -> None:
        vocabulary: dict[str, int] = model["vocab"]
        self._prefix = model.get("continuing_subword_prefix") or ""
        self._suffix = model.get("end_of_word_suffix") or ""
        merges = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        results = [left + right[len(self._prefix) :] for left, right in merges]
        if max(vocabulary.values()) > _LARGEST_ID or not vocabulary.keys() >= set(results):
            raise UnprovenError("its merges and its vocabulary do not fit together")
        triples = [
            (vocabulary[left], vocabulary[right], vocabulary[result])
            for (left, right), result in zip(merges, results, strict=True)
        ]
        by_id: list[tuple[int, ...]] = [()] * (max(vocabulary.values()) + 1)
        for id_ in vocabulary.values():
            by_id[id_] = (id_,)
        sizes = [len(text.removeprefix(self._prefix)) for text in results]
        for _, (left, right, result) in sorted(zip(sizes, triples, strict=True), key=lambda pair: pair[0]):
            by_id[result] = by_id[left] + by_id[right]  # shorter ones first: both parts are known
        for text, (left, right, result) in zip(results, triples, strict=True):
            if by_id[result] != by_id[left] + by_id[right]:
                raise UnprovenError(f"its merges make {text!r} of different symbols")
        self._unknown_text = model.get("unk_token") or ""
        fused = vocabulary.get(self._unknown_text) if model.get("fuse_unk") else None
        super().__init__(kernels, max(map(len, by_id)), fused, {})
        self.least = max(map(len, vocabulary)) if model.get("ignore_merges") else 0
        self._vocabulary = vocabulary
        self._n_ids = len(by_id)
        self._byte_fallback = bool(model.get("byte_fallback"))
        self._byte_ids_of = [vocabulary.get(f"<0x{byte:02X}>") for byte in range(256)] if self._byte_fallback else []
        self._in_merges = {id_ for triple in triples for id_ in triple}
        symbols, starts = _flat(by_id)
        self._last_tokens = kernels.Bpe(np.array(triples, dtype=np.int32).reshape(-1, 3), symbols, starts)

    def symbols(self, text: str, *, first: bool, last: bool) -> Sequence[Sequence[int]]:
        found: list[Sequence[int]] = []
        for i, char in enumerate(text):
            name = char if first and i == 0 else self._prefix + char
            if last and i == len(text) - 1:
                name += self._suffix
            id_ = self._vocabulary.get(name)
            found.append([id_] if id_ is not None else self._symbols_of_unknown(char, name))
        return found

    def _symbols_of_unknown(self, char: str, name: str) -> Sequence[int]:
        if self._byte_fallback:
            if None in self._byte_ids_of:
                raise UnprovenError("its model has byte_fallback but no entries for all bytes")
            return [id_ for byte in name.encode() if (id_ := self._byte_ids_of[byte]) is not None]
        id_ = self._vocabulary.get(self._unknown_text)
        if id_ is None:
            raise UnprovenError(f"its model has no entry for {char!r} and no unk_token")
        if id_ in self._in_merges or len(self._unknown_text) == 1:
            raise UnprovenError(f"its model has no entry for {char!r} and merges its unk_token")
        return [id_]

    def extend(self, path: Path, further: Symbols) -> Block:
        is_known = self._add(path, further)
        assert is_known, "every prefix of a word has an encoding"
        return self._decided(path)

    def restored(self, plain: Mapping[str, Any]) -> Path:
        ids = range(self._n_ids)
        path, symbols = _path_of(plain, ids, ids)
        if not self._add(path, symbols):
            raise ValueError("a word's path has symbols that no word has")
        return path

    def _add(self, path: Path, further: Symbols) -> bool:
        """Find the last tokens of further symbols; whether there is one for each."""
        begin = len(path.symbols)
        path.add(further)
        done = self._last_tokens.extend(path.symbols, path.tokens, path.lengths, path.before, begin)
        return bool(done == len(path.symbols))


class _Unigram(_Chains):
    def __init__(self, model: Mapping[str, Any], kernels: ModuleType) -> None:
        vocabulary: list[tuple[str, float]] = model["vocab"]
        ids = {text: id_ for id_, (text, _) in enumerate(vocabulary)}  # of an entry that is there twice the last one
        unknown = model.get("unk_id")
        if unknown is None:
            raise UnprovenError("its model has no unk_id")
        scores = np.array([score for _, score in vocabulary], dtype=np.float64)
        if not scores.min() <= 0:
            raise UnprovenError("its model has only scores above 0")
        bytes_ = {byte: ids[text] for byte in range(256) if (text := f"<0x{byte:02X}>") in ids}
        super().__init__(kernels, max(map(len, ids)), unknown, bytes_ if model.get("byte_fallback") else {})
        self._unknown_text = vocabulary[unknown][0]
        self._n_ids = len(vocabulary)
        self.least = 0
        by_id = [tuple(map(ord, text)) if ids[text] == id_ else () for id_, (text, _) in enumerate(vocabulary)]
        symbols, starts = _flat(by_id)
        # A character without an entry costs 10 more than the worst entry; see K_UNK_PENALTY in the library.
        self._last_tokens = kernels.Unigram(symbols, starts, scores, unknown, float(scores.min()) - 10.0)

    def symbols(self, text: str, *, first: bool, last: bool) -> Sequence[Sequence[int]]:
        return [[ord(char)] for char in text]

    def extend(self, path: Path, further: Symbols) -> Block:
        self._add(path, further)
        return self._decided(path)

    def restored(self, plain: Mapping[str, Any]) -> Path:
        path, symbols = _path_of(plain, range(0x110000), range(self._n_ids))
        self._add(path, symbols)
        return path

    def _add(self, path: Path, further: Symbols) -> None:
        begin = len(path.symbols)
        path.add(further)
        self._last_tokens.extend(path.symbols, path.tokens, path.lengths, path.best, begin)


class _WholeWord:
    """WordPiece and WordLevel: a word that is too long is one unknown token."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        self.least = model.get("max_input_chars_per_word", max(map(len, model["vocab"])))
        if model["unk_token"] not in model["vocab"]:
            raise UnprovenError(f"its vocabulary lacks its unk_token {model['unk_token']!r}")
        self._unknown = model["vocab"][model["unk_token"]]

    def symbols(self, text: str, *, first: bool, last: bool) -> Sequence[Sequence[int]]:
        return [[0]] * len(text)

    def extend(self, path: Path, further: Symbols) -> Block:
        if len(further.symbols):
            first, last = int(further.starts[0]), int(further.ends[-1])
            path.unknown_span = [first if path.unknown_span is None else path.unknown_span[0], last]
        return Block(np.zeros(0, dtype=np.int32), np.zeros((0, 2), dtype=np.int64))

    def restored(self, plain: Mapping[str, Any]) -> Path:
        path, _ = _path_of(plain, range(0), range(0))
        if path.unknown_span is None:
            raise ValueError("a word's path has nothing in it")
        return path

    def finish(self, path: Path) -> Block:
        return Block(np.array([self._unknown], dtype=np.int32), np.array([path.unknown_span], dtype=np.int64))


def _flat(by_id: Sequence[tuple[int, ...]]) -> tuple[Int32, Int64]:
    starts = np.cumsum([0, *map(len, by_id)], dtype=np.int64)
    return np.array([symbol for symbols in by_id for symbol in symbols], dtype=np.int32), starts
