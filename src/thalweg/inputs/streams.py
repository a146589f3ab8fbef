"""Bytes of input files, counted as they are read, and text out of them in pieces or lines."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, cast

from thalweg.errors import CorpusError
from thalweg.inputs.binary import HEAD, recognise
from thalweg.inputs.encodings import PIECE, Utf8
from thalweg.inputs.files import STDIN, InputFile

MAX_ROW = 256 << 20
"""Bytes of the longest row that is read. A longer text belongs into a file of its own, which is read in pieces."""

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Meter:
    """Bytes of the input that are dealt with: `read` in this run, `passed` over because they were done before; and rows
    of tables, of which none is skipped."""

    def __init__(self) -> None:
        self.read = 0
        self.passed = 0
        self.rows = 0


class FileMeter:
    """The share of one file in a `Meter`; it never counts more than the file's size."""

    def __init__(self, meter: Meter, size: int) -> None:
        self._meter = meter
        self._left = size

    def add(self, n: int) -> None:
        n = min(n, self._left)
        self._left -= n
        self._meter.read += n

    def add_row(self) -> None:
        self._meter.rows += 1

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
    """The file's bytes, unpacked where it is gzip. stdin stays open.

    Raises:
        CorpusError: there is no stdin.
    """
    if file.path == STDIN:
        if sys.stdin is None:
            raise CorpusError("stdin is closed; pipe something into it, or name a file")
        yield sys.stdin.buffer
        return
    with open(file.path, "rb", buffering=0) as raw, io.BufferedReader(_Counted(raw, meter), PIECE) as stream:
        if file.gz:
            with gzip.GzipFile(fileobj=stream, mode="rb") as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield cast(BinaryIO, stream)


def _nobody(note: str) -> None:
    """Nobody wants to know."""


@contextmanager
def opened_text(
    file: InputFile, meter: FileMeter, *, guess: bool = False, on_note: Callable[[str], object] = _nobody
) -> Iterator[io.BufferedReader]:
    """The file's text as UTF-8 bytes, a byte order mark included.

    Args:
        guess: recognise the encoding if none was given, instead of taking UTF-8 for granted.
        on_note: told the encoding, if it was guessed and is not UTF-8.

    Raises:
        CorpusError: UTF-16 that nobody spoke of, or no text at all.
    """
    with ExitStack() as stack:
        source = stack.enter_context(opened(file, meter))
        head = _read_fully(source, HEAD)
        encoding = file.encoding
        if encoding is None:
            if head.startswith(_UTF16_MARKS):
                raise CorpusError("UTF-16, not UTF-8; convert it with: iconv -f utf-16 -t utf-8")
            if what := recognise(head):
                raise CorpusError(what)
            encoding = None if guess else "utf-8"
        converted = Utf8(source, head, encoding, lambda name: on_note(f"read as {name} (--encoding says otherwise)"))
        yield stack.enter_context(io.BufferedReader(converted, PIECE))


def _read_fully(stream: BinaryIO, n: int) -> bytes:
    """n bytes, or all there are: a pipe gives them as they come."""
    data = stream.read(n)
    while len(data) < n and (more := stream.read(n - len(data))):
        data += more
    return data


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
    """The text of UTF-8 bytes in pieces, never an empty one; a byte order mark is no part of it.

    Raises:
        CorpusError: bytes that are no UTF-8, when they are reached.
    """
    data = stream.read(PIECE)
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


def text_lines(stream: io.BufferedReader) -> Iterator[bytes | CorpusError]:
    """The lines of a stream with their ends, in bounded memory: one that is longer than `MAX_ROW` is an error. A byte
    order mark is no part of the first."""
    if stream.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    while line := stream.readline(MAX_ROW + 1):
        if len(line) <= MAX_ROW:
            yield line
            continue
        while not line.endswith(b"\n") and line:
            line = stream.readline(PIECE)
        yield too_long()


def too_long() -> CorpusError:
    """A row that is not read."""
    return CorpusError(f"longer than {MAX_ROW >> 20} MiB; put the text into a file of its own, which is read in pieces")


def decoded(line: bytes) -> str:
    """A line as text.

    Raises:
        CorpusError: bytes that are no UTF-8.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise CorpusError(f"not UTF-8: byte 0x{byte:02x} at offset {error.start} of the line") from error


def check_text(text: str) -> str:
    """The text, if it can be written as UTF-8: a lone surrogate is a byte or an escape that is none.

    Raises:
        CorpusError: it cannot.
    """
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
