"""`thalweg demo`."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from thalweg.cli.console import errors_told, stderr, stdout
from thalweg.cli.options import Debug, Model, load_model
from thalweg.cli.progress import progress_line
from thalweg.cli.show_hits import show_hits
from thalweg.system.words import counted

QUESTION = "How does a pilot learn the river?"
SECTION_TOKENS = 128


def demo(
    question: Annotated[str, typer.Argument(metavar="[QUESTION]", help="Question about the book.")] = QUESTION,
    model: Model = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of passages to show.")] = 3,
    debug: Debug = False,
) -> None:
    """Embed the book that ships with thalweg and show the passages nearest to a question.

    Example: thalweg demo "How does a pilot learn the river?"
    """
    with errors_told(debug):
        import thalweg
        from thalweg.assets import book

        embedder = load_model(model, None, None, None)
        stderr().print(f"Embedding {book()} with {embedder.name} …")
        with tempfile.TemporaryDirectory() as folder, progress_line(stderr(), shown=True) as follow:
            out = Path(folder) / "book.parquet"
            summary = thalweg.embed_corpus(book(), out, model=embedder, section_size=SECTION_TOKENS, on_status=follow)
            hits = thalweg.open_corpus(out, model=embedder).search(question, k)
        console = stdout()
        console.print(
            f"{counted(summary.tokens, 'token')} in {counted(round(summary.seconds), 'second')}: "
            f"{counted(summary.rows, 'vector')}, each with all text "
            "before it in view.\n"
            f"Nearest to: {question}\n",
        )
        show_hits(console, hits)
        option = "" if model is None else f" --model {shlex.quote(model)}"
        console.print("\nThe same with your own files:")
        for command in (
            f"thalweg embed {shlex.quote(str(book()))} --sections {SECTION_TOKENS}{option} -o book.parquet",
            f"thalweg search book.parquet {shlex.quote(question)}",
        ):
            console.print(f"  {command}", soft_wrap=True)
