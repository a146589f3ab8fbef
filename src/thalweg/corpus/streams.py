"""Bytes of input files, counted as they are read, and text out of them in pieces."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from thalweg.corpus.inputs import STDIN, InputFile
from thalweg.errors import CorpusError

PIECE = 64 * 1024
"""Bytes of a text file read at a time."""

_PROBE = 8 * 1024
"""A NUL byte among the first bytes marks a file as binary, as it does for grep and git."""

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Meter:
    """Bytes of the input that are dealt with: `read` in this run, `passed` over because they were done before."""

    def __init__(self) -> None:
        self.read = 0
        self.passed = 0


class FileMeter:
    """The share of one file in a `Meter`; it never counts more than the file's size."""

    def __init__(self, meter: Meter, size: int) -> None:
        self._meter = meter
        self._left = size

    def add(self, n: int) -> None:
        n = min(n, self._left)
        self._left -= n
        self._meter.read += n

    def finish(self) -> None:
        """Nothing more will be read: the rest counts as dealt with."""
        self.add(self._left)

    def skip(self) -> None:
        """The file was done in an earlier run."""
        self._meter.passed += self._left
        self._left = 0


class _Counted(io.RawIOBase):
    """A raw stream that tells a meter what is read from it."""

    def __init__(self, raw: io.RawIOBase, meter: FileMeter) -> None:
        self._raw = raw
        self._meter = meter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        n = self._raw.readinto(buffer)
        self._meter.add(n or 0)
        return n


@contextmanager
def opened(file: InputFile, meter: FileMeter) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where it is gzip. stdin stays open."""
    if file.path == STDIN:
        yield sys.stdin.buffer
        return
    with open(file.path, "rb", buffering=0) as raw, io.BufferedReader(_Counted(raw, meter), PIECE) as stream:
        if file.gz:
            with gzip.GzipFile(fileobj=stream, mode="rb") as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield cast(BinaryIO, stream)


@contextmanager
def damage_reported() -> Iterator[None]:
    """Turn what libraries raise for damaged files into errors that count as the document's own."""
    try:
        yield
    except EOFError as error:
        raise CorpusError("the gzip data ends early: the file is cut off") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise CorpusError(f"the gzip data is damaged: {error}") from error
    except csv.Error as error:
        raise CorpusError(f"not CSV: {error}") from error


def text_pieces(stream: BinaryIO) -> Iterator[str]:
    """The text of a UTF-8 file in pieces, never an empty one; a byte order mark is no part of it.

    Raises:
        CorpusError: bytes that are no UTF-8, or a file that looks binary, when they are reached.
    """
    data = stream.read(_PROBE)
    if data.startswith(_UTF16_MARKS):
        raise CorpusError("UTF-16, not UTF-8; convert it with: iconv -f utf-16 -t utf-8")
    if b"\0" in data:
        raise CorpusError(f"looks binary: a NUL byte in its first {_PROBE // 1024} KiB")
    offset = 0
    if data.startswith(codecs.BOM_UTF8):
        offset, data = len(codecs.BOM_UTF8), data[len(codecs.BOM_UTF8) :]
    decoder = codecs.getincrementaldecoder("utf-8")()
    while True:
        held = len(decoder.getstate()[0])
        try:
            piece = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            at = offset - held + error.start
            raise CorpusError(f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {at}") from error
        if piece:
            yield piece
        if not data:
            return
        offset += len(data)
        data = stream.read(PIECE)


def check_text(text: str) -> str:
    """The text, if it can be written as UTF-8: a lone surrogate is a byte or an escape that is none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        character = text[error.start]
        what = (
            f"byte 0x{ord(character) - 0xDC00:02x}"
            if "\udc80" <= character <= "\udcff"
            else f"the lone surrogate \\u{ord(character):04x}"
        )
        raise CorpusError(f"not UTF-8: {what} at character {error.start}") from error
    return text
