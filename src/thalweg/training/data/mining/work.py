"""The work folder of a run: what is done, until the output is there.

`OUT.parts/` holds
    manifest.json        settings and a digest of the inputs; written last, so a folder without it holds nothing
    inputs.jsonl         the input files with sizes and times
    corpus.arrow         the texts of a corpus, with corpus.hashes
    queries-*.npy, documents-*.npy    vectors
    found-*.npz          the negatives of a block of rows
    lock                 held while a run uses the folder
"""

from __future__ import annotations

import json
from pathlib import Path

from thalweg.corpus.manifest import Manifest
from thalweg.corpus.settings import Mode
from thalweg.corpus.writers import parts_path
from thalweg.errors import CorpusError
from thalweg.storage.durable import hold, sync_folder, write_durably
from thalweg.training.data.mining.output import SUFFIXES

MANIFEST, INPUTS, LOCK = "manifest.json", "inputs.jsonl", "lock"
_OURS = ("queries-", "documents-", "found-", "corpus.", MANIFEST, INPUTS, LOCK)


def check_out(out: Path, mode: Mode) -> None:
    """Look before anything is loaded whether a run may write to `out`.

    Raises:
        CorpusError: no known format, or something is there and neither resuming nor overwriting was asked for.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise CorpusError(f"{out} must end in {' or '.join(SUFFIXES)}")
    if mode == "overwrite":
        return
    if (parts_path(out) / MANIFEST).is_file():
        if mode == "new":
            raise CorpusError(
                f"{parts_path(out)} holds an unfinished run: continue it with --resume, or start over with --overwrite"
            )
    elif out.exists():
        raise CorpusError(f"{out} exists; replace it with --overwrite")


class WorkFolder:
    """`OUT.parts`, in use by this process; dropped when the run has ended well."""

    def __init__(self, folder: Path, manifest: Manifest, mode: Mode) -> None:
        self._folder, self._manifest, self._mode = folder, manifest, mode

    def __enter__(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = hold(self._folder / LOCK)
        except OSError as error:
            raise CorpusError(f"another run is writing to {self._folder}; wait for it to end") from error
        try:
            if self._mode == "resume" and (self._folder / MANIFEST).is_file():
                self._check()
            else:
                self._begin()
        except BaseException:
            self._lock.close()
            raise
        return self._folder

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is None:
            self._clear()
        self._lock.close()
        if failed is None:
            (self._folder / LOCK).unlink(missing_ok=True)
            self._folder.rmdir()

    def _begin(self) -> None:
        self._clear()
        write_durably(
            self._folder / INPUTS, lambda stream: stream.writelines(map(str.encode, self._manifest.input_lines()))
        )
        summary = json.dumps(self._manifest.summary(), indent=2).encode()
        write_durably(self._folder / MANIFEST, lambda stream: stream.write(summary))

    def _check(self) -> None:
        """Raises:
        CorpusError: the run that left the folder had other settings or inputs.
        """
        summary = json.loads((self._folder / MANIFEST).read_text(encoding="utf-8"))
        self._manifest.check_settings(summary, str(self._folder))
        with open(self._folder / INPUTS, encoding="utf-8") as lines:
            self._manifest.check_inputs(lines, str(self._folder))

    def _clear(self) -> None:
        """Drop what is in the folder, the manifest first: without it the folder counts for nothing."""
        strange = [path.name for path in self._folder.iterdir() if not path.name.startswith(_OURS)]
        if strange:
            raise CorpusError(f"{self._folder} holds {strange[0]!r}, which is not thalweg's; move it away")
        (self._folder / MANIFEST).unlink(missing_ok=True)
        sync_folder(self._folder)
        for path in self._folder.iterdir():
            if path.name != LOCK:
                path.unlink()
