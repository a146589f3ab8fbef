r"""Text that somebody else wrote, made safe for a terminal.

A terminal obeys what it is sent: an escape sequence in a document, an id, a file name or the message of a server can
clear the screen, write to the clipboard (OSC 52), set the title, hide what follows behind a link (OSC 8) or turn the
order of characters around (https://trojansource.codes). Such characters are shown instead of sent.
"""

from __future__ import annotations

import re

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # Unicode's Cc without tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # Bidi_Control
    "\u206a-\u206f"  # what came before it, deprecated
    "\u2028\u2029"  # line and paragraph separators
    "\ud800-\udfff]"  # surrogates, which no encoding takes; of a file name, its bytes that are not UTF-8
)


def safe_text(text: str) -> str:
    r"""The text with every control character, bidirectional control and surrogate shown: `␛`, `\x9b`, `\u202e`.

    Newline and tab stay. Safe text comes back as it is.
    """
    return _UNSAFE.sub(lambda match: _shown(match[0]), text)


def safe_json(document: str) -> str:
    r"""A JSON document with the same characters escaped as JSON does: `\u001b`, `\u009b`, `\u202e`.

    Unescaped ones can stand within JSON's strings only, so the document still means the same.
    """
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", document)


def _shown(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's Control Pictures
    if code == 0x7F:
        return "\u2421"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
