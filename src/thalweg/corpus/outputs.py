"""What earlier runs have written, recognised among the files of a folder, so that it is not embedded again."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from thalweg.corpus.rows import METADATA_KEY
from thalweg.corpus.writers import OUTPUT_SUFFIXES, metadata_path
from thalweg.inputs.discover import Found
from thalweg.inputs.discover import discover as inputs_discover
from thalweg.storage.lock import LOCK
from thalweg.storage.work_folder import MANIFEST

_ANY = re.DOTALL | re.IGNORECASE
_COMPANION = re.compile(
    rf".+({'|'.join(map(re.escape, OUTPUT_SUFFIXES))})\.(ids\.jsonl|meta\.json|failures\.jsonl)", _ANY
)
_WORK_FOLDER = re.compile(r".+\.(parts|run)", _ANY)
_ROW = {"id", "section", "char_start", "char_end", "n_tokens", "vector"}
_FIRST_LINE = 16 << 20


def discover(inputs: Sequence[str], **options: Any) -> Found:
    """`thalweg.inputs.discover.discover`, without what earlier runs have written."""
    return inputs_discover(inputs, is_output=is_output, **options)


def is_output(path: str) -> bool:
    """Whether `thalweg embed` wrote a file, or it or another command works in a folder."""
    name = os.path.basename(path)
    if _WORK_FOLDER.fullmatch(name) and os.path.isdir(path):
        return any(os.path.isfile(os.path.join(path, file)) for file in (MANIFEST, "run.json", LOCK))
    suffix = os.path.splitext(name)[1].lower()
    if _COMPANION.fullmatch(name) or (suffix in OUTPUT_SUFFIXES and os.path.isfile(metadata_path(Path(path)))):
        return True
    try:
        return (suffix == ".parquet" and _says_so(path)) or (suffix == ".jsonl" and _looks_so(path))
    except Exception:  # damaged, or closed to us: reading it will tell
        return False


def _says_so(path: str) -> bool:
    with open(path, "rb") as stream:
        return METADATA_KEY in (pq.read_schema(stream).metadata or {})


def _looks_so(path: str) -> bool:
    """A file whose metadata has been moved away from it."""
    with open(path, "rb") as stream:
        if not stream.read(10).startswith((b'{"key": "', b'{"id": "')):
            return False
        stream.seek(0)
        return set(json.loads(stream.readline(_FIRST_LINE))) >= _ROW
