"""API keys: who may use the server, and how others are told apart."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from thalweg.errors import InvalidInputError
from thalweg.serve.errors import RequestError

MOST_CHARACTERS = 512
"""Characters of a key."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Keys:
    """Keys by their names. Only their digests are kept, and all of them are compared, whichever is right.

    Args:
        keys: the key of each name; none: everybody may use the server.
    """

    def __init__(self, keys: Mapping[str, str] | None = None) -> None:
        self._digests = {name: _digest(key) for name, key in (keys or {}).items()}

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __len__(self) -> int:
        return len(self._digests)

    def owner(self, authorization: str | None) -> str:
        """The name of the key in the header `Authorization`; "" where there are no keys.

        Raises:
            RequestError: there is none, or another one.
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise RequestError("unauthorized", "an API key is wanted: send the header 'Authorization: Bearer KEY'")
        digest = _digest(key.strip()[: MOST_CHARACTERS + 1])
        found = [name for name, known in self._digests.items() if hmac.compare_digest(digest, known)]
        if not found:
            raise RequestError("unauthorized", "the API key is not one of this server")
        return found[0]


def read_keys(given: Iterable[str], file: Path | None) -> dict[str, str]:
    """Keys by name.

    Args:
        given: each KEY or NAME:KEY; several keys in one, as in a variable, stand with commas between.
        file: the same, one a line; lines that begin with # are none.

    Raises:
        InvalidInputError: a key that cannot be sent, a name that is there twice, or a file without keys.
        OSError: the file cannot be read.
    """
    entries = [entry for each in given for entry in each.split(",")]
    if file is not None:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise InvalidInputError(f"{file} has no API key; write one a line, NAME:KEY or KEY")
        entries += found
    keys: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        name, colon, key = entry.partition(":")
        if not colon or not _NAME.fullmatch(name):
            name, key = f"key{number}", entry
        if not (key.isascii() and key.isprintable() and key == key.strip() and 0 < len(key) <= MOST_CHARACTERS):
            raise InvalidInputError(
                f"API key {number} ({name}) is empty, has more than {MOST_CHARACTERS} characters, or some that no "
                "header can hold"
            )
        if name in keys:
            raise InvalidInputError(f"there are two API keys with the name {name!r}; give each another")
        keys[name] = key
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
