"""Any form of a document gives the same ids; what is no text is refused with its place."""

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from tests.tokenization.shapes import EOS, TEXTS, ours, pieces, reference
from thalweg.errors import TokenizationError


@examples(100)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 10_000), max_size=30), window=st.integers(1, 40))
def test_bytes_may_be_cut_inside_a_character(text: str, cuts: list[int], window: int) -> None:
    stream = ours("shipped").stream(pieces(text.encode(), cuts), window_chars=window)
    assert stream.take_all().tolist() == [*reference("shipped").encode(text).ids, EOS]


def test_every_kind_of_source(tmp_path: Path) -> None:
    text = "\ufeffthe river, 日本語 and the water\n" * 20
    file = tmp_path / "text.txt"
    file.write_bytes(text.encode())
    expected = [*reference("llama").encode(text).ids, EOS]
    with file.open("rb") as binary, file.open(encoding="utf-8", newline="") as lines:
        sources = [
            text,
            text.encode(),
            bytearray(text.encode()),
            ["", text, ""],
            [b"", text.encode(), b""],
            iter(text),
            (bytes([byte]) for byte in text.encode()),
            io.StringIO(text),
            io.BytesIO(text.encode()),
            binary,
            lines,
        ]
        for source in sources:
            assert ours("llama").stream(source, window_chars=32).take_all().tolist() == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"good \xff bad", r"byte 5 \(0xff\) is not valid UTF-8: invalid start byte"),
        ([b"\xe6\x97", b"\xa5 \xe6\x97", b"x"], r"byte 4 \(0xe6\) is not valid UTF-8: invalid continuation"),
        ([b"abc\xe6\x97"], r"byte 3 \(0xe6\) is not valid UTF-8: unexpected end"),
        ([b"abc\xe6", "\x97"], r"byte 3 \(0xe6\) is not valid UTF-8"),
        (b"a" * 70_000 + b"\x80", r"byte 70000 \(0x80\)"),
        ("lone \ud800 half", r"character 5 is the lone surrogate '\\ud800'"),
        (["some ", "more", "\udfff"], "character 9 is the lone surrogate"),
    ],
)
def test_what_is_not_text(source: Any, message: str) -> None:
    with pytest.raises(TokenizationError, match=message):
        ours("gpt_neox").stream(source).take_all()


def test_text_file_in_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("café".encode("latin-1"))
    with file.open(encoding="utf-8") as lines, pytest.raises(TokenizationError, match=r"latin\.txt.*binary mode"):
        ours("gpt_neox").stream(lines).take(1)


def test_surrogates_elsewhere() -> None:
    with pytest.raises(TokenizationError, match="text 1: character 1 is the lone surrogate"):
        ours("gpt_neox").encode_batch(["fine", "x\udc80"])
    with pytest.raises(TokenizationError, match="the prompt's character 7 is the lone surrogate"):
        ours("gpt_neox").stream("fine", "prompt \udc80")
