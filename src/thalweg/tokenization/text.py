"""The text of one document as str pieces of bounded size, whatever form it arrives in."""

import codecs
from collections.abc import Iterable, Iterator
from typing import IO, TypeAlias, cast

from thalweg.errors import InvalidInputError, TokenizationError

TextSource: TypeAlias = str | bytes | Iterable[str] | Iterable[bytes] | IO[str] | IO[bytes]


def text_pieces(source: TextSource, size: int) -> Iterator[str]:
    """The characters of `source` in order, at most `size` at a time.

    Bytes are UTF-8 (a byte order mark stays part of the text) and may be cut inside a character.
    Raises TokenizationError naming the byte position of invalid UTF-8 or the character position of a
    lone surrogate, InvalidInputError for pieces that are neither str nor bytes.
    """
    position = 0
    for text in _decoded(_raw_pieces(source, size)):
        for start in range(0, len(text), size):
            piece = text[start : start + size]
            check_surrogates(piece, position + start)
            yield piece
        position += len(text)


def check_surrogates(text: str, position: int = 0, where: str = "") -> None:
    """Raise TokenizationError if `text`, which starts at character `position` of `where`, holds a lone surrogate.

    The tokenizers library refuses such a str without saying where, or (older versions) takes it for another text.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizationError(
            f"{where}character {position + error.start} is the lone surrogate {text[error.start]!r}, which is not "
            "text; it often comes from decoding with errors='surrogateescape': decode with errors='replace' instead"
        ) from error


def _raw_pieces(source: TextSource, size: int) -> Iterator[str | bytes]:
    if isinstance(source, str):
        yield source
    elif hasattr(source, "read"):
        yield from _file_pieces(cast("IO[str] | IO[bytes]", source), size)
    elif isinstance(source, bytes | bytearray | memoryview):
        yield from _slices(source, size)
    elif isinstance(source, Iterable):
        for piece in source:
            if isinstance(piece, str):
                yield piece
            elif isinstance(piece, bytes | bytearray | memoryview):
                yield from _slices(piece, size)
            else:
                raise InvalidInputError(f"a piece of text must be str or bytes, not {type(piece).__name__}: {piece!r}")
    else:
        raise InvalidInputError(
            f"text must be str, bytes, an iterable of one of them or an open file, not {type(source).__name__}"
        )


def _file_pieces(file: IO[str] | IO[bytes], size: int) -> Iterator[str | bytes]:
    try:
        while piece := file.read(size):
            yield piece
    except UnicodeDecodeError as error:  # a file in text mode knows its position only within its own buffer
        raise TokenizationError(
            f"{getattr(file, 'name', 'the file')!r} is not valid {error.encoding}: {error.reason}; "
            "open it in binary mode ('rb') to learn the byte position"
        ) from error


def _slices(data: bytes | bytearray | memoryview, size: int) -> Iterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(view), size):
        yield bytes(view[start : start + size])


def _decoded(pieces: Iterable[str | bytes]) -> Iterator[str]:
    decoder = Utf8Decoder()
    for piece in pieces:
        if isinstance(piece, str):
            yield decoder.finish() + piece
        else:
            yield decoder.decode(piece)
    yield decoder.finish()


class Utf8Decoder:
    """UTF-8 in pieces that may be cut anywhere; errors name the byte position in the whole document.

    Args:
        pending: bytes of a character that has not come to its end; n_bytes: all bytes so far, these included.
    """

    def __init__(self, pending: bytes = b"", n_bytes: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._decoder.setstate((pending, 0))
        self.n_bytes = n_bytes

    @property
    def pending(self) -> bytes:
        """What has been fed of a character that has not come to its end."""
        return self._decoder.getstate()[0]

    def decode(self, data: bytes, final: bool = False) -> str:
        start = self.n_bytes - len(self.pending)
        self.n_bytes += len(data)
        try:
            return self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            raise TokenizationError(
                f"byte {start + error.start} (0x{error.object[error.start]:02x}) is not valid UTF-8: {error.reason}; "
                "convert the text to UTF-8, or decode it yourself and pass str"
            ) from error

    def finish(self) -> str:
        """Raises TokenizationError if the bytes so far end inside a character."""
        return self.decode(b"", final=True)
