"""Rows of JSON: a line each, or the elements of an array; and text files taken line by line."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from io import BufferedReader
from itertools import chain
from typing import Any, BinaryIO

from thalweg.errors import CorpusError
from thalweg.inputs.encodings import PIECE
from thalweg.inputs.files import InputFile
from thalweg.inputs.rows import Notes, Repeated, Row, Select
from thalweg.inputs.streams import MAX_ROW, FileMeter, decoded, opened_text, text_lines, too_long

LINE = "text"
"""The one column of a text file that is taken line by line."""

_SPACE = re.compile(r"[ \t\r\n]*")


def read_lines(file: InputFile, select: Select, meter: FileMeter, on_note: Notes) -> Iterator[Row]:
    """Every line of a text, also an empty one."""
    with opened_text(file, meter) as stream:
        for number, line in enumerate(text_lines(stream)):
            if isinstance(line, CorpusError):
                yield Row(number, number + 1, line)
                continue
            try:
                text = decoded(line.removesuffix(b"\n").removesuffix(b"\r"))
                yield Row(number, number + 1, {LINE: text})
            except CorpusError as error:
                yield Row(number, number + 1, error)


def read_jsonl(file: InputFile, select: Select, meter: FileMeter, on_note: Notes) -> Iterator[Row]:
    """An object a line; blank lines are no rows."""
    with opened_text(file, meter) as stream:
        yield from _line_rows(enumerate(text_lines(stream)))


def read_json(file: InputFile, select: Select, meter: FileMeter, on_note: Notes) -> Iterator[Row]:
    """An array of objects, an object a line, or objects one after the other."""
    with opened_text(file, meter) as stream:
        if _begins_array(stream):
            start = b""
        else:
            lines = enumerate(text_lines(stream))
            first = next((entry for entry in lines if isinstance(entry[1], CorpusError) or entry[1].strip()), None)
            if first is None:
                return
            _, line = first
            if isinstance(line, CorpusError) or _is_object(line):
                yield from _line_rows(chain([first], lines))
                return
            start = line
        for row, value in enumerate(_values(_Text(start, stream))):
            yield Row(row, None, _checked(value))


def _begins_array(stream: BufferedReader) -> bool:
    return stream.peek(1).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _line_rows(lines: Iterable[tuple[int, bytes | CorpusError]]) -> Iterator[Row]:
    row = 0
    for number, line in lines:
        if isinstance(line, CorpusError):
            yield Row(row, number + 1, line)
        elif line.strip():
            yield Row(row, number + 1, _parsed(line))
        else:
            continue
        row += 1


def _is_object(line: bytes) -> bool:
    return isinstance(_parsed(line), dict)


def _parsed(line: bytes) -> dict[str, Any] | CorpusError:
    try:
        return _checked(json.loads(decoded(line), object_pairs_hook=_object))
    except CorpusError as error:
        return error
    except (ValueError, RecursionError) as error:
        return CorpusError(f"not JSON: {error}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        value = Repeated(value)
        value.repeated = frozenset(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
    return value


def _checked(value: Any) -> dict[str, Any] | CorpusError:
    if isinstance(value, dict):
        return value
    hint = "; an array of rows belongs into a .json file" if isinstance(value, list) else ""
    return CorpusError(f"a JSON object was expected, not {type(value).__name__}{hint}")


class _Text:
    """What is not parsed yet of a text, which grows as more is needed: to twice as much, so that it is parsed twice."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.text = self._decoder.decode(start)
        self.at = 0
        self.ended = False

    def grow(self) -> bool:
        """Read on; False at the end."""
        self.text = self.text[self.at :]
        self.at = 0
        if len(self.text) > MAX_ROW:
            raise too_long()
        data = self._stream.read(max(PIECE, len(self.text)))
        self.ended = not data
        self.text += self._decoder.decode(data, final=self.ended)
        return not self.ended

    def peek(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            assert match is not None
            self.at = match.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""


def _values(text: _Text) -> Iterator[Any]:
    """The elements of an array, or values one after the other.

    Raises:
        CorpusError: what is no JSON; nothing after it can be found.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    in_array = text.peek() == "["
    text.at += in_array
    expects_comma = False
    while (character := text.peek()) and not (in_array and character == "]"):
        if expects_comma:
            if character != ",":
                raise CorpusError(f"not JSON: ',' or ']' expected, not {character!r}")
            text.at += 1
            text.peek()
        yield _next_value(decoder, text)
        expects_comma = in_array
    if in_array and not character:
        raise CorpusError("not JSON: the array does not end, so the file is cut off")
    text.at += in_array
    if text.peek():
        raise CorpusError(f"not JSON: {text.text[text.at : text.at + 20]!r} after the end of the array")


def _next_value(decoder: json.JSONDecoder, text: _Text) -> Any:
    while True:
        try:
            value, end = decoder.raw_decode(text.text, text.at)
        except (ValueError, RecursionError) as error:
            if not text.ended and not isinstance(error, RecursionError) and text.grow():
                continue
            raise CorpusError(f"not JSON: {error}") from error
        if end == len(text.text) and not text.ended and text.grow():
            continue  # a number may go on
        text.at = end
        return value
