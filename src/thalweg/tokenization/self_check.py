"""A tokenizer of the library against itself: awkward texts, whole and through tiny windows."""

import random
from collections.abc import Iterator

import tokenizers

from thalweg.errors import TokenizationError
from thalweg.tokenization.backend import Block
from thalweg.tokenization.library_errors import encode
from thalweg.tokenization.windows import LibraryWindow, Splitting

_WINDOW_CHARS = 12
_ROW_CHARS = 400

_AWKWARD_TEXTS = (
    "It's one word, two  words;   three\n\nlines\r\n\tand 3,141 tabs\t\tof 'quoted' text... (so: [on]) don't! <a b='c'",
    "naïve café ﬁne ½ Ⅳ ＡＢＣ，全角。日本語のテキスト、です。 한국어 글, नमस्ते दुनिया। \u00a0 \u3000x\ufeff ",
    "e\u0301, a\u0308\u0323 b\u0338 ,\u0301x \U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea x\u200by \ufe70 \x00 ",
)
_IN_ROWS = (
    *(
        "的一是不了在人有我他这中大来上个国和地到以说时要就出",
        "のにはをたがでてとしれさある日本語ーカナア",
        "가나다라마바사아자차카타파하",
    ),
    *("กขคงจชซดตทนบปผพมยรลวสหอะาเแโใไ", "กินนี่ที่ผู้รู้ได้ไม่เป็น", "नमस्तेदुनियाहिन्दी", "ACGT", "acgtn", "0123456789"),
    *("abcdefghijklmnopqrstuvwxyzé", "aA", "\U0001f600\U0001f601\U0001f680☃", "=-#*", "٠١٢٣", "a1漢ก"),
)


def find_mismatch(splitting: Splitting) -> str | None:
    """What is wrong with one of a set of awkward texts when it is cut, None if nothing is with any."""
    return _first_mismatch(splitting, _awkward_texts(splitting.library))


def find_mismatch_in_rows(splitting: Splitting) -> str | None:
    """The same for texts without a place to cut, when they go to the model bit by bit."""
    return _first_mismatch(splitting, _rows())


def _first_mismatch(splitting: Splitting, texts: Iterator[str]) -> str | None:
    for text in texts:
        try:
            agrees = _agrees(splitting, text)
        except TokenizationError as error:
            return f"its self-check failed: {text[:60]!r}… in parts: {error}"
        if not agrees:
            return f"its self-check failed: {text[:60]!r}… in parts gives other ids"
    return None


def _agrees(splitting: Splitting, text: str) -> bool:
    whole = encode(splitting.library, text)
    window = LibraryWindow(splitting, with_offsets=True, window_chars=_WINDOW_CHARS)
    block = Block.join([block for char in text for block in window.push(char)] + window.finish())
    assert block.offsets is not None
    spans = [(start, stop) for start, stop in block.offsets.tolist()]
    return (block.ids.tolist(), spans) == (whole.ids, whole.offsets)


def _awkward_texts(library: tokenizers.Tokenizer) -> Iterator[str]:
    for text in _AWKWARD_TEXTS:
        yield text * 2  # so that the tokens of the start come once more in the middle
    contents = [token.content for token in library.get_added_tokens_decoder().values()][:8]
    yield "".join(f"word{content}, {content} {content[:-1]} x {content[1:]}\n" for content in contents)


def _rows() -> Iterator[str]:
    draw = random.Random(0)
    for characters in _IN_ROWS:
        row = "".join(draw.choices(characters, k=_ROW_CHARS))
        yield f"{row}, {row}{characters[0] * _ROW_CHARS} 1{row}a"
