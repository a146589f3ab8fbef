"""From last.pt or best.pt to a folder that thalweg, transformers and sentence-transformers open, with a model card.

    python export.py LAST.pt --tokenizer DIR --earlier DIR --sources SOURCES.tsv --out DIR [--scores FILE… --steps …]

The lexicon (pooling/lexicon.py) is that of the earlier version, or with `--whole CACHE` a new one: random codes, scaled
by how rare a token is in CACHE. Every number of the card comes from a file: the run's own record in LAST.pt, `--steps`
(the output of warm.py), and `--scores` (outputs of evaluate.py, of which the last line counts). An existing checkpoint
in `--out` is replaced.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import thalweg
from thalweg.checkpoints import EmbeddingConfig, save_checkpoint
from thalweg.models.mamba2 import Mamba2, Mamba2Config
from thalweg.pooling.lexicon import Lexicon

CARD = """---
license: apache-2.0
language: en
library_name: thalweg
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- feature-extraction
- sentence-similarity
- mamba2
- distillation
---

# {name}

A small English text embedder: a Mamba2 of {layers} layers and width {width}, distilled from
all-MiniLM-L6-v2. It reads texts of any length in time
linear in the length and in constant memory; nothing is cut. {parameters:.1f} M parameters, {size:.1f} MB in float16.
The vector has two halves, scaled to length 1 together. The first {width} dimensions are what the text means: the mean
over all tokens and a closing `<|endoftext|>`. The other {words} are the words it uses (a count sketch of its tokens,
rare ones weigh most), which count more the longer the text is: so a passage is found in a book by its names too. The
first {width} alone (`truncate_dim={width}`) are a vector of their own.

```python
import thalweg

model = thalweg.load()  # the copy in the package; or the path of this folder
vectors = model.encode(["The river found its bed.", "A text of any length."])
```

The folder also opens with `SentenceTransformer(folder, trust_remote_code=True)`, which gives the same vectors: run by
thalweg where it is installed, else by the stock modules; `thalweg_module.py` chooses.

## Scores

{scores}

Spearman's correlation (STS), accuracy of a logistic regression (Banking77), nDCG@10 (retrieval). `dev-…` sets were
held out of the training text and serve for choosing between models, as does STS-B dev. Made by
`scripts/train_small/evaluate.py`.

## Training

Trained with `scripts/train_small` in two phases, seed {seed}. No evaluation text was trained on.

1. A table of one vector per token, whose mean over a text learnt the teacher's vectors and their similarities,
   pairs, passages and the windows of books they are from, and summaries and their documents.{before}
2. The layers, and with them the table: {minutes} CPU minutes, {tokens} M tokens, {steps} steps of {processes}
   process(es).{note} Recipe: `{recipe}`

The text comes from the sources below; `scripts/train_small/README.md` says how it was put together. The full record
(repository, commit, licence of each source) is `SOURCES.tsv` beside the training data. The teacher is Apache-2.0.

| licence | sources |
|---|---|
{licences}
"""


MIDDLE = 3e-4
"""The frequency of a token that counts half as much as a rare one."""
COLUMNS = 4  # of a code


def make_lexicon(cache: Path, vocab_size: int, *, d_lexicon: int, seed: int, **constants: float) -> Lexicon:
    """Random codes for all ids; those without text (EOS, padding) have none."""
    counts = np.bincount(np.load(cache / "student.npy"), minlength=vocab_size)[:vocab_size]
    weight = MIDDLE / (MIDDLE + (counts + 1) / counts.sum())
    weight[[0, 1]] = 0
    rng = np.random.default_rng(seed)
    columns = np.stack([rng.permutation(d_lexicon)[:COLUMNS] for _ in range(vocab_size)])
    values = rng.choice([-1.0, 1.0], columns.shape) / COLUMNS**0.5 * weight[:, None]
    return Lexicon(columns.astype(np.int32), values.astype(np.float32), d_lexicon, **constants)


def score_table(files: Sequence[Path]) -> str:
    """One column per file, one row per score."""
    results: list[dict[str, Any]] = [json.loads(file.read_text().splitlines()[-1]) for file in files]
    if not results:
        return "Not measured yet."
    names = list(dict.fromkeys(name for result in results for name in result if name != "model"))
    labels = {"minilm": "all-MiniLM-L6-v2", "minilm-chunks": "all-MiniLM-L6-v2, mean of chunks"}
    heads = [labels.get(result["model"], Path(result["model"]).name) for result in results]
    rows = [f"| | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for name in names:
        cells = [f"{result[name]:.3f}" if name in result else "–" for result in results]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def licence_table(sources: Path) -> str:
    """The names of the sources by licence; one source's passages, pairs and documents count once."""
    found: dict[str, set[str]] = defaultdict(set)
    with sources.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            found[row["licence"]].add(row["source"].split("-", 1)[1])
    return "\n".join(f"| {licence} | {', '.join(sorted(names))} |" for licence, names in sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--sources", type=Path, required=True, help="SOURCES.tsv of the training data")
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--earlier", type=Path, help="the version whose lexicon is kept")
    origin.add_argument("--whole", type=Path, help="for a new lexicon: the cache whose tokens are counted")
    new = parser.add_argument_group("of a new lexicon")
    new.add_argument("--d-lexicon", type=int, default=384)
    new.add_argument("--strength", type=float, default=1.5)
    new.add_argument("--threshold", type=float, default=0.03)
    new.add_argument("--exponent", type=float, default=1.5)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scores", type=Path, nargs="*", default=[], help="outputs of evaluate.py")
    parser.add_argument("--steps", type=Path, nargs="*", default=[], help="outputs of warm.py to quote")
    parser.add_argument("--note", default="", help="on the run of train.py, for the card")
    args = parser.parse_args()

    saved = torch.load(args.model, weights_only=True)
    config = Mamba2Config(**saved["config"])
    model = Mamba2(config)
    model.load_state_dict({name: value.float() for name, value in saved["model"].items()})
    constants = {name: getattr(args, name) for name in ("d_lexicon", "strength", "threshold", "exponent")}
    if args.earlier:
        lexicon = thalweg.load(args.earlier).embedding_config.lexicon
    else:
        lexicon = make_lexicon(args.whole, config.vocab_size, seed=saved["recipe"]["seed"], **constants)
    if lexicon is None:
        raise SystemExit(f"{args.earlier} has no lexicon; give --whole CACHE for a new one")
    save_checkpoint(
        model,
        args.out,
        tokenizer_folder=args.tokenizer,
        embedding=EmbeddingConfig(
            pooling="mean", normalize=True, append_eos=True, lexicon=lexicon, special_tokens="text"
        ),
        dtype=torch.float16,
        load_dtype=torch.float32,
        overwrite=True,
        classes="either",
    )
    recipe, progress = saved["recipe"], saved["progress"]
    before = [line for file in args.steps for line in file.read_text().splitlines() if '"recipe"' in line]
    (args.out / "README.md").write_text(
        CARD.format(
            name=args.out.name,
            example=args.out.name,
            layers=config.n_layers,
            width=config.d_model,
            words=lexicon.d_lexicon,
            parameters=sum(p.numel() for p in model.parameters()) / 1e6,
            size=(args.out / "model.safetensors").stat().st_size / 1e6,
            scores=score_table(args.scores),
            minutes=progress["CPU minutes"],
            processes=progress["processes"],
            tokens=progress["Mtokens"],
            steps=progress["step"],
            seed=recipe["seed"],
            before="".join(f"\n   Recipe: `{json.dumps(json.loads(line)['recipe'])}`" for line in before),
            note=args.note and f" {args.note}",
            recipe=json.dumps(recipe),
            licences=licence_table(args.sources),
        ),
        encoding="utf-8",
    )
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
