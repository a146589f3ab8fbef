"""The folder of a run that is not finished: held by one process, continued by a later one, dropped in the end.

It has a manifest, which says what the run is. The manifest is emptied first and removed last when a folder is dropped,
and written last when a run begins. So with an empty manifest, or none, a folder holds no run, whatever a crash has left
in it; and with one, even an empty one, it is known to be ours.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from thalweg.errors import CorpusError
from thalweg.storage.durable import move_durably, sync_folder, write_durably
from thalweg.storage.lock import LOCK, hold

MANIFEST = "manifest.json"


def has_begun(folder: Path, manifest: str = MANIFEST) -> bool:
    """Whether a folder holds a run that can be continued."""
    path = folder / manifest
    return path.is_file() and path.stat().st_size > 0


class WorkFolder(AbstractContextManager["WorkFolder"]):
    """A work folder in use by this process, made unless it is there.

    Args:
        path: of the folder.
        contents: patterns of the names that a run leaves there. Nothing else is ever removed.
        manifest: name of the manifest.
        telling: the names could not be anybody else's, so they are known to be a run's even without a manifest.

    Raises:
        CorpusError: another process holds it.
    """

    def __init__(self, path: Path, contents: Sequence[str], *, manifest: str = MANIFEST, telling: bool = True) -> None:
        self.path = path
        self._contents = contents
        self._manifest = path / manifest
        self._telling = telling
        self._lock = hold(path)

    @property
    def in_place(self) -> bool:
        """Whether the folder has not been renamed, to be published."""
        return self._lock.in_place

    @property
    def begun(self) -> bool:
        """Whether there is a run to continue."""
        return has_begun(self.path, self._manifest.name)

    def strangers(self) -> list[str]:
        """Names of what lies in the folder and is no run's, sorted."""
        known = self._contents if self._telling or self._manifest.exists() else ()
        kept = (LOCK, self._manifest.name, f"{self._manifest.name}.tmp", *known)
        names = sorted(path.name for path in self.path.iterdir())
        return [name for name in names if not any(fnmatch(name, pattern) for pattern in kept)]

    def begin(self, manifest: Mapping[str, Any], prepare: Callable[[], object] = lambda: None) -> None:
        """Start a run: drop what an earlier one has left, `prepare` the folder, and write what the run is.

        Raises:
            CorpusError: something lies in the folder that is not ours.
        """
        if not self._manifest.exists() and (strangers := self.strangers()):
            raise CorpusError(f"{self.path} holds {strangers[0]!r}, which is not thalweg's; move it away")
        self.clear()
        prepare()
        write_manifest(self.path, manifest, self._manifest.name)

    def manifest(self) -> dict[str, Any]:
        """What the run is that the folder holds.

        Raises:
            CorpusError: the manifest cannot be read.
        """
        return read_manifest(self.path, self._manifest.name)

    def clear(self) -> None:
        """Drop the run. The folder stays ours."""
        try:
            write_durably(self._manifest, lambda stream: None)
        except OSError:  # on a full disk there may be no room for an empty file
            self._manifest.unlink(missing_ok=True)
        for path in self.path.iterdir():
            if path.name in (LOCK, self._manifest.name):
                continue
            if any(fnmatch(path.name, pattern) for pattern in self._contents):
                _remove(path)
        sync_folder(self.path)

    def drop(self) -> None:
        """Drop the run and the folder, unless it holds something else; and let other processes have it."""
        if not self.in_place:
            return
        self.clear()
        self._manifest.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let other processes have the folder. One that holds nothing goes."""
        self._lock.release(drop_empty_folder=True)

    def __exit__(self, *_: object) -> None:
        self.close()


def write_manifest(folder: Path, manifest: Mapping[str, Any], name: str = MANIFEST) -> None:
    """Have a folder say what run it holds."""
    content = json.dumps(manifest, ensure_ascii=False, indent=2)
    write_durably(folder / name, lambda stream: stream.write(f"{content}\n".encode("utf-8", "surrogatepass")))


def read_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any]:
    """What a folder says of its run.

    Raises:
        CorpusError: the manifest cannot be read.
    """
    path = folder / name
    try:
        manifest = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path} is damaged ({error}); start over with --overwrite") from error
    if not isinstance(manifest, dict):
        raise CorpusError(f"{path} is damaged (it holds no object); start over with --overwrite")
    return manifest


def publish_folder(fresh: Path, target: Path, work: Path) -> None:
    """Have a finished folder take its name, in the place of one that is there, and remove the work folder it lay in.

    At any moment a crash leaves the old folder, the new one, or `work` with the whole run in it.
    """
    old, done = target.with_name(f".{target.name}.old"), target.with_name(f".{target.name}.done")
    for left in (old, done):
        _remove(left)
    if target.exists():
        target.rename(old)
    move_durably(fresh, target)
    work.rename(done)  # at once: half a folder would be taken for a run that has just begun
    for left in (old, done):
        _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
