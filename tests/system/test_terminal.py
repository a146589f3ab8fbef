"""What a terminal would obey is shown instead."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.system.terminal import safe_json, safe_text

BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}

ATTACKS = {
    "clears the screen": "\x1b[2J",
    "hides a link": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "writes to the clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "sets the title": "\x1b]0;title\x07",
    "C1, clears the screen": "\x9b2J",
    "C1, sets the title": "\x9d0;title\x9c",
    "turns the order around": "\u202egnp.exe\u202c",
    "isolates": "\u2067evil\u2069",
    "marks": "\u200f\u061c\u200e",
    "begins the line anew": "\rerror: none",
    "goes back": "good\x08\x08\x08\x08evil",
    "deletes": "a\x7fb",
    "shifts the character set": "\x0eevil\x0f",
    "next page": "\x0c\x0b\x85",
    "separates lines": "\u2028\u2029",
    "a byte that is not UTF-8": "\udc9b2J",
}
"""What a text can do to a terminal, and texts that do it."""


def obeyed(text: str) -> list[str]:
    """The characters of a text that a terminal would not just show. Newline and tab are let through."""
    return [
        c
        for c in text
        if (unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t")
        or unicodedata.bidirectional(c) in BIDI
        or c in "\u200e\u200f\u061c"
    ]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_nothing_is_left_to_obey(attack: str) -> None:
    assert obeyed(attack)
    shown = safe_text(f"before {attack} after")
    assert not obeyed(shown)
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert safe_text(shown) == shown


def test_what_was_there_can_be_read() -> None:
    assert safe_text("\x1b[2J \x07 \r \x7f \x9b \u202e \udc9b") == "␛[2J ␇ ␍ ␡ \\x9b \\u202e \\udc9b"


def test_every_character_of_unicode_is_shown_or_harmless() -> None:
    assert not obeyed(safe_text("".join(map(chr, range(sys.maxunicode + 1)))))


@pytest.mark.parametrize(
    "text",
    [
        "plain\ttext\nin two lines",
        "Grüße, 東京, Привет, مرحبا, שלום, नमस्ते",
        "می\u200cخواهم",  # a joiner that Persian needs
        "👩\u200d👩\u200d👧 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f ❤\ufe0f",
        "ភាសា\u200bខ្មែរ",  # a space without width, between words of Khmer
        "[bold]not ours[/bold] :smile:",
    ],
)
def test_text_is_left_as_it_is(text: str) -> None:
    assert safe_text(text) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_says_the_same(text: str) -> None:
    document = safe_json(json.dumps({text: [text]}, ensure_ascii=False))
    assert not obeyed(document)
    assert json.loads(document) == {text: [text]}
