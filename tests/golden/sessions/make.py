"""Makes the files of `tests/embedder/test_session_files.py` that later versions must be able to read.

    python -m tests.golden.sessions.make

Files of versions that have been released stay as they are: a new version of the format gets folders of its own.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch

import thalweg
from tests.corpus.tiny import make_text
from tests.embedder.session_models import VARIANTS, write_model
from thalweg.embedder.sessions.file import VERSION

HERE = Path(__file__).parent

SMALL: dict[str, dict[str, Any]] = {
    "rwkv7": {"n_layers": 1, "d_ffn": 16, "rank_w": 2, "rank_a": 2, "rank_v": 2, "rank_g": 2}
}
"""So that no folder takes more than 60 KB."""

DIGITS = "".join(random.Random(1).choices("0123456789", k=9001))
CASES: dict[str, tuple[bytes, bytes]] = {
    "words": (make_text(70).encode(), make_text(30, seed=1).encode()),
    "inside a character": ("down to the sea é".encode()[:-1], "é and on".encode()[1:]),
    "a word without end": (f"it begins {DIGITS[:5000]}".encode(), f"{DIGITS[5000:]} and it ends".encode()),
}


SECTIONS: list[tuple[Any, Any, Any]] = [
    ("tokens", 20, "mean"),
    ("sentence", None, "prefix"),
    ("paragraph", None, "mean"),
    ("heading", None, "mean"),
]


def main() -> None:
    for variant in VARIANTS:
        folder = HERE / f"v{VERSION}-{variant}"
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        config = {"n_layers": 1, **SMALL.get(variant, {})}
        write_model(folder / "model", variant, vocab_size=60, tokenizer="few", config=config, dtype=torch.bfloat16)
        shutil.rmtree(folder / "model-tokenizer")
        model = thalweg.load(folder / "model", device="cpu", dtype="float32")
        expected = {}
        for name, (text, more) in CASES.items():
            session = model.session()
            session.append(text)
            session.save(folder / f"{name}.session")
            session.append(more)
            vector = model.encode((text + more).decode()).tolist()
            expected[name] = {"text": text.hex(), "more": more.hex(), "tokens": session.tokens, "vector": vector}
        (folder / "expected.json").write_text(json.dumps(expected), encoding="utf-8")
        print(folder.name, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), "bytes")
    with_sections()


def with_sections() -> None:
    """Files of the second version, which sessions with sections have; of the first version's model."""
    folder = HERE / "v2"
    folder.mkdir(exist_ok=True)
    model = thalweg.load(HERE / f"v{VERSION}-mamba2" / "model", device="cpu", dtype="float32")
    text, more = (f"{make_text(30)}. Then.\n\nAnd {make_text(9)} é".encode(), b"\xa9\n\nmore. The end")
    expected = []
    for number, (by, every, mode) in enumerate(SECTIONS):
        session = model.session(sections=thalweg.Sections(by, every, mode))
        session.append(text[:-1])
        session.save(folder / f"{number}.session")
        session.append(text[-1:] + more[1:])
        found = session.sections()
        expected.append(
            {
                "file": f"{number}.session",
                "text": text[:-1].hex(),
                "more": (text[-1:] + more[1:]).hex(),
                "by": by,
                "every": every,
                "mode": mode,
                "places": [[s.section, s.n_tokens, s.char_start, s.char_end] for s in found],
                "vectors": [s.vector.tolist() for s in found],
            }
        )
    (folder / "expected.json").write_text(json.dumps(expected), encoding="utf-8")


if __name__ == "__main__":
    main()
