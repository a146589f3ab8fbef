"""The commands together."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from thalweg.cli.bench import bench
from thalweg.cli.compare import compare
from thalweg.cli.console import ERROR, EXIT_CODES, Commands, logs_safe, print_traceback, stdout
from thalweg.cli.demo import demo
from thalweg.cli.embed import embed
from thalweg.cli.eval import evaluate
from thalweg.cli.export import export
from thalweg.cli.info import info
from thalweg.cli.mine import mine
from thalweg.cli.search import search
from thalweg.cli.serve import serve
from thalweg.cli.synth import synth
from thalweg.cli.train import train
from thalweg.version import __version__

app = typer.Typer(
    cls=Commands,
    help="Embed texts of any length with recurrent language models: linear time, constant memory, nothing truncated.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # `main` shows them
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _unwrapped(text: str) -> str:
    """A docstring whose paragraphs are lines: the terminal is seldom as wide as our sources."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


for command in (embed, search, serve, info, export, train, mine, synth, demo, bench, compare, evaluate):
    name = "eval" if command is evaluate else None
    app.command(name, help=_unwrapped(str(command.__doc__)), epilog=EXIT_CODES)(command)


def _version(wanted: bool) -> None:
    if wanted:
        stdout().print(f"thalweg {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    context.with_resource(logs_safe())


def main() -> None:
    """Entry point of the `thalweg` command."""
    # Threads that spin while they wait starve each other when the machine has other work: 20 times slower was seen on
    # two busy cores. It has to be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # This process is thalweg's own: see system/malloc.py.
    os.environ.setdefault("THALWEG_MALLOC", "1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is finished is saved, as after Ctrl-C
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # as stderr: a terminal that lacks a character is no reason to end
    try:
        app()
    except Exception as error:
        print_traceback(error)
        sys.exit(ERROR)
