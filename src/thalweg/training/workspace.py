"""The folder of a run that goes on, `OUT.run`: who holds it, and what was asked for when it was begun.

run.json        model, data, recipe
lock            held by the first process while it lives
checkpoint-N/   see `trainer.py`
teacher/        see `teacher.py`
log.jsonl, tensorboard/
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from thalweg.errors import InvalidInputError
from thalweg.storage.durable import hold, move_durably, write_durably

Mode = Literal["new", "resume", "overwrite"]

SETTINGS = "run.json"
"""Without it a folder holds no run."""

SAMPLES = 256


def run_folder(out: Path) -> Path:
    """Where a run lives until `out` is there."""
    return out.with_name(f"{out.name}.run")


@contextmanager
def held(out: Path, mode: Mode) -> Iterator[Path]:
    """The folder of a run, made ready and locked.

    Raises:
        InvalidInputError: `out` or the folder is there and `mode` does not say what to do with it; or another process
            trains in it.
    """
    folder = run_folder(out)
    if out.exists() and mode == "new":
        raise InvalidInputError(f"{out} exists; choose another folder, or --overwrite")
    if out.exists() and not (out / "config.json").is_file():
        raise InvalidInputError(f"{out} exists and is no model, so it is not replaced; choose another folder")
    begun = (folder / SETTINGS).is_file()
    if folder.exists() and not begun and any(path.name != "lock" for path in folder.iterdir()):
        raise InvalidInputError(f"{folder} is in the way, as it holds no training run; choose another folder to write")
    if begun and mode == "new":
        raise InvalidInputError(f"{folder} holds a run that was broken off; go on with --resume, or --overwrite it")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = hold(folder / "lock")
    except OSError as error:
        raise InvalidInputError(f"another process trains in {folder}; wait for it, or choose another folder") from error
    try:
        with lock:
            if mode == "overwrite" and begun:
                _empty(folder)
            yield folder
    finally:
        kept = (folder.glob("checkpoint-*"), folder.glob("teacher/*.npz"))
        if folder.exists() and not any(map(any, kept)):
            shutil.rmtree(folder)  # it failed before there was anything to resume


def _empty(folder: Path) -> None:
    (folder / SETTINGS).unlink()
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def publish(fresh: Path, out: Path) -> None:
    """Have the finished model take its name, in the place of one that is there, and remove the run's folder."""
    folder, old, done = run_folder(out), out.with_name(f".{out.name}.old"), out.with_name(f".{out.name}.done")
    for left in (old, done):
        if left.exists():
            shutil.rmtree(left)
    if out.exists():
        out.rename(old)
    move_durably(fresh, out)
    folder.rename(done)  # at once: half a folder would be taken for a run that has just begun
    for left in (old, done):
        if left.exists():
            shutil.rmtree(left)


def check_same(folder: Path, asked: Mapping[str, Any]) -> None:
    """Keep what was asked for, or compare it with what was kept.

    Raises:
        InvalidInputError: the run was begun with something else, quoting the first difference.
    """
    path = folder / SETTINGS
    flat = _flat(json.loads(json.dumps(asked)))
    if not path.is_file():
        write_durably(path, lambda stream: stream.write(json.dumps(asked, indent=2).encode()))
        return
    before = _flat(json.loads(path.read_bytes()))
    for name in sorted(flat.keys() | before.keys()):
        if flat.get(name) != before.get(name):
            raise InvalidInputError(
                f"{folder} was begun with {name}={before.get(name)!r}, not {flat.get(name)!r}; ask for the same to "
                "resume it, or start anew with --overwrite"
            )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, part in value.items():
        flat |= _flat(part, f"{prefix}{name}.") if isinstance(part, dict) else {f"{prefix}{name}": part}
    return flat


def digest(rows: Dataset) -> str:
    """16 hexadecimal digits of a data set: its size and evenly spread rows."""
    whole = hashlib.sha256(f"{len(rows)} {rows.column_names}".encode())
    for index in np.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).astype(int).tolist():
        whole.update(json.dumps(rows[index], sort_keys=True).encode())
    return whole.hexdigest()[:16]
