"""What is loaded is what sentence-transformers' trainer takes, with names, prompts and different columns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from thalweg.training.data import load_training_data

from ...corpus.tiny import write_model
from .tables import pairs, triples, write_rows


@pytest.mark.training
def test_the_trainer_takes_the_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from thalweg.integrations.sentence_transformers import load

    rows = [{"instruction": "Find it", **row} for row in [*triples(12, 2), *triples(6, 0, start=12)]]
    write_rows(tmp_path / "data" / "deep" / "with-prompt.jsonl", rows)
    write_rows(tmp_path / "data" / "plain.parquet", pairs(8))
    data = load_training_data([str(tmp_path / "data")])
    assert {name: len(rows) for name, rows in data.datasets.items()} == {
        "deep/with-prompt": 12,
        "deep/with-prompt (0 negatives)": 6,
        "plain": 8,
    }
    model = load(write_model(tmp_path / "model", n_layers=1), device="cpu")
    seen: list[str] = []
    preprocess = model.preprocess
    monkeypatch.setattr(
        model,
        "preprocess",
        lambda texts, prompt=None, **o: (seen.append(f"{prompt}{texts[0]}"), preprocess(texts, prompt=prompt, **o))[1],
    )
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"),
        num_train_epochs=1,
        per_device_train_batch_size=2,
        multi_dataset_batch_sampler="proportional",
        prompts={name: {"anchor": prompt} for name, prompt in data.prompts.items() if prompt},
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=data.datasets, loss=MultipleNegativesRankingLoss(model)
    )
    assert trainer.train().global_step == 6 + 3 + 4
    assert all(bool(torch.isfinite(weight).all()) for weight in model.parameters())
    prompted = [text for text in seen if text.startswith("Instruct: Find it\nQuery: question")]
    assert len(prompted) == 6 + 3  # one a batch, of the two data sets that have the prompt
    assert not any("Instruct" in text for text in seen if "answer" in text or "wrong" in text)
