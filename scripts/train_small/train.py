"""Distils the small model: a Mamba2 student learns the teacher's vectors, pairs and long documents together.

    python train.py --cache DIR… --tokenizer DIR --start static.pt --devset FILE --out DIR --minutes 30 [--set n=v…]

`--start` is what warm.py writes. One step has three parts:
  short     texts of up to `short_block` tokens, in blocks (blocks.py); among them the queries of some pairs
  passages  in some steps: texts of up to `passage_block` tokens, in longer blocks; among them the positives of pairs
  long      in some steps: windows of whole documents, packed, each with one of its own units as a query

Loss: distance to the teacher's vector (all), squared error of the matrix of similarities (short, passages), and
InfoNCE (pairs, long). The schedule follows the clock, so a run gives what the machine could do in its minutes, and two
runs with one `seed` see the same batches but not equally many. A run that `--stop-after` or a kill ended goes on with
`--resume`. Written to `--out`: log.jsonl, checkpoint.pt, and the running mean of the weights in float16: last.pt, and
best.pt with the best score on STS-B dev so far.
"""

from __future__ import annotations

import argparse
import json
import math
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from blocks import BlockModel, Blocks, fill
from cache import check_tokenizer
from data import CONTRASTIVE_SHARES, DISTILLATION_SHARES, Source, sampling_weights
from evaluate import load_suite, sts_score
from warm import install

from thalweg.models.mamba2 import Mamba2, Mamba2Config, Mamba2Layer
from thalweg.packing import Packing

EOS = 0


@dataclass
class Recipe:
    """Everything that shapes the model and the run. The defaults suit one CPU core."""

    d_model: int = 384
    n_layers: int = 2
    head_dim: int = 64
    d_state: int = 64
    expand: int = 2
    chunk_size: int = 32  # of the packed scan
    short_block: int = 64
    short_blocks: int = 64
    passage_block: int = 256
    passage_blocks: int = 8
    passage_every: int = 2  # steps
    pairs: int = 64  # drawn a step; those that do not fit the blocks are left out
    long_every: int = 16  # steps
    long_tokens: int = 4096
    window_units: tuple[int, ...] = (2, 4, 8, 12)
    learning_rate: float = 2e-3
    embedding_rate: float = 1e-3
    weight_decay: float = 0.01
    warm_up: float = 0.03
    out_scale: float = 0.02  # of the layers' output projections at the start
    average: float = 0.99  # of the running mean of the weights, a step
    temperature: float = 0.05
    similarity_weight: float = 20.0
    pair_weight: float = 0.1
    long_weight: float = 0.1
    same_threshold: float = 0.92  # teacher similarity above which an in-batch negative is none
    seed: int = 0


@dataclass
class Batch:
    """One step. Items are numbered: short texts, passages, then long queries and long windows."""

    blocks: list[Blocks]  # short texts, and in some steps passages
    target: Tensor  # (items, d)
    pairs: Tensor  # (m, 2) items
    long: tuple[Tensor, Packing, Tensor, int] | None = None  # tokens, packing, lengths, number of windows
    n_tokens: int = field(default=0)


class Data:
    """All caches as one table of units and texts."""

    def __init__(self, folders: list[Path], recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        parts: dict[str, list[np.ndarray]] = {k: [] for k in ("ids", "at", "vectors", "texts", "pairs")}
        units = tokens = texts = 0
        names = json.loads((folders[0] / "sources.json").read_text())
        sources = [Source(*name) for name in names]
        for folder in folders:
            assert json.loads((folder / "sources.json").read_text()) == names, "caches of different preparations"
            at = np.load(folder / "student_at.npy")
            table, pairs = np.load(folder / "texts.npy"), np.load(folder / "pairs.npy")
            table[:, 0] += units
            pairs[:, :2] += texts
            parts["ids"].append(np.load(folder / "student.npy"))
            parts["at"].append(at[:-1] + tokens)
            parts["vectors"].append(np.load(folder / "vectors.npy"))
            parts["texts"].append(table)
            parts["pairs"].append(pairs)
            units, tokens, texts = units + len(at) - 1, tokens + int(at[-1]), texts + len(table)
        self.at = np.concatenate([*parts["at"], [tokens]])
        self.ids = np.concatenate(parts["ids"])
        self.vectors = torch.from_numpy(np.concatenate(parts["vectors"]))
        self.texts = np.concatenate(parts["texts"])
        self.lengths = self.span(self.texts[:, 0], self.texts[:, 1])
        single = (self.texts[:, 3] == 0) & (self.texts[:, 1] == 1) & (self.lengths > 1)
        self.short = np.flatnonzero(single & (self.lengths <= recipe.short_block))
        self.passages = np.flatnonzero(
            single & (self.lengths > recipe.short_block) & (self.lengths <= recipe.passage_block)
        )
        self.cdf = {
            name: np.cumsum(sampling_weights(sources, self.texts[rows, 2], DISTILLATION_SHARES))
            for name, rows in (("short", self.short), ("passages", self.passages))
        }
        self.documents = self.texts[(self.texts[:, 3] == 1) & (self.texts[:, 1] >= 2)]
        pairs = np.concatenate(parts["pairs"])
        fits = single[pairs[:, 0]] & single[pairs[:, 1]]
        fits &= (self.lengths[pairs[:, :2]] <= recipe.passage_block).all(1)
        self.pairs_of = {s: pairs[fits & (pairs[:, 2] == s)] for s in np.unique(pairs[:, 2])}
        self.pairs_of = {s: p for s, p in self.pairs_of.items() if len(p) >= 32}
        self.pair_sources = np.array(list(self.pairs_of))
        sizes = np.array([len(self.pairs_of[s]) for s in self.pair_sources], float)
        share = sampling_weights(sources, self.pair_sources, CONTRASTIVE_SHARES, most_repeated=1e9) * np.sqrt(sizes)
        self.pair_share = share / share.sum()
        print(
            json.dumps(
                {
                    "units": units,
                    "Mtokens": round(tokens / 1e6, 2),
                    "short texts": len(self.short),
                    "passages": len(self.passages),
                    "documents": len(self.documents),
                    "pairs": int(sizes.sum()),
                }
            ),
            flush=True,
        )

    def span(self, first: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Tokens of runs of units, EOS included."""
        return self.at[first + count] - self.at[first] + 1

    def tokens(self, first: int, count: int) -> np.ndarray:
        """Ids of a run of units, EOS included."""
        return np.append(self.ids[self.at[first] : self.at[first + count]].astype(np.int64), EOS)

    def target(self, first: int, count: int) -> Tensor:
        """(d,) mean of the units' vectors, normalised."""
        return F.normalize(self.vectors[first : first + count].float().mean(0), dim=0)

    def batch(self, rng: np.random.Generator, step: int) -> Batch:
        """Draw one step."""
        r = self.recipe
        kinds = [("short", self.short, (r.short_blocks, r.short_block))]
        if step % r.passage_every == 0:
            kinds.append(("passages", self.passages, (r.passage_blocks, r.passage_block)))
        pool = self.pairs_of[rng.choice(self.pair_sources, p=self.pair_share)]
        drawn = pool[rng.permutation(len(pool))[: r.pairs], :2]
        sides = drawn[rng.permutation(len(drawn))].ravel()
        chosen: list[np.ndarray] = []
        for name, rows, shape in kinds:
            mine = sides[(self.lengths[sides] <= r.short_block) == (name == "short")]
            cdf = self.cdf[name]
            more = rows[np.searchsorted(cdf, rng.random(shape[0] * shape[1] // 4) * cdf[-1])]
            # Half of the room is for pairs at most; an item stands once.
            half = fill(self.lengths[mine], (max(1, shape[0] // 2), shape[1]))
            texts = np.array(list(dict.fromkeys([*mine[:half], *more])))
            chosen.append(texts[: fill(self.lengths[texts], shape)])
        items = np.concatenate(chosen)
        place = {int(text): i for i, text in enumerate(items)}
        pairs = [(place[q], place[p]) for q, p in drawn.tolist() if q in place and p in place and q != p]
        spans = [(int(self.texts[i, 0]), 1) for i in items]
        long = self._long(rng) if step % r.long_every == 0 and len(self.documents) else []
        blocks = [
            Blocks.of([self.tokens(int(self.texts[i, 0]), 1) for i in texts], shape, 4, self.device)
            for texts, (_, _, shape) in zip(chosen, kinds, strict=True)
        ]
        batch = Batch(
            blocks,
            torch.stack([self.target(*span) for span in [*spans, *long]]).to(self.device),
            torch.tensor(pairs, dtype=torch.long, device=self.device).reshape(-1, 2),
            n_tokens=int(self.lengths[items].sum()),
        )
        if long:
            ids = [self.tokens(*span) for span in long]
            lengths = [len(row) for row in ids]
            tokens = torch.from_numpy(np.concatenate(ids)).to(self.device)
            size = torch.tensor(lengths, device=self.device)
            batch.long = (tokens, Packing.whole(lengths, self.device), size, len(long) // 2)
            batch.n_tokens += sum(lengths)
        return batch

    def _long(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Runs of units: one unit of each window as its query, then the windows."""
        r = self.recipe
        units = int(rng.choice(r.window_units))
        queries: list[tuple[int, int]] = []
        windows: list[tuple[int, int]] = []
        room = r.long_tokens
        for first, count, *_ in self.documents[rng.permutation(len(self.documents))]:
            n = min(int(count), units)
            start = int(first + rng.integers(count - n + 1))
            query = int(start + rng.integers(n))
            room -= int(self.span(np.array(start), np.array(n)) + self.span(np.array(query), np.array(1)))
            if room < 0 and len(windows) > 1:
                break
            queries.append((query, 1))
            windows.append((start, n))
        return queries + windows


def embed(model: Mamba2, tokens: Tensor, packing: Packing, lengths: Tensor) -> Tensor:
    """(items, d) normalised mean of the hidden vectors of a packed run."""
    hidden, _ = model(tokens, packing)
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), lengths)
    total = torch.zeros(len(lengths), hidden.shape[1], device=hidden.device).index_add(0, rows, hidden.float())
    return F.normalize(total / lengths[:, None], dim=1)


def info_nce(query: Tensor, key: Tensor, target_key: Tensor, recipe: Recipe) -> Tensor:
    """Both directions; keys that the teacher finds nearly equal to the positive are no negatives."""
    scores = query @ key.t() / recipe.temperature
    same = target_key @ target_key.t() > recipe.same_threshold
    same.fill_diagonal_(False)
    scores = scores.masked_fill(same, -1e4)
    labels = torch.arange(len(query), device=query.device)
    return (F.cross_entropy(scores, labels) + F.cross_entropy(scores.t(), labels)) / 2


def loss_of(
    model: Mamba2, blocks: BlockModel, batch: Batch, basis: Tensor, recipe: Recipe
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of all parts, and the parts."""
    student = torch.cat([blocks.embed(part) for part in batch.blocks])
    target = batch.target @ basis
    n = len(student)
    cosine = 1 - (student * target[:n]).sum(1)
    n_short = batch.blocks[0].n
    parts = {"short": cosine[:n_short].mean()}
    if n > n_short:
        parts["passages"] = cosine[n_short:].mean()
    similarity = (student @ student.t() - target[:n] @ target[:n].t()).square().mean()
    parts["similarity"] = similarity
    total = cosine.mean() + recipe.similarity_weight * similarity
    if len(batch.pairs) > 1:
        query, key = batch.pairs.unbind(1)
        parts["pair"] = info_nce(student[query], student[key], target[key], recipe)
        total = total + recipe.pair_weight * parts["pair"]
    if batch.long is not None:
        tokens, packing, lengths, m = batch.long
        with torch.autocast(tokens.device.type, torch.bfloat16):
            vectors = embed(model, tokens, packing, lengths)
        parts["long"] = (1 - (vectors * target[n:]).sum(1)).mean()
        contrast = info_nce(vectors[:m], vectors[m:], target[n + m :], recipe)
        total = total + parts["long"] + recipe.long_weight * contrast
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


def build(recipe: Recipe, vocab_size: int, start: Path, device: torch.device) -> tuple[Mamba2, Tensor]:
    """The model at the start, and the directions of the teacher's space that its output has."""
    d_inner = recipe.expand * recipe.d_model
    model = Mamba2(
        Mamba2Config(
            vocab_size=vocab_size,
            d_model=recipe.d_model,
            n_layers=recipe.n_layers,
            n_heads=d_inner // recipe.head_dim,
            head_dim=recipe.head_dim,
            d_state=recipe.d_state,
        )
    )
    for layer in model.layers:
        assert isinstance(layer, Mamba2Layer)
        layer.mixer.out_proj.weight.data *= recipe.out_scale
        layer.mixer.chunk_size = recipe.chunk_size
    saved = torch.load(start, weights_only=True)
    install(model, saved["table"], saved["basis"], saved["inputs"])
    return model.to(device), saved["basis"].to(device)


def learning_rate(progress: float, warm_up: float) -> float:
    """Factor at `progress` in [0, 1]: linear warm-up, then cosine to 2 %."""
    if progress < warm_up:
        return progress / warm_up
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warm_up) / (1 - warm_up))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, nargs="+", required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--devset", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="length of the whole schedule")
    parser.add_argument("--stop-after", type=float, help="minutes until this call stops, the schedule being longer")
    parser.add_argument("--score-every", type=float, default=3, help="minutes between scores on STS-B dev")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--eager", action="store_true", help="without torch.compile, which needs a C++ compiler")
    parser.add_argument("--set", nargs="*", default=[], help="recipe fields, name=value")
    args = parser.parse_args()

    defaults = asdict(Recipe())
    overrides = dict(item.split("=", 1) for item in args.set)
    recipe = Recipe(**{name: type(defaults[name])(json.loads(value)) for name, value in overrides.items()})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    check_tokenizer(args.cache, args.tokenizer)
    data = Data(args.cache, recipe, device)
    dev = load_suite(args.devset)["sts"]["stsb-dev"]
    vocab = json.loads((args.tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    model, basis = build(recipe, -(-len(vocab) // 64) * 64, args.start, device)
    mean, _ = build(recipe, model.config.vocab_size, args.start, device)
    mean.load_state_dict(model.state_dict())
    blocks = BlockModel(model, compiled=not args.eager)
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
    checkpoint = args.out / "checkpoint.pt"
    spent, steps, seen, best = 0.0, 0, 0, -1.0
    if args.resume and checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        mean.load_state_dict(saved["mean"])
        optimizer.load_state_dict(saved["optimizer"])
        spent, steps, seen, best = saved["spent"], saved["steps"], saved["seen"], saved["best"]
    log = (args.out / "log.jsonl").open("a")

    def tell(row: dict[str, object]) -> None:
        print(json.dumps(row), flush=True)
        log.write(json.dumps(row) + "\n")
        log.flush()

    def save() -> None:
        """Score the mean weights, keep them if they are the best, and store the run."""
        nonlocal best
        score = sts_score(encode, dev)
        progress = {"step": steps, "minutes": round(spent / 60, 2), "Mtokens": round(seen / 1e6, 2)}
        tell({**progress, "stsb-dev": round(score, 4)})
        weights = {name: value.to("cpu", torch.float16) for name, value in mean.state_dict().items()}
        run = {"recipe": asdict(recipe), "config": asdict(model.config), "progress": {**progress, "stsb-dev": score}}
        _store({"model": weights, **run}, args.out / "last.pt")
        if score > best:
            best = score
            _store({"model": weights, **run}, args.out / "best.pt")
        state = {"model": model.state_dict(), "mean": mean.state_dict(), "optimizer": optimizer.state_dict()}
        _store({**state, "spent": spent, "steps": steps, "seen": seen, "best": best}, checkpoint)

    tell({"recipe": asdict(recipe), "parameters": sum(p.numel() for p in model.parameters())})
    save()
    ahead: queue.Queue[Batch] = queue.Queue(2)
    stop = threading.Event()

    def draw() -> None:
        step = steps
        while not stop.is_set():
            ahead.put(data.batch(np.random.default_rng([recipe.seed, step]), step))
            step += 1

    threading.Thread(target=draw, daemon=True).start()
    limit, base = args.minutes * 60, spent
    began = last = told = time.time()
    while spent < limit and (args.stop_after is None or time.time() - began < args.stop_after * 60):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * learning_rate(spent / limit, recipe.warm_up)
        batch = ahead.get()
        loss, parts = loss_of(model, blocks, batch, basis, recipe)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps, seen = steps + 1, seen + batch.n_tokens
        with torch.no_grad():
            decay = min(recipe.average, steps / (steps + 10))
            torch._foreach_lerp_(list(mean.parameters()), list(model.parameters()), 1 - decay)
        spent = base + time.time() - began
        if time.time() - told > 20:
            row: dict[str, object] = {name: round(value.item(), 4) for name, value in parts.items()}
            rate = optimizer.param_groups[0]["lr"]
            tell({"step": steps, "minutes": round(spent / 60, 2), "Mtokens": round(seen / 1e6, 2), "lr": rate, **row})
            told = time.time()
        if time.time() - last > args.score_every * 60:
            save()
            last = time.time()
    stop.set()
    save()


def _store(content: dict[str, object], path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)


if __name__ == "__main__":
    main()
