"""Random texts without a place to cut, streamed and whole: `python -m tests.tokenization.fuzz_segments N [file …]`.

N characters of every kind (or of `--kinds dna,digits`) for every tokenizer: those of `shapes.py`, or the given
tokenizer.json files. Texts come in random pieces through windows of random sizes, short ones through tiny windows too;
ids and offsets must be those of the library for the whole text. The last line is JSON.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence

import tokenizers

from tests.tokenization.shapes import ATOMS, SHAPES, TRAINING_TEXT, reference
from thalweg.errors import TokenizationError
from thalweg.tokenization.backend import Block
from thalweg.tokenization.library import LibraryBackend

_COMMON = list("的一是不了在人有我他这中大来上个国和地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里")
_HAN = [chr(code) for code in range(0x4E00, 0x9FA6)]
_THAI = [chr(code) for code in (*range(0xE01, 0xE3B), *range(0xE40, 0xE4F))]
_WORDS = [word for text in TRAINING_TEXT for word in text.split()]
_LONGEST = 200_000


def _of(characters: Sequence[str] | str) -> Callable[[random.Random, int], str]:
    return lambda draw, n: "".join(draw.choices(characters, k=n))


def _repeated(draw: random.Random, n: int) -> str:
    part = "".join(
        draw.choices(draw.choice((_HAN, _THAI, "ACGT", "0123456789", "abé'", "=-#*")), k=draw.randint(1, 40))
    )
    return part * (n // len(part))


def _in_rows(draw: random.Random, n: int) -> str:
    """Rows of one kind after the other, what ends them between: spaces, marks, added tokens."""
    parts, length = [], 0
    while length < n:
        kind = KINDS[draw.choice(("chinese", "thai", "dna", "digits", "letters", "hangul", "signs", "repeated"))]
        parts.append(kind(draw, draw.randint(1, max(1, n // 4))) + draw.choice(ATOMS) * draw.randint(0, 2))
        length += len(parts[-1])
    return "".join(parts)


KINDS: dict[str, Callable[[random.Random, int], str]] = {
    "chinese": _of(_COMMON * 200 + _HAN),
    "thai": _of(_THAI),
    "dna": _of("ACGT"),
    "digits": _of("0123456789"),
    "letters": _of("abcdefghijklmnopqrstuvwxyz" * 8 + "ABCDEFGHIJKLMNOPQRSTUVWXYZéüñßı"),
    "words": lambda draw, n: "".join(draw.choices(_WORDS, k=n))[:n],
    "hangul": _of([chr(code) for code in range(0xAC00, 0xD7A4)]),
    "signs": _of("=-#*_~…😀🚀☃"),
    "marks": _of("aeiou" * 4 + "नमसतयह" + "\u0301\u0308\u0323\u093f\u094d"),
    "repeated": _repeated,
    "rows": _in_rows,
    "literals": _in_rows,  # of special tokens, read as text
    "awkward": lambda draw, n: "".join(draw.choices(ATOMS, k=n // 4)),
}  # fmt: skip


def texts(kind: str, chars: int, draw: random.Random, longest: int = _LONGEST) -> Iterator[str]:
    """About so many characters in all; few texts are long."""
    while chars > 0:
        text = KINDS[kind](draw, int(min(chars, longest) ** draw.uniform(0.5, 1)))
        yield text
        chars -= max(1, len(text))


def check(backend: LibraryBackend, text: str, draw: random.Random) -> str | None:
    """What is wrong, None if nothing is."""
    whole = backend.splitter.library.encode(text, add_special_tokens=False)
    window_chars = draw.choice((1, 8, 40, 300, 2000, 1 << 14) if len(text) < 3000 else (300, 2000, 1 << 12, 1 << 14))
    longest_piece = draw.choice((1, 7, 100, 5000, 1 << 16)) if len(text) < 5000 else draw.choice((100, 5000, 1 << 16))
    window = backend.window(with_offsets=True, skip=0, window_chars=window_chars, max_uncut_chars=1 << 20)
    blocks: list[Block] = []
    place = 0
    try:
        while place < len(text):
            step = draw.randint(0, longest_piece)
            blocks += window.push(text[place : place + step])
            place += step
        block = Block.join([*blocks, *window.finish()])
    except TokenizationError as error:
        return f"refused: {error}"
    assert block.offsets is not None
    if block.ids.tolist() != whole.ids:
        at = next((i for i, (a, b) in enumerate(zip(block.ids.tolist(), whole.ids, strict=False)) if a != b), -1)
        around = max(0, at - 3)
        return (
            f"ids {block.ids[around : at + 4]} instead of {whole.ids[around : at + 4]} at {at} (window {window_chars})"
        )
    if [tuple(span) for span in block.offsets.tolist()] != whole.offsets:
        return f"other offsets (window {window_chars})"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("characters", type=float)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--kinds", default=",".join(KINDS))
    given = parser.parse_args()
    chars, files = int(given.characters), given.files
    libraries = {file: tokenizers.Tokenizer.from_file(file) for file in files}
    wrong, count, began = 0, 0, time.perf_counter()
    for name, library in (libraries or {name: reference(name) for name in SHAPES}).items():
        backend = LibraryBackend(tokenizers.Tokenizer.from_str(library.to_str()))
        words = backend.splitter.words
        print(f"{name}: {words if isinstance(words, str) else 'long words can be streamed'}", flush=True)
        for kind in given.kinds.split(","):
            draw = random.Random(f"{name} {kind} {chars}")
            read = backend.reading("text" if kind == "literals" else "token")
            refused = 0
            for number, text in enumerate(texts(kind, chars, draw)):
                count += len(text)
                found = check(read, text, draw)
                if found and found.startswith("refused"):
                    refused += 1
                    first_refusal = found
                elif found:
                    wrong += 1
                    print(f"  WRONG {kind} {number}: {found}", flush=True)
            if refused:
                print(f"  {kind}: {refused} texts refused, the last one: {first_refusal}", flush=True)
    seconds = round(time.perf_counter() - began)
    print(json.dumps({"characters": count, "of_each_kind": chars, "wrong": wrong, "seconds": seconds}))


if __name__ == "__main__":
    main()
