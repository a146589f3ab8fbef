"""Distils the small model: a Mamba2 student on top of the trained table.

    python train.py --taught DIR… --whole DIR… --tokenizer DIR --start static.pt --devset FILE --out DIR --steps N

`--start` is what warm.py writes. Every step reads short texts with a teacher's vector, in families of near ones, laid
out in blocks (blocks.py): distance to the teacher's vector, and the structure of their similarities. Some
steps add longer blocks, in turn
  pairs     pairs of one source (InfoNCE), and taught passages. Each side must also find the other among many, whose
            vectors come from the table as it was at the start
  long      passages that must find their window of a book (InfoNCE), or pieces of summaries their document and
            those of documents another one of the same work, and at times one window read whole. The vectors of windows
            and documents come from that table too, a mean of token vectors: it is good at long texts and costs nothing,
            and the window that is read whole must come near its own.

The rate is constant, then falls linearly to zero over the last `decay` of `--steps`. A run that `--stop-after` or a
kill ended goes on with `--resume`, also with another number of `--steps` or more caches; a step's batch depends only on
seed, step, rank and caches. Started by torchrun as several processes, each takes its own steps, and every
`--average-every` steps all take the mean of their weights. Written to `--out`: log-N.jsonl and checkpoint-N.pt of each
process, and the running mean of the weights in float16: last.pt, and best.pt with the best score on STS-B dev so far.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from batches import Taught, Whole, info_nce, one_way, recipe_of, structure_loss
from blocks import BlockModel, Blocks, fill
from cache import check_tokenizer
from evaluate import load_suite, sts_score
from mix import read
from warm import install, means

from thalweg.models.mamba2 import Mamba2, Mamba2Config, Mamba2Layer
from thalweg.packing import Packing

EOS = 0
TAPS = 4  # of the convolution


@dataclass
class Recipe:
    """Everything that shapes the model and the run. The defaults suit one CPU core."""

    d_model: int = 384
    n_layers: int = 2
    head_dim: int = 64
    d_state: int = 64
    expand: int = 1
    chunk_size: int = 32  # of the packed scan
    short_block: int = 64
    short_blocks: int = 64
    short_tokens: int = 32  # the longest short text
    family: int = 12
    passage_block: int = 128
    passage_blocks: int = 12
    longer_every: int = 3  # steps
    read_every: int = 8  # of the steps with windows
    summaries_every: int = 0  # of those steps: documents by summaries instead; 0: never
    summaries: int = 64
    pairs: int = 48  # drawn; of those that do not fit the blocks only the table's vectors are used
    windows: int = 16
    windows_per_book: int = 8
    window_units: tuple[int, ...] = (12, 24, 47)
    read_units: int = 12  # of the window that is read whole
    learning_rate: float = 2e-3
    embedding_rate: float = 5e-4
    weight_decay: float = 0.01
    warm_up: int = 40  # steps
    decay: float = 0.4
    out_scale: float = 0.02  # of the layers' output projections at the start
    average: float = 0.98  # of the running mean of the weights, a step
    temperature: float = 0.05
    window_temperature: float = 0.03  # windows of one book are much alike
    similarity_weight: float = 20.0
    order_weight: float = 0.3
    near_weight: float = 0.0
    pair_weight: float = 0.1
    window_weight: float = 0.1
    seed: int = 0


@dataclass
class Batch:
    """One step. `texts[k]` (items of blocks k) are vectors to reach, or None where a text has none of the teacher's."""

    short: Blocks
    short_target: Tensor
    longer: Blocks | None = None
    pairs: tuple[Tensor, Tensor, Tensor] | None = None  # items of queries, of keys, and `same` of all pairs drawn
    drawn: tuple[Tensor, Tensor] | None = None  # the table's vectors of their queries and keys, and of more
    passages: tuple[Tensor, Tensor] | None = None  # items, targets
    windows: tuple[Tensor, Tensor, Tensor] | None = None  # items of queries, vectors of all windows drawn, and `same`
    read: tuple[Tensor, Packing, Tensor] | None = None  # tokens of a window, packing, its vector
    n_tokens: int = 0


class Data:
    """Draws steps."""

    def __init__(
        self, taught: Taught, whole: Whole, table: Tensor, basis: Tensor, recipe: Recipe, rank: int = 0
    ) -> None:
        self.taught, self.whole, self.recipe = taught, whole, recipe
        self.table, self.rank = table, rank
        self.targets = taught.vectors @ basis

    def batch(self, step: int, device: torch.device) -> Batch:
        r, rng = self.recipe, np.random.default_rng([self.recipe.seed, step, self.rank])
        shape = (r.short_blocks, r.short_block)
        rows = self.taught.draw_short(shape[0] * shape[1] // 9, r.family, rng)
        rows = rows[: fill(self.taught.lengths[rows] + 1, shape)]
        texts = [_closed(self.taught.text(row)) for row in rows]
        batch = Batch(Blocks.of(texts, shape, TAPS, device), self.targets[torch.from_numpy(rows)])
        if step % (2 * r.longer_every) == 0:
            texts += self._pairs(batch, rng, device)
        elif step % r.longer_every == 0:
            number = step // (2 * r.longer_every)
            summaries, read = r.summaries_every > 0 and number % r.summaries_every == 0, number % r.read_every == 0
            texts += self._long(batch, rng, summaries, read, device)
        batch.n_tokens = sum(map(len, texts))
        return batch

    def _pairs(self, batch: Batch, rng: np.random.Generator, device: torch.device) -> list[np.ndarray]:
        r, (blocks, size) = self.recipe, (self.recipe.passage_blocks, self.recipe.passage_block)
        sides = self.whole.draw_pairs(r.pairs, rng)
        texts = [_closed(text) for pair in zip(sides.queries, sides.keys, strict=True) for text in pair]
        n = fill(np.array([len(text) for text in texts]), (blocks * 3 // 4, size)) // 2
        rows = self.taught.draw_passages(2 * blocks, rng)
        rows = rows[self.taught.lengths[rows] < size]
        texts = texts[: 2 * n] + [_closed(self.taught.text(row)) for row in rows]
        texts = texts[: fill(np.array([len(text) for text in texts]), (blocks, size))]
        batch.longer = Blocks.of(texts, (blocks, size), TAPS, device)
        batch.pairs = (torch.arange(0, 2 * n, 2), torch.arange(1, 2 * n, 2), torch.from_numpy(sides.same))
        batch.drawn = (means(self.table, sides.queries), means(self.table, sides.keys))
        rows = rows[: len(texts) - 2 * n]
        batch.passages = (torch.arange(2 * n, len(texts)), self.targets[torch.from_numpy(rows)])
        return texts

    def _long(
        self, batch: Batch, rng: np.random.Generator, summaries: bool, read: bool, device: torch.device
    ) -> list[np.ndarray]:
        r, shape = self.recipe, (self.recipe.passage_blocks, self.recipe.passage_block)
        if summaries:
            sides = self.whole.draw_summaries(r.summaries, rng)
        else:
            sides = self.whole.draw_windows(int(rng.choice(r.window_units)), r.windows, r.windows_per_book, rng)
        texts = [_closed(text) for text in sides.queries]
        texts = texts[: fill(np.array([len(text) for text in texts]), shape)]
        batch.longer = Blocks.of(texts, shape, TAPS, device)
        same = torch.from_numpy(sides.same)[: len(texts)]
        batch.windows = (torch.arange(len(texts)), means(self.table, sides.keys), same)
        if not read:
            return texts
        window = self.whole.draw_windows(r.read_units, 1, 1, rng).keys[0]
        whole = _closed(window)
        target = means(self.table, [window])[0]
        batch.read = (torch.from_numpy(whole).to(device), Packing.whole([len(whole)], device), target)
        return [*texts, whole]


def _closed(text: np.ndarray) -> np.ndarray:
    return np.append(text.astype(np.int64), EOS)


def embed(model: Mamba2, tokens: Tensor, packing: Packing, lengths: Tensor) -> Tensor:
    """(items, d) normalised mean of the hidden vectors of a packed run."""
    hidden, _ = model(tokens, packing)
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), lengths)
    total = torch.zeros(len(lengths), hidden.shape[1], device=hidden.device).index_add(0, rows, hidden.float())
    return F.normalize(total / lengths[:, None], dim=1)


def loss_of(model: Mamba2, blocks: BlockModel, batch: Batch, r: Recipe) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of all parts, and the parts."""
    student = blocks.embed(batch.short)
    parts = {"short": (1 - (student * batch.short_target).sum(1)).mean()}
    parts["similarity"], parts["order"], parts["near"] = structure_loss(student, batch.short_target, r.temperature)
    total = parts["short"] + r.similarity_weight * parts["similarity"] + r.order_weight * parts["order"]
    total = total + r.near_weight * parts["near"]
    longer = blocks.embed(batch.longer) if batch.longer else student
    if batch.pairs and batch.drawn and len(batch.pairs[0]) > 1:
        query, key, same = longer[batch.pairs[0]], longer[batch.pairs[1]], batch.pairs[2]
        n = len(query)
        parts["pairs"] = info_nce(query, key, same[:n, :n], r.temperature)
        queries, keys = batch.drawn
        found = one_way(query, keys, same[:n], r.temperature) + one_way(key, queries, same.t()[:n], r.temperature)
        parts["drawn"] = found / 2
        total = total + r.pair_weight * (parts["pairs"] + parts["drawn"]) / 2
    if batch.passages and len(batch.passages[0]):
        items, target = batch.passages
        parts["passages"] = (1 - (longer[items] * target).sum(1)).mean()
        total = total + 0.5 * parts["passages"]
    if batch.windows:
        items, key, same = batch.windows
        query, n = longer[items], len(items)
        back = one_way(key[:n], query, same[:, :n].t(), r.window_temperature)
        parts["windows"] = (one_way(query, key, same, r.window_temperature) + back) / 2
        total = total + r.window_weight * parts["windows"]
    if batch.read:
        tokens, packing, target = batch.read
        vector = embed(model, tokens, packing, torch.tensor([len(tokens)]))[0]
        parts["read"] = 1 - (vector * target).sum()
        total = total + 0.5 * parts["read"]
    return total, parts


def encoder(model: Mamba2, tokenizer_folder: Path, step_tokens: int = 8192) -> Callable[[list[str]], np.ndarray]:
    """Texts to vectors with the packed model, in float32 on a CPU and bfloat16 on a GPU."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    @torch.inference_mode()
    def encode(texts: list[str]) -> np.ndarray:
        ids = [[*e.ids, EOS] for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        out: list[Tensor] = []
        group: list[list[int]] = []
        for i, row in enumerate(ids):
            group.append(row)
            if sum(map(len, group)) > step_tokens or i == len(ids) - 1:
                lengths = [len(row) for row in group]
                tokens = torch.tensor([t for row in group for t in row], device=model.device)
                size = torch.tensor(lengths, device=model.device)
                with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
                    out.append(embed(model, tokens, Packing.whole(lengths, model.device), size))
                group = []
        return torch.cat(out).cpu().numpy()

    return encode


def build(recipe: Recipe, vocab_size: int, start: Path) -> tuple[Mamba2, Tensor, Tensor]:
    """The model at the start, the table, and the directions of the teacher's space that its output has."""
    saved = torch.load(start, weights_only=True)
    if "weights" in saved:
        model = Mamba2(Mamba2Config(**saved["config"]))
        model.load_state_dict(saved["weights"])
    else:
        model = Mamba2(
            Mamba2Config(
                vocab_size=vocab_size,
                d_model=recipe.d_model,
                n_layers=recipe.n_layers,
                n_heads=recipe.expand * recipe.d_model // recipe.head_dim,
                head_dim=recipe.head_dim,
                d_state=recipe.d_state,
            )
        )
        for layer in model.layers:
            assert isinstance(layer, Mamba2Layer)
            layer.mixer.out_proj.weight.data *= recipe.out_scale
        install(model, saved["table"], saved["inputs"])
    for layer in model.layers:
        assert isinstance(layer, Mamba2Layer)
        layer.mixer.chunk_size = recipe.chunk_size
    return model, saved["table"], saved["basis"]


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Factor: linear warm-up, constant, linear to 0 over the last `decay` of the steps."""
    return min(1.0, (step + 1) / recipe.warm_up, (steps - step) / (recipe.decay * steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--taught", type=Path, nargs="+", required=True, help="caches with the teacher's vectors")
    parser.add_argument("--whole", type=Path, nargs="+", required=True, help="caches of whole shards")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="what mix.py wrote or an earlier version, to go on from")
    parser.add_argument("--devset", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True, help="length of the whole schedule")
    parser.add_argument("--stop-after", type=int, help="the step at which this call stops, the schedule being longer")
    parser.add_argument("--score-every", type=int, default=50, help="steps between scores on STS-B dev")
    parser.add_argument("--average-every", type=int, default=8, help="steps between means of several processes")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--eager", action="store_true", help="without torch.compile, which needs a C++ compiler")
    parser.add_argument(
        "--bfloat16", action="store_true", help="products in bfloat16, for CPUs with instructions for it"
    )
    parser.add_argument("--set", nargs="*", default=[], help="recipe fields, name=value")
    args = parser.parse_args()

    recipe = recipe_of(Recipe, args.set)
    device = torch.device("cpu")
    torch.manual_seed(recipe.seed)
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1:
        torch.distributed.init_process_group("gloo", timeout=timedelta(hours=2))
    check_tokenizer([*args.taught, *args.whole], args.tokenizer)
    taught, whole = Taught(args.taught, recipe.short_tokens), Whole(args.whole, recipe.passage_block - 1)
    dev = load_suite(args.devset)["sts"]["stsb-dev"]
    vocab = json.loads((args.tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    model, table, basis = build(recipe, -(-len(vocab) // 64) * 64, args.start)
    if args.weights:
        model.load_state_dict(read(args.weights)[0])
    data = Data(taught, whole, table, basis, recipe, rank)
    mean, *_ = build(recipe, model.config.vocab_size, args.start)
    mean.load_state_dict(model.state_dict())
    blocks = BlockModel(model, torch.bfloat16 if args.bfloat16 else torch.float32, compiled=not args.eager)
    encode = encoder(mean.eval(), args.tokenizer)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "conv" not in n and "embeddings" not in n]
    vectors = [p for n, p in model.named_parameters() if p.ndim == 1 or "conv" in n]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay},
            {"params": vectors, "lr": recipe.learning_rate, "weight_decay": 0.0},
            {"params": [model.embeddings.weight], "lr": recipe.embedding_rate, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        eps=1e-8,
        fused=True,
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / f"checkpoint-{rank}.pt"
    spent, steps, seen, best = 0.0, 0, 0, -1.0
    if args.resume and checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        mean.load_state_dict(saved["mean"])
        optimizer.load_state_dict(saved["optimizer"])
        spent, steps, seen, best = saved["spent"], saved["steps"], saved["seen"], saved["best"]
    log = (args.out / f"log-{rank}.jsonl").open("a")

    def tell(row: dict[str, object]) -> None:
        print(json.dumps(row), flush=True)
        log.write(json.dumps(row) + "\n")
        log.flush()

    def where() -> dict[str, object]:
        minutes = (spent + time.process_time() - began) / 60
        done = {"step": steps, "processes": processes, "CPU minutes": round(minutes * processes, 2)}
        return {**done, "Mtokens": round(seen * processes / 1e6, 2)}

    def save() -> None:
        """Store the run; the first process scores the mean weights, and keeps them if they are the best."""
        state = {"model": model.state_dict(), "mean": mean.state_dict(), "optimizer": optimizer.state_dict()}
        now = spent + time.process_time() - began
        _store({**state, "spent": now, "steps": steps, "seen": seen, "best": best}, checkpoint)
        if rank == 0:
            score_and_keep()

    def score_and_keep() -> None:
        nonlocal best
        score = sts_score(encode, dev)
        tell({**where(), "stsb-dev": round(score, 4)})
        weights = {name: value.to("cpu", torch.float16) for name, value in mean.state_dict().items()}
        progress = {**where(), "stsb-dev": score}
        run = {"recipe": asdict(recipe), "config": asdict(model.config), "progress": progress}
        _store({"model": weights, **run}, args.out / "last.pt")
        if score > best:
            best = score
            _store({"model": weights, **run}, args.out / "best.pt")

    began = time.process_time()
    sizes = {"short": len(taught.short), "passages": len(taught.passages), "books": len(whole.documents)}
    tell({"recipe": asdict(recipe), "parameters": sum(p.numel() for p in model.parameters()), **sizes})
    if steps == 0:
        save()
    ahead: queue.Queue[Batch] = queue.Queue(2)

    def draw() -> None:
        for step in range(steps, args.steps):
            ahead.put(data.batch(step, device))

    threading.Thread(target=draw, daemon=True).start()
    while steps < min(args.steps, args.stop_after or args.steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * learning_rate(steps, args.steps, recipe)
        batch = ahead.get()
        loss, parts = loss_of(model, blocks, batch, recipe)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps, seen = steps + 1, seen + batch.n_tokens
        if processes > 1 and (steps % args.average_every == 0 or steps == args.steps):
            for parameter in model.parameters():
                torch.distributed.all_reduce(parameter.data)
                parameter.data /= processes
        with torch.no_grad():
            decay = min(recipe.average, steps / (steps + 10))
            torch._foreach_lerp_(list(mean.parameters()), list(model.parameters()), 1 - decay)
        if steps % (5 * recipe.longer_every) in (1, recipe.longer_every + 1):  # a step with pairs, or windows
            losses: dict[str, object] = {name: round(value.item(), 4) for name, value in parts.items()}
            tell({**where(), "lr": round(optimizer.param_groups[0]["lr"], 6), **losses})
        if steps % args.score_every == 0:
            save()
    save()


def _store(content: dict[str, object], path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)


if __name__ == "__main__":
    main()
