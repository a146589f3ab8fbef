"""Where long documents stand, saved in the work folder of a run, so that a resumed one does not begin them anew.

One file a document, `state-FILE-ROW.safetensors`, by its place in the inputs; a later state takes the place of an
earlier one. Its header says which run it belongs to, and which model on which numeric path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from thalweg.corpus.documents import Document
from thalweg.corpus.index import Done
from thalweg.corpus.parts import STATES
from thalweg.corpus.passages import Passage
from thalweg.embedder.embedder import Embedder
from thalweg.embedder.sessions.file import Saved, read_session, to_bytes
from thalweg.errors import InvalidInputError
from thalweg.storage.durable import in_words, write_durably

_NAME = re.compile(r"state-(\d{1,18})-(\d{1,18})\.safetensors")

Found = TypeVar("Found")


class States:
    """The states of a run; implements `thalweg.embedder.resumable.Checkpoints`.

    Args:
        folder: the work folder.
        run: what tells this run from others.
        every: tokens from one state of a document to the next.
        done: what is finished, and needs no state any more.
        passage: by the number of its document in this run.
        save_rows: has all rows survive that have been finished.
        note: told of states that are gone on from, and of those that cannot be.
    """

    def __init__(
        self,
        folder: Path,
        embedder: Embedder,
        run: str,
        every: int,
        done: Done,
        passage: Callable[[int], Passage],
        save_rows: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        self.every = every
        self._folder = folder
        self._embedder = embedder
        self._identity = {**embedder.state_identity, "run": run}
        self._passage = passage
        self._save_rows = save_rows
        self._note = note
        self._there: set[Path] = set()
        self._waiting: dict[int, Saved] = {}  # for the sections before them
        for path in folder.glob(STATES):
            place = _NAME.fullmatch(path.name)
            if place is None or done.has(int(place[1]), int(place[2])):
                path.unlink()
            else:
                self._there.add(path)

    def load(self, number: int, build: Callable[[Saved], Found]) -> Found | None:
        """See `Checkpoints`."""
        passage = self._passage(number)
        document = passage.document
        path = self._path(document)
        if path not in self._there:
            return None
        identity = self._identity_of(document)

        def check(found: Mapping[str, str]) -> None:
            for name, value in identity.items():
                if found.get(name) != value:
                    raise InvalidInputError(f"its {name} is {found.get(name)!r:.80}, and this run's {value!r}")

        pooling, model = self._embedder.pooling, self._embedder.model
        try:
            saved = read_session(path, model.init_state(1), pooling.width(int(model.d_model)), check)
            if not passage.saved.issuperset(range(_n_sections(saved))):
                raise InvalidInputError("sections before it are missing")
            found = build(saved)
        except Exception as error:
            reason = in_words(error) if isinstance(error, OSError) else " ".join(str(error).split())
            self._note(f"{document.id}: run from its start, as its saved state cannot be used ({reason:.300})")
            return None
        n = 0 if saved.state is None else saved.state.n_tokens
        self._note(f"{document.id}: goes on from its saved state after {n:,} tokens")
        if saved.cut is not None:
            passage.begin_at(saved.cut["char"], _n_sections(saved))
        return found

    def save(self, number: int, saved: Saved) -> None:
        """See `Checkpoints`. Raises OSError."""
        self._waiting[number] = saved
        self._save_if_complete(number)

    def has_row(self, number: int, section: int) -> None:
        """The row of a section has been finished. Raises OSError."""
        self._passage(number).n_finished = section + 1
        self._save_if_complete(number)

    def forget(self, number: int) -> None:
        """A document has ended."""
        self._waiting.pop(number, None)

    def _save_if_complete(self, number: int) -> None:
        """Write the state of a document if the rows of all sections before it are there, and have those survive first:
        a resumed run will not make them again."""
        passage, saved = self._passage(number), self._waiting.get(number)
        if saved is None or passage.n_finished < _n_sections(saved):
            return
        del self._waiting[number]
        if _n_sections(saved):
            self._save_rows()
        document = passage.document
        path = self._path(document)
        data = to_bytes(replace(saved, model=self._identity_of(document)))
        write_durably(path, lambda stream: stream.write(data))
        self._there.add(path)

    def of(self, document: Document) -> Path | None:
        """The file of a document that has one."""
        path = self._path(document)
        return path if path in self._there else None

    def _identity_of(self, document: Document) -> dict[str, str]:
        return {**self._identity, "document": f"{document.file}, {document.row}"}

    def _path(self, document: Document) -> Path:
        return self._folder / f"state-{document.file}-{document.row}.safetensors"


def _n_sections(saved: Saved) -> int:
    """Sections of the document that had ended."""
    return 0 if saved.state is None or saved.state.section is None else saved.state.section.number
