"""The tokenizer of the RWKV models against the one in the `rwkv` package, whole and streamed."""

import itertools
import json
import random
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rwkv
from hypothesis import given
from hypothesis import strategies as st
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

from tests.examples import examples
from thalweg.errors import CheckpointError, InvalidInputError, TokenizationError
from thalweg.tokenization.tokenizer import Tokenizer
from thalweg.tokenization.world import WorldBackend, read_vocabulary

FILE = Path(rwkv.__path__[0]) / "rwkv_vocab_v20230424.txt"
LONGEST = 128
CODE = "def add(a, b):\n    return a + b\n\n\tif x == 1:\r\n        print('one')  # two  spaces   three\n"
ATOMS = [
    *"aZé ß½Ⅳ中你好世界。、한글नि019.,!?'’-_()[]<>|/\"`@#\x00\x7f\u0301\u200b\u200d\ufe0f\ufeff\u3000\ufffd\U0010ffff",
    *(" " * n for n in (2, 3, 8, 33, 100)),
    *("\n", "\n\n", "\n" * 40, "\r\n", "\t\t", "\n    ", "\u2028", "-" * 70, "=" * 200, "a" * 50),
    *("e\u0301", "\U0001f600", "\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U0001f3fb", "3\ufe0f\u20e3"),
    *("the", " the", "River", "ing", "日本語", "的", "12345", " don't", "https://", "</div>", "<|endoftext|>", CODE),
]
TEXTS = st.lists(st.sampled_from(ATOMS) | st.characters(exclude_categories=["Cs"]), max_size=40).map("".join)


@cache
def theirs() -> Any:
    return TRIE_TOKENIZER(str(FILE))


@cache
def backend() -> WorldBackend:
    return WorldBackend(read_vocabulary(FILE))


@cache
def entries() -> dict[int, bytes]:
    return {id_: entry for entry, id_ in read_vocabulary(FILE).items()}


def ours(eos_token_id: int | None = 0, bos_token_id: int | None = None) -> Tokenizer:
    return Tokenizer(backend(), eos_token_id=eos_token_id, bos_token_id=bos_token_id)


def spans(text: str, ids: list[int]) -> list[tuple[int, int]]:
    """The characters of which each token has a byte, by looking up each byte's character."""
    chars = [index for index, char in enumerate(text) for _ in char.encode()]
    ends = list(itertools.accumulate(len(entries()[id_]) for id_ in ids))
    return [(chars[start], chars[end - 1] + 1) for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.slow
def test_the_published_vocabulary() -> None:
    vocabulary = read_vocabulary(FILE)
    assert vocabulary == theirs().token2idx
    assert sorted(vocabulary.values()) == list(range(1, 65530))
    assert max(map(len, vocabulary)) == LONGEST
    assert ours().vocab_size == 65530


@pytest.mark.slow
def test_each_entry_alone_and_among_others() -> None:
    """Every entry that is text, and all of them end to end in a random order."""
    texts = [text for entry in entries().values() if "\ufffd" not in (text := entry.decode(errors="replace"))]
    assert len(texts) > 65_000
    assert all(
        ids.tolist() == [theirs().token2idx[text.encode()]]
        for text, ids in zip(texts, ours(None).encode_batch(texts), strict=True)
    )
    random.Random(0).shuffle(texts)
    joined = "".join(texts)
    assert ours(None).encode_batch([joined])[0].tolist() == theirs().encode(joined)


@pytest.mark.slow
@examples(400)
@given(text=TEXTS, prompt=TEXTS, cuts=st.lists(st.integers(0, 10_000), max_size=8), window=st.integers(1, 300))
def test_streamed_is_whole(text: str, prompt: str, cuts: list[int], window: int) -> None:
    expected = theirs().encode(prompt + text)
    data = text.encode()
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = (data[start:stop] for start, stop in itertools.pairwise(places))
    stream = ours().stream(pieces, prompt, with_offsets=True, window_chars=window)
    ids, offsets, last = stream.take_with_offsets(1_000_000)
    assert last
    assert ids.dtype == np.int32
    assert ids.tolist() == [*expected, 0]
    clipped = [tuple(max(char - len(prompt), 0) for char in span) for span in spans(prompt + text, expected)]
    assert list(map(tuple, offsets.tolist())) == [*clipped, (len(text), len(text))]
    assert ours().encode_batch([text, text], prompt)[1].tolist() == ids.tolist()


@pytest.mark.slow
def test_every_cut_of_a_short_text() -> None:
    text = "The river\u2019s   \n\n  deepest line, 最深处 e\u0301 \U0001f469\u200d\U0001f467." + " " * 150 + "=" * 140
    data = text.encode()
    expected = [*theirs().encode(text), 0]
    for cut in range(len(data) + 1):
        assert ours().stream([data[:cut], data[cut:]], window_chars=1).take_all().tolist() == expected
    for window in range(1, len(text)):
        assert ours().stream(iter(text), window_chars=window).take_all().tolist() == expected


def test_a_match_is_decided_by_the_last_byte_it_could_cover() -> None:
    """A vocabulary in which a far byte changes the first token, cut before and behind it."""
    singles = {bytes([byte]): byte + 1 for byte in range(256)}
    far = Tokenizer(WorldBackend(singles | {b"ab": 300, b"abcdefgh": 301}), eos_token_id=None)
    for text, expected in (("abcdefgh", [301]), ("abcdefgx", [300, *b"defghy"]), ("abcdefg", [300, *b"defgh"])):
        for window in range(1, 9):
            assert far.stream(iter(text), window_chars=window).take_all().tolist() == expected


def test_vocabularies_of_other_depths() -> None:
    singles = {bytes([byte]): byte + 1 for byte in range(256)}
    text = "naïve \U0001f600"
    alone = Tokenizer(WorldBackend(singles), eos_token_id=None)
    assert alone.encode_batch([text, ""])[0].tolist() == [byte + 1 for byte in text.encode()]
    longest = Tokenizer(WorldBackend(singles | {b"a" * 255: 300}), eos_token_id=None)
    assert longest.stream("a" * 600, window_chars=1).take_all().tolist() == [300, 300, *[98] * 90]


def test_entries_that_are_no_text_cannot_join_two_texts() -> None:
    singles = {bytes([byte]): byte + 1 for byte in range(256)}
    tokenizer = Tokenizer(WorldBackend(singles | {b"a\xffb": 300, b"a\xff": 301}), eos_token_id=None)
    assert [ids.tolist() for ids in tokenizer.encode_batch(["a", "b"])] == [[98], [99]]


@pytest.mark.slow
def test_one_line_of_five_megabytes_without_a_space() -> None:
    draw = random.Random(1)
    words = [atom.strip() for atom in ATOMS if atom.strip() and not set(atom) & set(" \n")]
    text = "".join(draw.choices(words, k=200_000)) * 9
    assert len(text.encode()) > 5_000_000
    read = 0

    def pieces() -> Iterator[str]:
        nonlocal read
        for start in range(0, len(text), 1000):
            read += len(text[start : start + 1000])
            yield text[start : start + 1000]

    stream = ours().stream(pieces(), with_offsets=True, max_uncut_chars=1 << 14)
    ids, last = [], False
    while not last:
        block, offsets, last = stream.take_with_offsets(5000)
        assert read - offsets[-1, 1] < 40_000  # what is held in memory
        ids.append(block)
    joined = np.concatenate(ids)
    assert joined[:-1].tolist() == theirs().encode(text)
    assert joined[-1] == 0


def test_a_stream_goes_on_from_its_state() -> None:
    text = "".join(ATOMS) * 30
    whole, offsets, _ = ours().stream(text, with_offsets=True).take_with_offsets(1 << 30)
    n_read = 0

    def watched(start: int) -> Iterator[str]:
        nonlocal n_read
        for n_read in range(start + 50, len(text) + 50, 50):
            yield text[n_read - 50 : n_read]

    stream, n = ours().stream(watched(0), with_offsets=True), 0
    for at in (1, 700, 701, len(whole) // 2, len(whole) - 1):
        stream.take(at - n)
        n = at
        state = json.loads(json.dumps(stream.state()))
        stream = ours().resumed(state, stream.ids.copy(), watched(n_read), with_offsets=True)
    ids, places, _ = stream.take_with_offsets(1 << 30)
    assert ids.tolist() == whole[n:].tolist()
    assert places.tolist() == offsets[n:].tolist()


@pytest.mark.slow
def test_batch_is_each_text_alone() -> None:
    draw = random.Random(3)
    texts = ["".join(draw.choices(ATOMS, k=draw.randint(0, 30))) for _ in range(300)] + ["", "x" * 100_000, ""]
    batch = ours(eos_token_id=65535, bos_token_id=7).encode_batch(texts)
    assert [ids.tolist() for ids in batch] == [[7, *theirs().encode(text), 65535] for text in texts]
    assert all(ids.dtype == np.int32 for ids in batch)
    assert ours().encode_batch([]) == []


@pytest.mark.slow
def test_max_length_keeps_eos_and_tells() -> None:
    text = "the river \U0001f469 and the water, " * 3
    whole = theirs().encode(text)
    for max_length in range(1, len(whole) + 3):
        stream = ours().stream(text, max_length=max_length, with_offsets=True, window_chars=5)
        ids, offsets, last = stream.take_with_offsets(1000)
        kept = min(max_length - 1, len(whole))
        assert last
        assert ids.tolist() == [*whole[:kept], 0]
        assert stream.truncated == (kept < len(whole))
        end = len(text) if kept == len(whole) else (spans(text, whole)[kept - 1][1] if kept else 0)
        assert offsets[-1].tolist() == [end, end]


def test_what_is_not_text() -> None:
    with pytest.raises(TokenizationError, match="character 5 is the lone surrogate"):
        ours().stream("lone \ud800 half").take_all()
    with pytest.raises(TokenizationError, match="text 1: character 1 is the lone surrogate"):
        ours().encode_batch(["fine", "x\udc80"])
    with pytest.raises(TokenizationError, match=r"byte 5 \(0xff\) is not valid UTF-8"):
        ours().stream(b"good \xff bad").take_all()
    with pytest.raises(InvalidInputError, match="with_offsets=True"):
        ours().stream("a").take_with_offsets(1)


@pytest.mark.slow
def test_from_folder_by_the_file_alone(tmp_path: Path) -> None:
    """As in the transformers repositories of RWKV-7: settings that name Python code, which is never run."""
    shutil.copy(FILE, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["hf_rwkv_tokenizer.Rwkv", null]}}')
    (tmp_path / "hf_rwkv_tokenizer.py").write_text("raise SystemExit('code of the folder was run')")
    tokenizer = Tokenizer.from_folder(tmp_path, eos_token_id=0)
    assert tokenizer.encode_batch([CODE])[0].tolist() == [*theirs().encode(CODE), 0]
    shutil.copy(FILE, tmp_path / "rwkv_vocab_v2.txt")
    with pytest.raises(CheckpointError, match=r"several RWKV vocabularies \(rwkv_vocab_v2.txt, rwkv_vocab_v20230424"):
        Tokenizer.from_folder(tmp_path, eos_token_id=0)


def test_folder_without_the_file(tmp_path: Path) -> None:
    (tmp_path / "hf_rwkv_tokenizer.py").write_text("raise SystemExit('code of the folder was run')")
    with pytest.raises(CheckpointError, match=r"no tokenizer \(looked for .*rwkv_vocab_\*\.txt.*rwkv_vocab_v20230424"):
        Tokenizer.from_folder(tmp_path, eos_token_id=0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("257 'ab' 3", "line 257 .* stated length: \"257 'ab' 3\""),
        ("257 '' 0", "stated length"),
        ("1 'ab' 2", "line 257 .* repeats an id or an entry"),
        ("257 'a' 1", "repeats an id or an entry"),
        ("0 'ab' 2", r"id outside 1 … 65535"),
        ("65536 'ab' 2", r"id outside 1 … 65535"),
        ("257 ab 2", "no Python literal"),
        ("257 12 2", "stated length"),
        ("257 __import__('os').getcwd() 2", "no Python literal"),
        ("257", r"not `id repr\(entry\) length`: '257'"),
        ("", r"not `id repr\(entry\) length`"),
    ],
)
def test_broken_vocabularies(line: str, message: str, tmp_path: Path) -> None:
    singles = [f"{byte + 1} {bytes([byte])!r} 1" for byte in range(256)]
    file = tmp_path / "rwkv_vocab_test.txt"
    file.write_text("\n".join([*singles, line, "300 'zz' 2"]), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_folder(tmp_path, eos_token_id=0)


def test_incomplete_vocabulary(tmp_path: Path) -> None:
    file = tmp_path / "rwkv_vocab_test.txt"
    file.write_text("\n".join(f"{byte + 1} {bytes([byte])!r} 1" for byte in range(256) if byte != 200))
    with pytest.raises(CheckpointError, match="no entry for the byte 0xc8"):
        Tokenizer.from_folder(tmp_path, eos_token_id=0)
    file.write_bytes(b"1 '\xff' 1")
    with pytest.raises(CheckpointError, match="cannot be read as an RWKV vocabulary"):
        Tokenizer.from_folder(tmp_path, eos_token_id=0)


def test_decode() -> None:
    tokenizer = ours()
    text = "the river – 河流 🦢"
    ids = tokenizer.encode_batch([text])[0]
    assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False) == text
    swan = tokenizer.encode_batch(["🦢"])[0][:-1]
    assert len(swan) > 1
    assert "\ufffd" in tokenizer.decode(swan[:1])
