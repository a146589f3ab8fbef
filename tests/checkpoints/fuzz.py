"""Random edits of checkpoint folders: each gives a model or a CheckpointError, within 10 seconds and 2 GiB.

    python -m tests.checkpoints.fuzz [--edits 2000] [--seed 0] [--only 17]

Every edit has a seed of its own, which is printed where something else came of it: `--only` repeats that one.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import thalweg
from thalweg.checkpoints import describe_checkpoint
from thalweg.errors import CheckpointError, ThalwegError

SECONDS, BYTES = 10, 2 * 2**30

NUMBERS: list[Any] = [0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**63, 10**9, 10**18, 10**400, -(10**400)]
NUMBERS += [0.5, -0.5, 4.0, 1e-300, 1e308, float("nan"), float("inf"), float("-inf")]
TEXTS = [
    "",
    "x",
    "²",
    "9" * 5000,
    "\ud800",
    "\x00",
    "../..",
    "/dev/zero",
    "auto",
    "a" * 100_000,
    "\x1b[2J",
    "os.system",
]
TEXTS += ["mamba2", "mamba", "falcon_mamba", "rwkv7", "xlstm", "gated_deltanet", "jamba", "swish", "Mamba2", "Pooling"]
TEXTS += ["sentence_transformers.models.Transformer", "sentence_transformers.models.Normalize", "builtins.eval", "last"]
TEXTS += ["F32", "BF16", "F16", "I64", "F8_E4M3", "F4", "BOOL", "model-00001-of-00002.safetensors", "</s>", "<unk>"]
KEYS = [
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "num_heads",
    "state_size",
    "n_eos",
    "special_tokens",
    "head",
    "model_type",
    "attn",
]
KEYS += ["eos_token_id", "pad_token_id", "pooling_mode", "path", "type", "added_tokens", "d_lexicon", "norm_eps", "id"]
KEYS += ["dtype", "shape", "data_offsets", "__metadata__", "single", "processors", "vocab", "content", "ssm_cfg", "dim"]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def value(rng: random.Random) -> Any:
    """Anything that JSON can say."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(TEXTS)
    return rng.choice([None, True, False, [], {}, [[]], [1, 2], {"a": 1}, nested(50), nested(900), list(range(1000))])


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be changed; of a vocabulary only some of its entries."""
    items = list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ())
    return [path, *(place for key, child in items[:40] for place in places(child, (*path, key)))]


def change(rng: random.Random, tree: Any) -> Any:
    """A JSON value with one thing changed."""
    place = rng.choice(places(tree))
    if not place:
        return value(rng) if rng.random() < 0.2 else change_inside(rng, tree)
    node = tree
    for key in place[:-1]:
        node = node[key]
    key = place[-1]
    what = rng.randrange(10)
    if what < 6:
        node[key] = value(rng)
    elif what == 6:
        del node[key]
    elif what == 7 and isinstance(node, dict):
        node[rng.choice([*KEYS, *map(str, TEXTS)])] = node.pop(key)
    elif what == 8 and isinstance(node[key], int):
        node[key] = node[key] * rng.choice([2, 10, 1000, -1]) + rng.choice([0, 1])
    else:
        node[key] = change_inside(rng, node[key])
    return tree


def change_inside(rng: random.Random, node: Any) -> Any:
    if isinstance(node, dict):
        return {**node, rng.choice(KEYS): value(rng)}
    return [*node, value(rng)] if isinstance(node, list) else [node]


def spoil(rng: random.Random, content: bytes) -> bytes:
    """The bytes of a file, no longer what they were."""
    at = rng.randrange(len(content) + 1)
    what = rng.randrange(9)
    if what == 0:
        return content[:at]
    if what == 1:
        return b""
    if what == 2:
        return content[:at] + rng.randbytes(rng.choice([1, 8, 1000])) + content[at:]
    if what == 3:
        return b"[" * 200_000 + content
    if what == 4:
        return b'{"a":' * 200_000
    if what == 5:
        return b"\xef\xbb\xbf" + content
    if what == 6:
        return content.replace(b"{", b'{"model_type": "rwkv7", "model_type": 7, ', 1)
    if what == 7:
        return b"9" * 10_000
    flipped = bytearray(content)
    for _ in range(rng.choice([1, 3, 30])):
        if flipped:
            flipped[rng.randrange(min(len(flipped), 4096))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def edit_json(rng: random.Random, content: bytes) -> bytes:
    if rng.random() < 0.1:
        return spoil(rng, content)
    tree = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        tree = change(rng, tree)
    return json.dumps(tree, ensure_ascii=True).encode()


def edit_header(rng: random.Random, content: bytes) -> bytes:
    if rng.random() < 0.2:
        return spoil(rng, content)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(change(rng, json.loads(content[8 : 8 + length]))).encode()
    stated = len(header) if rng.random() < 0.9 else rng.choice([0, 1, 2**20, 2**40, 2**63, 2**64 - 1])
    return struct.pack("<Q", stated) + header + content[8 + length :]


def edit_pickle(rng: random.Random, content: bytes) -> bytes:
    if rng.random() < 0.2:
        return spoil(rng, content)
    tensors: dict[Any, Any] = torch.load(io.BytesIO(content), weights_only=True)
    for _ in range(rng.choice([1, 1, 3])):
        name = rng.choice(list(tensors))
        tensor = tensors.pop(name)
        names: list[Any] = [
            f"blocks.{rng.choice(['foo', '999999999', '9' * 5000, '01', '-1', '7'])}.x",
            5,
            None,
            (1, 2),
        ]
        names += [rng.choice(TEXTS), name]
        wrong: list[Any] = [
            tensor.new_zeros(()),
            tensor[:0],
            tensor.flatten(),
            tensor.new_zeros(1).expand(10**6, 10**6),
        ]
        wrong += [
            tensor.int(),
            tensor.to_sparse(),
            7,
            [tensor],
            tensor.to("meta"),
            tensor.t() if tensor.ndim == 2 else 0,
        ]
        tensors[name if rng.random() < 0.5 else rng.choice(names)] = rng.choice([tensor, tensor, *wrong])
    file = io.BytesIO()
    torch.save(tensors, file, _use_new_zipfile_serialization=rng.random() < 0.8)
    return file.getvalue()


def edit(rng: random.Random, folder: Path) -> str:
    """Change one file of a folder; what was done, in words."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    weights = [path for path in files if path.suffix in (".safetensors", ".pth", ".bin")]
    small = [path for path in files if path not in weights]
    path = rng.choice(weights if weights and rng.random() < 0.2 else small or weights)
    name = path.relative_to(folder).as_posix()
    if rng.random() < 0.03:
        path.unlink()
        if rng.random() < 0.5:
            path.mkdir()
        return f"{name} taken away"
    by_kind: dict[str, Callable[[random.Random, bytes], bytes]] = {
        ".safetensors": edit_header,
        ".json": edit_json,
        ".pth": edit_pickle,
        ".bin": edit_pickle,
    }
    content = path.read_bytes()
    try:
        changed = by_kind.get(path.suffix, spoil)(rng, content)
    except Exception:  # an earlier edit has spoilt it
        changed = spoil(rng, content)
    path.unlink()  # what is linked from the base stays as it is
    path.write_bytes(changed)
    return name


def attempt(base: Path, seed: int) -> tuple[str, str | None]:
    """(what came of it, None or what should not have come of it) for one edited copy of a base."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        shutil.copytree(base, folder, copy_function=os.link)
        done = " and ".join(edit(rng, folder) for _ in range(rng.choice([1, 1, 1, 2])))
        began = time.monotonic()
        signal.alarm(SECONDS)
        try:
            if rng.random() < 0.2:
                describe_checkpoint(folder)
            model = thalweg.load(folder, device="cpu", dtype=rng.choice([None, None, "auto", "bfloat16"]))
            came = "a model"
            try:
                model.encode(["the river runs", ""])
            except ThalwegError:
                came = "a model that refuses texts"
        except CheckpointError as error:
            came = "CheckpointError"
            if len(str(error)) > 5000:
                said = f"a message of {len(str(error)):,} characters: {str(error)[:900]}"
                return came, f"{base.name}, seed {seed} ({done}): {said}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            told = "".join(traceback.format_exception(error)[-4:])
            return type(error).__name__, f"{base.name}, seed {seed} ({done}), {time.monotonic() - began:.1f} s:\n{told}"
        finally:
            signal.alarm(0)
    return came, None


def run(bases: list[Path], n_edits: int, first: int = 0) -> tuple[Counter[str], list[str]]:
    """How often came what, and all that should not have come."""
    came: Counter[str] = Counter()
    wrong = []
    for seed in range(first, first + n_edits):
        result, fault = attempt(bases[seed % len(bases)], seed)
        came[result] += 1
        wrong += [] if fault is None else [fault]
    return came, wrong


def set_limits() -> None:
    """At most `BYTES` more than the libraries have taken, beyond which an allocation fails; an alarm raises."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    signal.signal(signal.SIGALRM, ring)
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))


def write_bases(root: Path) -> list[Path]:
    """A small checkpoint of every format, with the files of an embedder where the format has none of its own."""
    from tests.checkpoints.formats import tiny_config, write_tokenizer, write_transformers
    from tests.checkpoints.registry import CHECKPOINTS
    from tests.corpus.tiny import write_model
    from tests.pooling.test_lexicon import make_lexicon
    from thalweg.checkpoints import EmbeddingConfig, save_embedding_config

    embedding = EmbeddingConfig(prompts={"query": "the "}, n_eos=2, max_seq_length=64)
    for number, (name, (_, write)) in enumerate(CHECKPOINTS.items()):
        folder = root / name.replace(", ", "-").replace(" ", "-")
        folder.mkdir()
        write(folder)
        if not any(folder.glob("*vocab*")):
            write_tokenizer(folder)
        if number % 2:
            save_embedding_config(folder, embedding, 32)
    write_transformers(root / "sharded", tiny_config(), sharded=True)
    write_tokenizer(root / "sharded")
    with tempfile.TemporaryDirectory() as place:
        plain = thalweg.load(write_model(Path(place) / "plain"))
        plain.embedding_config = replace(plain.embedding_config, lexicon=make_lexicon(plain.config.vocab_size))
        plain.save(root / "lexicon")
    return sorted(root.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first edit; the others follow")
    parser.add_argument("--only", type=int, help="repeat the edit of this seed")
    parser.add_argument("--bases", type=Path, help="folder of checkpoints to edit; made where it is not given")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        bases = sorted(args.bases.iterdir()) if args.bases else write_bases(Path(place))
        for base in bases:
            thalweg.load(base, device="cpu").encode(["the river runs"])
        set_limits()
        began = time.monotonic()
        first, n_edits = (args.seed, args.edits) if args.only is None else (args.only, 1)
        came, wrong = run(bases, n_edits, first)
        print(*wrong, sep="\n\n", file=sys.stderr)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        result = {"edits": n_edits, "came": came, "wrong": len(wrong), "seconds": round(time.monotonic() - began)}
        print(json.dumps(result | {"peak_mib": peak}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
