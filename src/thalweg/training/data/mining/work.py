"""The work folder of a run: what is done, until the output is there.

`OUT.parts/` is a `WorkFolder` that holds
    manifest.json        settings and a digest of the inputs
    inputs.jsonl         the input files with sizes and times
    corpus.arrow         the texts of a corpus, with corpus.hashes and corpus.sums.json
    queries-*.npy, documents-*.npy    vectors
    found-*.npz          the negatives of a block of rows
The last three have a checksum in their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thalweg.corpus.manifest import Manifest
from thalweg.corpus.settings import Mode
from thalweg.corpus.writers import parts_path
from thalweg.errors import CorpusError
from thalweg.storage.checked import find_checked, is_whole, write_checked
from thalweg.storage.durable import check_no_link, check_utf8, cure, in_words
from thalweg.storage.lock import check_not_held
from thalweg.storage.work_folder import WorkFolder, has_begun
from thalweg.training.data.mining.output import SUFFIXES

INPUTS = "inputs.jsonl"
_SAVED = ("queries-*.npy", "documents-*.npy", "found-*.npz", "corpus.arrow")
_CONTENTS = (*_SAVED, "corpus.*", "*.tmp", INPUTS)


def check_out(out: Path, mode: Mode) -> None:
    """Look before anything is loaded whether a run may write to `out`.

    Raises:
        CorpusError: no known format; a link, or a name that is no UTF-8; another run writes to it now; or something is
            there and neither resuming nor overwriting was asked for.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise CorpusError(f"{out} must end in {' or '.join(SUFFIXES)}")
    check_no_link(out)
    check_utf8(out)
    check_not_held(parts_path(out))
    if mode == "overwrite":
        return
    if has_begun(parts_path(out)):
        if mode == "new":
            raise CorpusError(
                f"{parts_path(out)} holds an unfinished run: continue it with --resume, or start over with --overwrite"
            )
    elif out.exists():
        raise CorpusError(f"{out} exists; replace it with --overwrite")


class Blocks:
    """Files that survive a crash, by names without the checksums that they have on the disk.

    `remade` has those that an earlier run left and that were damaged since.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.remade: list[str] = []
        self._paths: dict[str, Path] = {}

    def has(self, name: str) -> bool:
        """Whether a file is there and whole. One that is not goes."""
        for path in () if name in self._paths else find_checked(self.folder / name):
            if is_whole(path):
                self._paths[name] = path
            else:
                path.unlink()
                self.remade.append(path.name)
        return name in self._paths

    def write(self, name: str, data: bytes | memoryview) -> None:
        self._paths[name] = write_checked(self.folder / name, data)

    def path(self, name: str) -> Path:
        """Where a file is that was found or written."""
        return self._paths[name]


@contextmanager
def working(out: Path, manifest: Manifest, mode: Mode) -> Iterator[Blocks]:
    """`OUT.parts`, in use by this process; dropped when the run has ended well.

    Raises:
        CorpusError: another process uses it, or the run that left it had other settings or inputs.
    """
    with WorkFolder(parts_path(out), _CONTENTS) as work:
        if mode == "resume" and work.begun:
            manifest.check_settings(work.manifest(), str(work.path))
            manifest.check_inputs(work.path / INPUTS)
        else:
            work.begin(manifest.summary(), lambda: manifest.write_inputs(work.path / INPUTS))
        try:
            yield Blocks(work.path)
        except BaseException as error:
            if not any(next(work.path.glob(pattern), None) for pattern in _SAVED):
                work.drop()  # nothing to resume
            elif isinstance(error, OSError):
                raise CorpusError(
                    f"{in_words(error)}; what is done is saved in {work.path}: {cure(error)}, then go on with --resume"
                ) from error
            raise
        work.drop()
