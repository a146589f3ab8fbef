"""kill -9 during `thalweg embed`, then `--resume`: is the output that of an undisturbed run?

The corpus holds one file of two million tokens (the shipped book, over and over), short files and a table. One run is
left alone; another is killed at random moments, one in each tenth of the undisturbed run's time, and resumed each time.

    python benchmarks/kill_resume.py                       the shipped model, 2,000,000 tokens, 10 kills
    python benchmarks/kill_resume.py --tokens 200000       a quick look

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from thalweg.assets import book

BOOK_TOKENS = 166_199  # of the shipped model's tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2_000_000, help="of the long file")
    parser.add_argument("--sections", type=int, default=512, help="tokens of a section; 0: one vector a document")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--model", help="instead of the shipped one")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = compare(Path(folder), arguments)
    print(json.dumps({"benchmark": "kill_resume", "model": arguments.model or "shipped", **report}))


def compare(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both runs and what they differ in."""
    write_corpus(work / "docs", arguments.tokens)
    command = [sys.executable, "-m", "thalweg.cli", "embed", str(work / "docs"), "--save-every", "1", "--quiet"]
    command += ["--sections", str(arguments.sections)] if arguments.sections else []
    command += ["--model", arguments.model] if arguments.model else []
    began = time.monotonic()
    subprocess.run([*command, "-o", str(work / "whole.parquet")], check=True)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"undisturbed: {seconds:.0f} s, peak {peak / 2**20:.0f} MiB", flush=True)
    killed_at, saved, differences = kill_and_resume(
        [*command, "-o", str(work / "out.parquet")], work, seconds, arguments
    )
    return {
        "long_file_tokens": arguments.tokens,
        "sections": arguments.sections,
        "kills": len(killed_at),
        "killed_at_seconds": killed_at,
        "files_of_finished_rows_at_kill": saved,
        "undisturbed_seconds": round(seconds, 1),
        "undisturbed_peak_rss_mib": round(peak / 2**20),
        **differences[-1],
        "outputs_compared": len(differences),
        "rows_equal": all(each["rows_equal"] for each in differences),
        "largest_difference": max(each["largest_difference"] for each in differences),
        "work_folder_removed": not (work / "out.parquet.parts").exists(),
    }


def write_corpus(folder: Path, tokens: int) -> None:
    """Short files before and after the long one, and a table."""
    folder.mkdir()
    text = book().read_text(encoding="utf-8")
    for i in range(20):
        (folder / f"{'a' if i < 10 else 'z'}{i:02}.txt").write_text(text[i * 5000 : i * 5000 + 400 * (i + 1)], "utf-8")
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"text": line}) + "\n" for line in text.splitlines()[:300]), encoding="utf-8"
    )
    with open(folder / "long.txt", "w", encoding="utf-8") as file:
        for _ in range(tokens // BOOK_TOKENS):
            file.write(text)
        file.write(text[: len(text) * (tokens % BOOK_TOKENS) // BOOK_TOKENS])


def kill_and_resume(
    command: list[str], work: Path, seconds: float, arguments: argparse.Namespace
) -> tuple[list[float], list[int], list[dict[str, Any]]]:
    """When runs were killed, how many files of finished rows there were then, and how each output differs.

    A run that comes to its end before its moment is compared and its output removed: the next begins anew. It may be
    faster than the first was, so moments are parts of the time that the latest whole run took.
    """
    rng = random.Random(arguments.seed)
    moments = [(i + rng.random()) / arguments.kills for i in range(arguments.kills)]
    rng.shuffle(moments)
    killed_at: list[float] = []
    saved: list[int] = []
    differences = []
    anew = True
    while True:
        began = time.monotonic()
        run = subprocess.Popen([*command, "--resume"])
        try:
            run.wait(moments[len(killed_at)] * seconds if len(killed_at) < len(moments) else None)
        except subprocess.TimeoutExpired:
            os.kill(run.pid, signal.SIGKILL)
            run.wait()
            saved.append(len(list(work.glob("out.parquet.parts/part-*"))))
            killed_at.append(round(moments[len(killed_at)] * seconds, 1))
            print(f"killed after {killed_at[-1]:.0f} s with {saved[-1]} files of finished rows", flush=True)
            anew = False
            continue
        if run.returncode:
            raise SystemExit(f"embed ended with {run.returncode}")
        if anew:
            seconds = time.monotonic() - began
        differences.append(difference(work / "whole.parquet", work / "out.parquet"))
        print(f"finished: {differences[-1]}", flush=True)
        if len(killed_at) == len(moments):
            return killed_at, saved, differences
        (work / "out.parquet").unlink()
        anew = True


def difference(a: Path, b: Path) -> dict[str, Any]:
    """Rows, and whether everything beside the vectors is equal; the largest distance of two numbers of a vector."""
    tables = [pq.read_table(path) for path in (a, b)]
    vectors = [np.stack(table.column("vector").to_numpy()) for table in tables]
    rest = [table.drop_columns(["vector"]) for table in tables]
    return {
        "rows": tables[0].num_rows,
        "tokens": int(tables[0].column("n_tokens").to_numpy().sum()),
        "rows_equal": rest[0].equals(rest[1]),
        "largest_difference": float(np.abs(vectors[0] - vectors[1]).max()),
    }


if __name__ == "__main__":
    main()
