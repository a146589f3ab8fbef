"""The commands together."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from thalweg.cli.bench import bench
from thalweg.cli.compare import compare
from thalweg.cli.console import EXIT_CODES
from thalweg.cli.demo import demo
from thalweg.cli.embed import embed
from thalweg.cli.eval import evaluate
from thalweg.cli.export import export
from thalweg.cli.info import info
from thalweg.cli.mine import mine
from thalweg.cli.search import search
from thalweg.cli.synth import synth
from thalweg.cli.train import train
from thalweg.version import __version__

app = typer.Typer(
    help="Embed texts of any length with recurrent language models: linear time, constant memory, nothing truncated.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (embed, search, info, export, train, mine, synth, demo, bench, compare):
    app.command(epilog=EXIT_CODES)(command)
app.command("eval", epilog=EXIT_CODES)(evaluate)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"thalweg {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `thalweg` command."""
    # Threads that spin while they wait starve each other when the machine has other work: 20 times slower was seen on
    # two busy cores. It has to be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # This process is thalweg's own: see system/malloc.py.
    os.environ.setdefault("THALWEG_MALLOC", "1")
    app()
