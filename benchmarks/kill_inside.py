"""kill -9 inside one long document, then resume: how many tokens are run again, and is the vector the same?

One file (the shipped book, over and over) is embedded to one vector by a process that is killed at a random token of
each tenth, and started again each time. A process tells after every step how many tokens it has run, so that what it
had run beyond the last saved state is known when it is killed.

    python benchmarks/kill_inside.py                                             5,000,000 tokens, 10 kills
    python benchmarks/kill_inside.py --tokens 100000 --state-every 5000          a quick look

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kill_resume import BOOK_TOKENS, difference
from thalweg.assets import book


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=5_000_000, help="of the file, about")
    parser.add_argument("--state-every", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--model", help="instead of the shipped one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        embed(Path(arguments.worker[0]), arguments.worker[1], arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        report = compare(Path(folder), arguments)
    print(json.dumps({"benchmark": "kill_inside", "model": arguments.model or "shipped", **report}))


def embed(work: Path, name: str, arguments: argparse.Namespace) -> None:
    """Begin or go on, and write down after every step where the document is: tokens spared and tokens run."""
    import thalweg
    from thalweg.corpus import Settings, Status, discover, embed_files

    counts = os.open(work / f"{name}.tokens", os.O_WRONLY | os.O_CREAT)

    def follow(status: Status) -> None:
        told = "".join(status.notes)  # "… goes on from its saved state after 200,000 tokens"
        spared = int(told.split()[-2].replace(",", "")) if told else 0
        os.pwrite(counts, f"{spared:12d} {status.tokens:12d}".encode(), 0)

    settings = Settings(model=arguments.model, state_every=arguments.state_every)
    embedder = thalweg.load(arguments.model)
    files = discover([str(work / "long.txt")]).files
    embed_files(embedder, files, work / f"{name}.parquet", settings, mode="resume", on_status=follow)


def compare(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run left alone, one killed again and again, and what they differ in."""
    text = book().read_text(encoding="utf-8")
    with open(work / "long.txt", "w", encoding="utf-8") as file:
        for _ in range(arguments.tokens // BOOK_TOKENS):
            file.write(text)
        file.write(text[: len(text) * (arguments.tokens % BOOK_TOKENS) // BOOK_TOKENS])
    began = time.monotonic()
    if start(work, "whole").wait():
        raise SystemExit("the undisturbed run failed")
    seconds = time.monotonic() - began
    _, total = tokens(work, "whole")
    print(f"undisturbed: {total:,} tokens in {seconds:.0f} s", flush=True)
    rng = random.Random(arguments.seed)
    stops: list[int] = []
    places = []
    for i in range(arguments.kills):
        run = start(work, "out")
        at = int((i + rng.random()) / arguments.kills * total)
        while run.poll() is None and sum(tokens(work, "out")) < at:
            time.sleep(0.002)
        if run.poll() is not None:
            raise SystemExit("the run ended before it was killed")
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        places.append(tokens(work, "out"))
        stops.append(sum(places[-1]))
        print(f"killed after {stops[-1]:,} tokens", flush=True)
    if start(work, "out").wait():
        raise SystemExit("the last run failed")
    places.append(tokens(work, "out"))
    again = [stop - place[0] for stop, place in zip(stops, places[1:], strict=True)]
    return {
        "tokens": total,
        "state_every": arguments.state_every,
        "kills": len(stops),
        "killed_at_tokens": stops,
        "tokens_run_again": again,
        "most_run_again": max(again),
        "undisturbed_seconds": round(seconds, 1),
        **difference(work / "whole.parquet", work / "out.parquet"),
        "work_folder_removed": not (work / "out.parquet.parts").exists(),
    }


def start(work: Path, name: str) -> subprocess.Popen[bytes]:
    """A process that embeds."""
    (work / f"{name}.tokens").unlink(missing_ok=True)
    return subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--worker", str(work), name])


def tokens(work: Path, name: str) -> tuple[int, int]:
    """What the process has written down."""
    try:
        spared, run = (work / f"{name}.tokens").read_text().split()
    except (FileNotFoundError, ValueError):
        return 0, 0
    return int(spared), int(run)


if __name__ == "__main__":
    main()
