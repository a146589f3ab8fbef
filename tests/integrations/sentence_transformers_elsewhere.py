"""A folder in sentence-transformers in a process of its own: where thalweg is not installed, or of another release.

python sentence_transformers_elsewhere.py FOLDER OUT [--and-with-thalweg]: writes the vectors of `TEXTS` without thalweg
to OUT/without.npy and the folder that is saved again to OUT/without; then the same with it, and trains a little.
"""

from __future__ import annotations

import argparse
import importlib.abc
import sys
from pathlib import Path
from typing import Any

import numpy as np

TEXTS = ["the river runs", "swans — and an emoji 🦢", "boats drift past grey stones, 3,141 swans " * 40, "12 bridges"]


class Absent(importlib.abc.MetaPathFinder):
    """As if thalweg were not installed."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] == "thalweg":
            raise ModuleNotFoundError("No module named 'thalweg'", name="thalweg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--and-with-thalweg", action="store_true")
    args = parser.parse_args()
    args.out.mkdir()
    absent = Absent()
    sys.meta_path.insert(0, absent)

    import sentence_transformers

    model = _open(args.folder, args.out / "without")
    print(sentence_transformers.__version__, type(model[0]).__mro__[1].__module__)
    if args.and_with_thalweg:
        sys.meta_path.remove(absent)
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            del sys.modules[name]
        model = _open(args.folder, args.out / "with", vertical_chunk_size=7)
        _check_arguments(model)
        _train(model, args.out)
        print(sentence_transformers.__version__, type(model[0]).__mro__[1].__module__)


def _open(folder: str, out: Path, **arguments: int) -> Any:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", trust_remote_code=True)
    vectors = model.encode(TEXTS, **arguments)
    np.save(out.with_suffix(".npy"), vectors)
    model.save_pretrained(str(out))
    again = SentenceTransformer(str(out), device="cpu", trust_remote_code=True)
    assert np.abs(again.encode(TEXTS) - vectors).max() <= 1e-5
    return model


def _check_arguments(model: Any) -> None:
    vectors = model.encode(TEXTS, normalize_embeddings=True)
    part = model.encode(TEXTS, truncate_dim=8, convert_to_tensor=True, batch_size=2)
    assert part.shape == (len(TEXTS), 8)
    assert np.abs(part.numpy() - vectors[:, :8]).max() <= 1e-5
    assert model.encode(TEXTS, precision="ubinary").dtype == np.uint8
    assert np.abs(model.encode_query(TEXTS) - model.encode(TEXTS, prompt_name="query")).max() <= 1e-6
    assert np.abs(model.encode_query(TEXTS) - vectors).max() > 1e-3
    assert len(model.encode(TEXTS[0], output_value="token_embeddings")) > 1


def _train(model: Any, out: Path) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    words = " ".join(TEXTS[:3]).split()[:8]
    pairs = Dataset.from_dict({"anchor": words, "positive": [f"all about {word}" for word in words]})
    settings = {"max_steps": 10, "logging_steps": 1, "learning_rate": 3e-3, "report_to": "none", "use_cpu": True}
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(str(out / "run"), save_strategy="no", disable_tqdm=True, **settings),
        train_dataset=pairs,
        loss=CachedMultipleNegativesRankingLoss(model, scale=50, mini_batch_size=3),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0], losses


if __name__ == "__main__":
    main()
