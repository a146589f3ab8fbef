"""Where training starts: a table of one vector per token, and a Mamba2 that at first does nothing but look it up.

    python warm.py --cache DIR… --tokenizer DIR --warm-start DIR --devset FILE --out static.pt

The table is the teacher's vector of each vocabulary entry, centred, scaled down for frequent tokens, and then trained
for a few minutes so that the mean over a text comes near the teacher's vector. `install` puts it into a model:

    residual stream = [content | identity | constant]       every token's vector has the same length R
      content       the table in the teacher's principal directions, which are the output's directions
      identity      principal directions of the teacher's input embeddings: tells frequent words, whose content is
                    small, apart; not in the output at first
      constant      fills up to R, so that RMSNorm leaves the content as it is; not in the output

The gains of the last norm keep the last two out of the output until training lets them in. `train.py --start` reads
the file and adds the layers, whose output projections begin near zero.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from cache import check_tokenizer
from evaluate import load_suite, sts_score

from thalweg.models.mamba2 import Mamba2

IDENTITY = 63  # directions beside the content; one more is the constant
SPECIAL = 2  # the first ids: end of text, padding
FREQUENCY = 3e-4  # a token this frequent keeps half of its length


def first_table(folder: Path) -> Tensor:
    """(V, d) from what tokenizer.py wrote; zero for the end and padding tokens."""
    outputs = np.load(folder / "warm_outputs.npy").astype(np.float32)
    counts = np.load(folder / "token_counts.npy").astype(np.float64)
    frequency = (counts + 1) / (counts + 1).sum()
    table = (outputs - outputs.mean(0)) * (FREQUENCY / (FREQUENCY + frequency))[:, None]
    table[:SPECIAL] = 0
    return torch.from_numpy(table.astype(np.float32))


def principal_directions(vectors: Tensor) -> Tensor:
    """(d, d) orthonormal columns, the strongest first."""
    return torch.linalg.eigh(vectors.float().t() @ vectors.float())[1].flip(1)


@torch.no_grad()
def install(model: Mamba2, table: Tensor, basis: Tensor, inputs: Tensor) -> None:
    """Make the model a look-up of `table` (V, d), seen in `basis` (d, d); `inputs` (V, d') gives the identities."""
    width = model.d_model - IDENTITY - 1
    content = table @ basis[:, :width]
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
    model.norm_f.weight.fill_(1.0)
    model.norm_f.weight[width:] = 0.0


def train_table(
    table: Tensor, ids: Tensor, at: np.ndarray, target: Tensor, epochs: int, rate: float, seed: int, texts: int = 4096
) -> Tensor:
    """Adam on the mean vector's distance to the target and on the matrix of similarities."""
    scale = table.square().mean().sqrt()
    table = torch.nn.Parameter(table / scale)
    optimizer = torch.optim.Adam([table], lr=rate, betas=(0.9, 0.99), fused=True)
    rng = np.random.default_rng(seed)
    lengths = np.diff(at)
    usable = np.flatnonzero(lengths > 0)
    steps = epochs * (len(usable) // texts)
    step = 0
    while step < steps:
        order = rng.permutation(usable)
        for rows in (order[i : i + texts] for i in range(0, len(order) - texts + 1, texts)):
            size = lengths[rows]
            ends = np.cumsum(size)
            where = np.arange(ends[-1]) + np.repeat(at[rows] - (ends - size), size)
            vectors = F.embedding_bag(
                ids[torch.from_numpy(where)].long(), table, torch.from_numpy(ends - size), mode="mean"
            )
            student, teacher = F.normalize(vectors, dim=1), target[torch.from_numpy(rows)].float()
            part = slice(0, 1024)
            similarity = student[part] @ student[part].t() - teacher[part] @ teacher[part].t()
            loss = (1 - (student * teacher).sum(1)).mean() + 20 * similarity.square().mean()
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            if step % 50 == 0 or step == steps:
                print(json.dumps({"static step": step, "of": steps, "loss": round(loss.item(), 4)}), flush=True)
    return table.detach() * scale


def load_units(folders: list[Path]) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Token ids, where each unit begins, and the units' vectors, of all caches."""
    ids = [np.load(folder / "student.npy") for folder in folders]
    lengths = [np.diff(np.load(folder / "student_at.npy")) for folder in folders]
    vectors = [np.load(folder / "vectors.npy") for folder in folders]
    at = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return np.concatenate(ids), at, torch.from_numpy(np.concatenate(vectors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, nargs="*", default=[], help="none: the table is not trained")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--warm-start", type=Path, required=True, help="folder of warm_*.npy and token_counts.npy")
    parser.add_argument("--devset", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    table = first_table(args.warm_start)

    def encode(texts: list[str]) -> np.ndarray:
        ids = [e.ids or [0] for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        return np.stack([table[torch.tensor(row)].mean(0).numpy() for row in ids])

    rows = load_suite(args.devset)["sts"]["stsb-dev"]
    print(json.dumps({"stsb-dev of the first table": round(sts_score(encode, rows), 4)}), flush=True)
    basis = principal_directions(torch.from_numpy(np.load(args.warm_start / "warm_outputs.npy")))
    if args.cache:
        began = time.time()
        check_tokenizer(args.cache, args.tokenizer)
        ids, at, vectors = load_units(args.cache)
        flat = torch.from_numpy(ids.astype(np.int32))
        table = train_table(table, flat, at, vectors, args.epochs, args.rate, args.seed)
        basis = principal_directions(vectors[:: max(1, len(vectors) // 100_000)])
        score = round(sts_score(encode, rows), 4)
        print(json.dumps({"stsb-dev": score, "minutes": round((time.time() - began) / 60, 2)}), flush=True)
    inputs = torch.from_numpy(np.load(args.warm_start / "warm_inputs.npy").astype(np.float32))
    torch.save({"table": table, "basis": basis, "inputs": inputs}, args.out)


if __name__ == "__main__":
    main()
