"""The folder of a run that goes on, `OUT.run`, a `WorkFolder` that the first process holds.

run.json        model, data, recipe: what was asked for when it was begun
checkpoint-N/   see `trainer.py`
teacher/        see `teacher.py`
log.jsonl, tensorboard/
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from thalweg.errors import InvalidInputError
from thalweg.storage.durable import check_no_link, check_utf8
from thalweg.storage.work_folder import WorkFolder, has_begun, read_manifest, write_manifest

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
        InvalidInputError: `out` or the folder is there and `mode` does not say what to do with it.
        CorpusError: `out` is a link, its name is no UTF-8, or another process trains in the folder.
    """
    folder = run_folder(out)
    check_no_link(out)
    check_utf8(out)
    if out.exists() and mode == "new":
        raise InvalidInputError(f"{out} exists; choose another folder, or --overwrite")
    if out.exists() and not (out / "config.json").is_file():
        raise InvalidInputError(f"{out} exists and is no model, so it is not replaced; choose another folder")
    with WorkFolder(folder, ("*",), manifest=SETTINGS, telling=False) as work:
        if work.strangers():
            raise InvalidInputError(
                f"{folder} is in the way, as it holds no training run; choose another folder to write"
            )
        if work.begun and mode == "new":
            raise InvalidInputError(f"{folder} holds a run that was broken off; go on with --resume, or --overwrite it")
        if mode == "overwrite" or not work.begun:
            work.clear()
        try:
            yield folder
        finally:
            kept = (folder.glob("checkpoint-*"), folder.glob("teacher/*.npz"))
            if work.in_place and not any(map(any, kept)):
                work.drop()  # it failed before there was anything to resume


def check_same(folder: Path, asked: Mapping[str, Any]) -> None:
    """Keep what was asked for, or compare it with what was kept.

    Raises:
        InvalidInputError: the run was begun with something else, quoting the first difference.
    """
    flat = _flat(json.loads(json.dumps(asked)))
    if not has_begun(folder, SETTINGS):
        write_manifest(folder, asked, SETTINGS)
        return
    before = _flat(read_manifest(folder, SETTINGS))
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
