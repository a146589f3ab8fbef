"""Folders of families that transformers lacks: so that AutoModel opens them with `trust_remote_code=True` alone.

The code that is run then is one import of thalweg, which must be installed; nothing of it is copied into the folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from thalweg.checkpoints.embedding import read_embedding_config
from thalweg.checkpoints.fields import read_json_object, read_optional_object
from thalweg.errors import InvalidInputError
from thalweg.families import FAMILIES

CLASSES = {
    each.model_type: {"AutoConfig": each.config, "AutoModel": each.model}
    for family in FAMILIES
    if not family.in_transformers
    for each in family.transformers
}
"""`model_type` → the class behind each class of transformers."""

TOKENIZER = "RWKVWorldTokenizer"
MODULE = "modeling_thalweg"


def write_auto_map(folder: str | Path) -> bool:
    """Let a folder name thalweg's classes in `auto_map`; False where transformers has classes of its own.

    Then `AutoModel.from_pretrained(folder, trust_remote_code=True)` needs nothing but thalweg installed, and so do
    AutoConfig and, beside an RWKV vocabulary, AutoTokenizer, which ends a text with as many EOS as the embedder that
    lies there needs.

    Raises:
        InvalidInputError: the folder has no config.json.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InvalidInputError(f"{folder} has no config.json; export the model first")
    config = read_json_object(folder / "config.json")
    classes = CLASSES.get(str(config.get("model_type")))
    if classes is None:
        return False
    if any(folder.glob("rwkv_vocab_*.txt")):
        settings = read_optional_object(folder / "tokenizer_config.json")
        settings |= {"tokenizer_class": TOKENIZER, "auto_map": {"AutoTokenizer": [f"{MODULE}.{TOKENIZER}", None]}}
        if (folder / "modules.json").is_file():  # an embedder, whose texts end as it says
            embedding = read_embedding_config(folder)
            settings["n_eos"] = embedding.n_eos if embedding.append_eos else 0
        _write(folder / "tokenizer_config.json", settings)
    _write(folder / "config.json", {**config, "auto_map": {key: f"{MODULE}.{name}" for key, name in classes.items()}})
    names = sorted([*classes.values(), TOKENIZER])
    code = f'"""Needs: pip install thalweg"""\n\nfrom thalweg.integrations.transformers import {", ".join(names)}\n'
    (folder / f"{MODULE}.py").write_text(code, encoding="utf-8")
    return True


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
