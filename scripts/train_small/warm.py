"""Where training starts: a table of one vector per token, and a Mamba2 that at first does nothing but look it up.

    python warm.py --taught DIR… --whole DIR… --earlier DIR --tokenizer DIR --devset FILE --out static.pt

The table is the teacher's vector of each vocabulary entry, centred, scaled down for frequent tokens, and then trained
for some hundred steps. A mean of token vectors is a product of counts and table, so here whole windows of books cost
little. Each step learns three things: the teacher's vectors and their similarities (short texts in families, and
passages); pairs; and that a passage finds its window of a book, or a summary its document. Long texts are what such a
mean is good at, if rare names keep long vectors of their own. `install` puts the table into a model:

    residual stream = [content | identity | constant]       every token's vector has the same length R
      content       the table in the teacher's principal directions, which are the output's directions
      identity      principal directions of the teacher's input embeddings: tells frequent words, whose content is
                    small, apart; not in the output at first
      constant      fills up to R, so that RMSNorm leaves the content as it is; not in the output

`--earlier` goes on from a model of an earlier version instead: its token vectors, as the last norm leaves them, are the
table; the directions of the output are found by turning the teacher's vectors onto its own (Procrustes); and
`reinstall` puts the new content back in front of its layers, which read it as before.

The gains of the last norm keep the last two out of the output until training lets them in. `train.py --start` reads
the file and adds the layers, whose output projections begin near zero.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from batches import Taught, Whole, info_nce, recipe_of, structure_loss
from cache import check_tokenizer
from evaluate import load_suite, score, sts_score

import thalweg
from thalweg.models.mamba2 import Mamba2

IDENTITY = 63  # directions beside the content; one more is the constant
EOS = 0
SPECIAL = 2  # the first ids: end of text, padding
FREQUENCY = 3e-4  # a token this frequent keeps half of its length


def first_table(folder: Path, counts: np.ndarray) -> Tensor:
    """(V, d) from what tokenizer.py wrote and how often each token occurs; zero for the end and padding tokens."""
    outputs = np.load(folder / "warm_outputs.npy").astype(np.float32)
    frequency = (counts + 1) / (counts + 1).sum()
    table = (outputs - outputs.mean(0)) * (FREQUENCY / (FREQUENCY + frequency))[:, None]
    table[:SPECIAL] = 0
    return torch.from_numpy(table.astype(np.float32))


def principal_directions(vectors: Tensor) -> Tensor:
    """(d, d) orthonormal columns, the strongest first."""
    return torch.linalg.eigh(vectors.float().t() @ vectors.float())[1].flip(1)


@torch.no_grad()
def install(model: Mamba2, table: Tensor, inputs: Tensor) -> None:
    """Make the model a look-up of `table` (V, d), the strongest directions first; `inputs` (V, d') the identities."""
    width = model.d_model - IDENTITY - 1
    content = table[:, :width].clone()
    centred = inputs - inputs.mean(0)
    identity = F.normalize(centred @ principal_directions(centred)[:, :IDENTITY], dim=1)
    length = content.norm(dim=1)
    most = torch.quantile(length, 0.999)
    content *= (most / length.clamp(min=1e-6)).clamp(max=1)[:, None]
    radius = 1.25 * most
    rest = torch.sqrt(radius**2 - content.square().sum(1, keepdim=True))
    vectors = torch.cat([content, identity * (0.5 * radius), rest], 1)
    vectors[:, -1:] = torch.sqrt((rest.square() - (0.5 * radius) ** 2).clamp(min=0))
    rows = model.embeddings.weight
    rows.zero_()
    rows[: len(vectors)] = F.normalize(vectors, dim=1) * model.d_model**0.5
    rows[len(vectors) :, -1] = model.d_model**0.5
    model.norm.weight.fill_(1.0)
    model.norm.weight[width:] = 0.0


@dataclass
class Recipe:
    """The training of the table. Learning rate in units of the table's mean square."""

    steps: int = 500
    rate: float = 0.03
    short: int = 1536  # texts a step, in families of
    family: int = 16
    passages: int = 256
    pairs: int = 768
    windows: int = 40
    windows_per_book: int = 10
    summaries: int = 32  # in every fourth step
    window_units: tuple[int, ...] = (6, 12, 24, 47, 47)  # 47 units are 8,000 words
    similarity_weight: float = 20.0
    order_weight: float = 0.3
    pair_weight: float = 0.1
    window_weight: float = 0.1
    temperature: float = 0.05
    window_temperature: float = 0.03  # windows of one book are much alike
    seed: int = 0


@torch.no_grad()
def content_of(model: Mamba2) -> Tensor:
    """(V, width) what each token adds to a mean if the layers do nothing."""
    rows = model.embeddings.weight
    width = model.d_model - IDENTITY - 1
    return (F.normalize(rows, dim=1) * model.d_model**0.5 * model.norm.weight)[:, :width].clone()


@torch.no_grad()
def reinstall(model: Mamba2, table: Tensor) -> None:
    """Give an earlier model new content (V, width); the identities stay, the constant fills up as before."""
    width = table.shape[1]
    rows = F.normalize(model.embeddings.weight, dim=1) * model.d_model**0.5
    old = rows[: len(table), :width]
    new = table / model.norm.weight[:width].clamp(min=0.2)
    new *= old.norm(dim=1).median() / new.norm(dim=1).median()
    identity = rows[: len(table), width:-1].square().sum(1)
    room = model.d_model - identity
    new *= (0.95 * room.sqrt() / new.norm(dim=1).clamp(min=1e-6)).clamp(max=1)[:, None]
    rows[: len(table), :width] = new
    rows[: len(table), -1] = torch.sqrt(room - new.square().sum(1))
    model.embeddings.weight.copy_(rows)


def turn(of: Tensor, onto: Tensor) -> Tensor:
    """(d, d) the rotation that brings the rows of `of` nearest to those of `onto`."""
    left, _, right = torch.linalg.svd(of.t() @ onto)
    return left @ right


def means(table: Tensor, texts: list[np.ndarray]) -> Tensor:
    """(n, d) the normalised mean token vector of each text, from its distinct tokens and their counts."""
    counted = [np.unique(text, return_counts=True) for text in texts]
    starts = np.cumsum([0, *(len(tokens) for tokens, _ in counted)])[:-1]
    tokens = torch.from_numpy(np.concatenate([tokens for tokens, _ in counted]).astype(np.int64))
    counts = torch.from_numpy(np.concatenate([counts for _, counts in counted]).astype(np.float32))
    return F.normalize(F.embedding_bag(tokens, table, torch.from_numpy(starts), mode="sum", per_sample_weights=counts))


def train_table(table: Tensor, taught: Taught, whole: Whole, recipe: Recipe) -> Tensor:
    """Adam on the sum of the losses; the rate falls linearly to zero."""
    scale = table.square().mean().sqrt()
    table = torch.nn.Parameter(table / scale)
    optimizer = torch.optim.Adam([table], lr=recipe.rate, betas=(0.9, 0.99), fused=True)
    for step in range(recipe.steps):
        rng = np.random.default_rng([recipe.seed, step])
        rows = np.concatenate(
            [taught.draw_short(recipe.short, recipe.family, rng), taught.draw_passages(recipe.passages, rng)]
        )
        sides = [("pairs", recipe.pair_weight, recipe.temperature, whole.draw_pairs(recipe.pairs, rng))]
        units = int(rng.choice(recipe.window_units))
        if step % 4 == 3:
            long = whole.draw_summaries(recipe.summaries, rng)
        else:
            long = whole.draw_windows(units, recipe.windows, recipe.windows_per_book, rng)
        sides.append(("long", recipe.window_weight, recipe.window_temperature, long))
        texts = [taught.text(row) for row in rows] + [t for *_, side in sides for t in (*side.queries, *side.keys)]
        vectors = means(table, texts)
        student, teacher = vectors[: len(rows)], taught.vectors[torch.from_numpy(rows)]
        squared, order, _ = structure_loss(student, teacher, recipe.temperature)
        parts = {"cosine": (1 - (student * teacher).sum(1)).mean(), "similarity": squared, "order": order}
        loss = parts["cosine"] + recipe.similarity_weight * squared + recipe.order_weight * order
        done = len(rows)
        for name, weight, temperature, side in sides:
            query, key = vectors[done : done + 2 * len(side.keys)].chunk(2)
            parts[name] = info_nce(query, key, torch.from_numpy(side.same), temperature)
            loss, done = loss + weight * parts[name], done + 2 * len(side.keys)
        optimizer.param_groups[0]["lr"] = recipe.rate * (1 - step / recipe.steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 25 == 24 or step == 0:
            losses = {name: round(value.item(), 4) for name, value in parts.items()}
            print(json.dumps({"static step": step + 1, "seconds": round(time.process_time()), **losses}), flush=True)
    return table.detach() * scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--taught", type=Path, nargs="+", required=True, help="caches with the teacher's vectors")
    parser.add_argument("--whole", type=Path, nargs="+", required=True, help="caches of whole shards")
    parser.add_argument("--tokenizer", type=Path, required=True)
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--warm-start", type=Path, help="folder of warm_*.npy, for a new model")
    start.add_argument("--earlier", type=Path, help="folder of an earlier version, to go on from")
    parser.add_argument(
        "--turn-by", type=int, default=4096, help="texts by which an earlier version's directions are found"
    )
    parser.add_argument(
        "--layer-scale", type=float, default=0.5, help="of an earlier version's layers, which read another table now"
    )
    parser.add_argument("--devset", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", nargs="*", default=[], help="recipe fields, name=value")
    args = parser.parse_args()
    recipe = recipe_of(Recipe, args.set)
    torch.manual_seed(recipe.seed)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    check_tokenizer([*args.taught, *args.whole], args.tokenizer)
    taught, whole = Taught(args.taught, longest_short=32), Whole(args.whole, longest=320)
    size = tokenizer.get_vocab_size()
    if args.earlier:
        earlier = thalweg.load(args.earlier)
        rows = taught.short[: args.turn_by]
        own = earlier.encode_ids([np.append(taught.text(row), EOS) for row in rows])[:, : earlier.model.d_model]
        basis = turn(taught.vectors[torch.from_numpy(rows)], F.normalize(torch.from_numpy(own).float(), dim=1))
        table = content_of(earlier.model)[:size]
        taught.vectors = F.normalize((taught.vectors @ basis)[:, : table.shape[1]], dim=1)
    else:
        basis = principal_directions(taught.vectors[:100_000])
        table = first_table(args.warm_start, np.bincount(whole.ids, minlength=size))

    def encode(texts: list[str]) -> np.ndarray:
        ids = [np.array(e.ids or [0]) for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        return means(table, ids).numpy()

    suite = load_suite(args.devset)
    print(json.dumps({"recipe": asdict(recipe)}), flush=True)
    print(json.dumps({"first table": sts_score(encode, suite["sts"]["stsb-dev"])}), flush=True)
    table = train_table(table, taught, whole, recipe)
    if args.earlier:
        reinstall(earlier.model, table)
        for layer in earlier.model.layers:
            layer.mixer.out_proj.weight.data *= args.layer_scale
        model = {"weights": earlier.model.state_dict(), "config": asdict(earlier.model.config)}
        width = earlier.model.d_model
        torch.save({"table": F.pad(table, (0, width - table.shape[1])), "basis": basis, **model}, args.out)
    else:
        inputs = torch.from_numpy(np.load(args.warm_start / "warm_inputs.npy").astype(np.float32))
        torch.save({"table": table @ basis, "basis": basis, "inputs": inputs}, args.out)
    suite["classification"] = {}
    print(json.dumps({"model": args.out.name, **score(encode, suite, long=True)}), flush=True)


if __name__ == "__main__":
    main()
