"""A key for each row of an output, which no other row has: the id of its document, and the section if there are any.

Where several documents have one id, the second, third, … are told apart by ~2, ~3, … after it, with so many tildes that
no id ends in that by itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SHOWN = 5
_TOLD_APART = re.compile(r"(~+)\d+\Z")


class Keys:
    """Keys of the documents of an output, from a hash of each id: 64 bits a document, whatever the ids.

    Args:
        n: documents.
    """

    def __init__(self, n: int) -> None:
        self._hashes = np.zeros(n, np.uint64)
        self._nth = np.ones(n, np.int64)
        self._tildes = 1

    def learn(self, document: int, ids: Sequence[str]) -> None:
        """Take in the ids of the documents from number `document` on."""
        for number, id_ in enumerate(ids, document):
            digest = hashlib.blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            self._hashes[number] = int.from_bytes(digest, "little")
            if (match := _TOLD_APART.search(id_)) is not None:
                self._tildes = max(self._tildes, len(match[1]) + 1)

    def finish(self) -> npt.NDArray[np.int64]:
        """All ids are known; the numbers of the documents whose id an earlier one has."""
        order = np.argsort(self._hashes, kind="stable")
        starts = np.ones(len(order), bool)
        starts[1:] = self._hashes[order][1:] != self._hashes[order][:-1]
        places = np.arange(len(order))
        self._nth[order] = 1 + places - np.maximum.accumulate(np.where(starts, places, 0))
        return np.flatnonzero(self._nth > 1)

    def key(self, document: int, id_: str, section: int | None) -> str:
        """The key of a row; `section` None where documents have one row each."""
        nth = int(self._nth[document])
        key = id_ if nth == 1 else f"{id_}{'~' * self._tildes}{nth}"
        return key if section is None else f"{key}#{section}"
