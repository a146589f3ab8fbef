"""The vectors of a teacher, computed once for each distinct text and kept on the disk.

    DIR/teacher.json        whose vectors they are
    DIR/R-NNNNN.npz         keys (n,) uint64 of texts, vectors (n, d) float32; by process R

A file appears whole or not at all. A run that is killed goes on with the texts that no file has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thalweg.errors import InvalidInputError
from thalweg.integrations._peers import WORDS_PER_TOKEN, load_peer, word_chunks
from thalweg.storage.durable import write_durably

FloatArray = npt.NDArray[np.float32]
Keys = npt.NDArray[np.uint64]

PART = 8192
"""Texts of a file: what a crash costs at most."""

OWN = "thalweg:"
"""Before the name of a teacher that thalweg runs."""


class TeacherVectors:
    """Vectors (n, d) float32 of length 1, looked up by row."""

    def __init__(self, vectors: FloatArray) -> None:
        self._vectors = torch.from_numpy(vectors)
        self._bases: dict[int, Tensor] = {}

    def take(self, rows: Tensor, device: torch.device) -> Tensor:
        """(n, d) float32: the vectors of `rows` (n,) int64."""
        return self._vectors[rows.cpu()].to(device)

    def fitted(self, targets: Tensor, width: int) -> Tensor:
        """Targets (n, d) as vectors (n, `width`) of length 1 for a student of another width.

        A wider teacher is projected to the `width` directions that keep most of its dot products (its second moment's
        largest), a narrower one is filled up with zeros, which keeps all of them. Each direction has the sign in which
        its largest component is positive: else the last bit of a vector could turn it round, and the targets with it.
        """
        d = targets.shape[1]
        if width >= d:
            return torch.nn.functional.pad(targets, (0, width - d))
        if width not in self._bases:
            moment = (self._vectors.double().T @ self._vectors.double()) / len(self._vectors)
            basis = torch.linalg.eigh(moment).eigenvectors[:, -width:]
            largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
            self._bases[width] = (basis * largest.sign()).float()
        return torch.nn.functional.normalize(targets @ self._bases[width].to(targets.device), dim=1)


class TeacherCache:
    """Vectors of texts, in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        """name: of the teacher.

        Raises:
            InvalidInputError: the folder holds another teacher's vectors.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "teacher.json"
        stated = json.dumps({"teacher": name}).encode()
        if settings.is_file() and settings.read_bytes() != stated:
            raise InvalidInputError(
                f"{folder} holds vectors of another teacher, not of {name!r}: {settings.name} says "
                f"{settings.read_bytes()[:200]!r}; remove the folder, or name that teacher"
            )
        if not settings.is_file():
            write_durably(settings, lambda stream: stream.write(stated))
        self.name = name

    def fill(
        self,
        texts: Sequence[str],
        device: str | None,
        *,
        process: int = 0,
        n_processes: int = 1,
        on_texts: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Compute what is missing: of all missing texts every `n_processes`-th. The teacher is loaded if there are any.

        Raises:
            CheckpointError: the teacher cannot be loaded.
        """
        held = self._keys()
        missing = [text for text, key in zip(texts, keys_of(texts), strict=True) if key not in held]
        mine = missing[process::n_processes]
        if not mine:
            return
        encode = load_teacher(self.name, device)
        first = len(list(self.folder.glob("*.npz")))
        for start in range(0, len(mine), PART):
            part = mine[start : start + PART]
            vectors = encode(part)
            path = self.folder / f"{process}-{first + start // PART:05}.npz"
            write_durably(path, lambda s, p=part, v=vectors: np.savez(s, keys=keys_of(p), vectors=v))  # type: ignore[misc]
            on_texts(min(start + PART, len(mine)), len(mine))

    def _keys(self) -> set[int]:
        return {int(key) for path in self.folder.glob("*.npz") for key in np.load(path)["keys"]}

    def vectors(self, texts: Sequence[str]) -> TeacherVectors:
        """Those of `texts`, in their order; all must have been computed."""
        parts = [np.load(path) for path in sorted(self.folder.glob("*.npz"))]
        keys = np.concatenate([part["keys"] for part in parts])
        order = np.argsort(keys, kind="stable")
        wanted = keys_of(texts)
        rows = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
        assert np.array_equal(keys[rows], wanted), "fill comes first"
        return TeacherVectors(np.concatenate([part["vectors"] for part in parts])[rows])


def keys_of(texts: Sequence[str]) -> Keys:
    """(n,) uint64: 8 bytes of a digest of each text."""
    digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), dtype="<u8")


def load_teacher(name: str, device: str | None) -> Callable[[Sequence[str]], FloatArray]:
    """texts -> vectors (n, d) float32 of length 1.

    A text that is longer than the teacher reads has the mean of the vectors of its chunks, cut between words; thalweg's
    own models read all of it.

    Raises:
        CheckpointError: there is no such model, or it cannot be loaded.
    """
    if name.startswith(OWN):
        import thalweg

        own = thalweg.load(name.removeprefix(OWN), device=device)
        return lambda texts: own.encode(list(texts), normalize_embeddings=True)
    model = load_peer(name, device)
    words = int(model.max_seq_length * WORDS_PER_TOKEN) if model.max_seq_length else None

    def encode(texts: Sequence[str]) -> FloatArray:
        pieces = [word_chunks(text, words) if words else [text] for text in texts]
        flat: Any = model.encode([piece for parts in pieces for piece in parts], show_progress_bar=False)
        unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        starts = np.cumsum([0, *(len(parts) for parts in pieces[:-1])])
        means = np.add.reduceat(unit, starts, axis=0)
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), dtype=np.float32)

    return encode
