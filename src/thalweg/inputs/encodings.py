"""Texts in other encodings than UTF-8, made UTF-8 as they are read, and how a table's encoding is recognised."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable
from typing import Any, BinaryIO

from thalweg.errors import CorpusError, InvalidInputError

PIECE = 64 * 1024
"""Bytes read at a time."""

GUESS = "windows-1252"
"""What a table is taken for that is not UTF-8 and looks like text of a western language: Latin-1 and its quotes."""

_MULTIBYTE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_HIGH = re.compile(rb"[\x80-\xff]")
_LETTER = re.compile(rb"[A-Za-z\x80-\xff]")
_UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_ODD = re.compile(rb"[\x83\x86-\x89\x8b\x98\x99\x9b]|[\x80-\xff]{3,}")
"""In `GUESS` signs that hardly any text has, or three accented letters in a row; Russian and Chinese have many."""

_MOST_ACCENTS, _MOST_ODD = 0.4, 0.1
"""Shares of all letters, and of all high bytes."""


def check_encoding(name: str) -> str:
    """The encoding, under Python's name for it.

    Raises:
        InvalidInputError: there is none of that name, or it does not encode text.
    """
    try:
        "a".encode(name)
        return codecs.lookup(name).name
    except (LookupError, ValueError) as error:
        raise InvalidInputError(
            f"there is no encoding {name!r}; some that are: utf-8, utf-16, latin-1, windows-1252, shift_jis, gb18030"
        ) from error


def guess(sample: bytes) -> str:
    """The encoding of a text that is not all ASCII: UTF-8, damaged or not, or `GUESS`."""
    n_high = len(_HIGH.findall(sample))
    n_valid = sum(map(len, _MULTIBYTE.findall(sample)))
    n_odd = sum(map(len, _ODD.findall(sample)))
    is_western = (
        not _UNDEFINED.search(sample)
        and n_high <= _MOST_ACCENTS * len(_LETTER.findall(sample))
        and n_odd <= _MOST_ODD * n_high
    )
    return GUESS if n_valid < n_high / 2 and is_western else "utf-8"


class Utf8(io.RawIOBase):
    """The UTF-8 bytes of a stream in some encoding. Bytes that are none in that encoding stay as they are, and are then
    found by whoever decodes UTF-8, so that they cost a row and not the file.

    Args:
        head: what was read of the stream already.
        encoding: None: `guess`, from the first byte that is no ASCII on.
        on_guess: told what was guessed, if it is not UTF-8.

    Raises:
        CorpusError: when read: what cannot be decoded at all, such as half a character at the end of UTF-16.
    """

    def __init__(
        self, source: BinaryIO, head: bytes, encoding: str | None, on_guess: Callable[[str], object] = lambda name: None
    ) -> None:
        self._source = source
        self._data = head
        self._at_start = True
        self._ready = memoryview(b"")
        self._on_guess = on_guess
        self._encoding = encoding
        self._decoder: codecs.IncrementalDecoder | None = None
        self._errors = ""
        if encoding is not None:
            self._decode_from(encoding)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._ready:
            data = self._data or self._source.read(PIECE)
            self._data = b""
            self._ready = memoryview(self._converted(data))
            if not data:
                break
        n = min(len(buffer), len(self._ready))
        buffer[:n] = self._ready[:n]
        self._ready = self._ready[n:]
        return n

    def _converted(self, data: bytes) -> bytes:
        if self._encoding is None and not data.isascii():
            at = next(match.start() for match in _HIGH.finditer(data))
            data += self._source.read(max(0, PIECE - len(data) + at))
            self._encoding = "utf-8" if data.startswith(codecs.BOM_UTF8) and self._at_start else guess(data)
            if self._encoding != "utf-8":
                self._on_guess(self._encoding)
            self._decode_from(self._encoding)
        self._at_start = False
        if self._decoder is None:
            return data
        try:
            return self._decoder.decode(data, final=not data).encode("utf-8", self._errors)
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"not {self._encoding}: {error.reason} (0x{error.object[error.start]:02x}); --encoding says otherwise"
            ) from error

    def _decode_from(self, encoding: str) -> None:
        name = codecs.lookup(encoding).name
        if name != "utf-8":
            self._errors = "surrogatepass" if name.startswith(("utf-16", "utf-32")) else "surrogateescape"
            self._decoder = codecs.getincrementaldecoder(name)(self._errors)
