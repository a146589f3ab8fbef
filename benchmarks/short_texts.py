"""Many short texts of mixed length against texts of equal length and the same total: what does packing cost?

python benchmarks/short_texts.py [--texts 10000] [--model DIR]
"""

from __future__ import annotations

import argparse

import numpy as np

import thalweg
from common import report
from thalweg.bench.meter import seconds
from thalweg.engine.engine import Engine
from thalweg.engine.sources import Ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--slices", type=int, default=5, help="both kinds are timed in turn, in so many parts")
    parser.add_argument("--model")
    args = parser.parse_args()
    model = thalweg.load(args.model)
    random = np.random.default_rng(0)
    mixed = random.integers(20, 401, args.texts)
    equal = np.full(args.texts, round(mixed.sum() / args.texts))
    equal[: mixed.sum() - equal.sum()] += 1
    assert mixed.sum() == equal.sum()

    def documents(lengths: np.ndarray) -> list[Ids]:
        return [Ids(random.integers(2, model.config.vocab_size, n)) for n in lengths]

    times = {"mixed": 0.0, "equal": 0.0}
    stepped = {"mixed": 0, "equal": 0}
    for part in np.array_split(np.arange(args.texts), args.slices):
        for name, lengths in (("mixed", mixed), ("equal", equal)):
            engine = Engine(model.model, model.pooling, model.schedule())
            batch = documents(lengths[part])
            times[name] += seconds(lambda engine=engine, batch=batch: list(engine.run(batch)))
            stepped[name] += engine.progress.tokens
    rates = {name: int(mixed.sum()) / taken for name, taken in times.items()}
    print({name: f"{rate:,.0f} tokens/s" for name, rate in rates.items()})
    report(
        "short_texts",
        {
            "texts": args.texts,
            "tokens": int(mixed.sum()),
            "padding_tokens": stepped["mixed"] - int(mixed.sum()),
            "tokens_per_s": rates,
            "mixed_over_equal": rates["mixed"] / rates["equal"],
        },
    )


if __name__ == "__main__":
    main()
