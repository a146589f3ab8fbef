"""`thalweg mine`."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from thalweg.cli.console import INTERRUPTED, Console, ProgressBar, errors_told, stderr
from thalweg.cli.options import Debug, Device, DtypeOption, Model, Revision, finite, load_model
from thalweg.cli.silence_libraries import libraries_quiet
from thalweg.errors import MissingExtraError
from thalweg.inputs.formats import TABLE_SUFFIXES
from thalweg.system.words import counted

if TYPE_CHECKING:
    from thalweg.cli.options import DtypeName
    from thalweg.corpus import Mode
    from thalweg.training.data import Mined, MiningStatus, Rule

RULE_PANEL, MODEL_PANEL, RUN_PANEL = "Which texts are taken", "Model", "Run"

MOST = 100_000
"""Neighbours of a query that are held."""

STAGES = {"queries": "queries embedded", "documents": "documents embedded", "rows": "rows searched"}


def mine(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            show_default=False,
            help=f"Data set of queries and positives: a file or folder of {', '.join(TABLE_SUFFIXES)} (also .gz), "
            "hub:org/name, or a named set such as open-synthetic-embeddings/CONFIG.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", show_default=False, help="Output file: .parquet or .jsonl.")],
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="More texts to search, in files with a column text, passage, document or contents.",
            show_default="the positives only",
        ),
    ] = None,
    negatives: Annotated[
        int,
        typer.Option(
            "-n", "--negatives", min=1, max=MOST, help="Negatives to find for each row.", rich_help_panel=RULE_PANEL
        ),
    ] = 1,
    range_min: Annotated[
        int, typer.Option(min=0, max=MOST, help="Skip this many of the nearest texts.", rich_help_panel=RULE_PANEL)
    ] = 0,
    range_max: Annotated[
        int,
        typer.Option(
            min=1, max=MOST, help="Look no further than this many of the nearest.", rich_help_panel=RULE_PANEL
        ),
    ] = 10,
    margin: Annotated[
        float | None,
        typer.Option(
            callback=finite,
            help="How far a negative's cosine must lie below the positive's.",
            show_default="no limit",
            rich_help_panel=RULE_PANEL,
        ),
    ] = None,
    relative_margin: Annotated[
        float | None,
        typer.Option(
            callback=finite,
            help="The same as a share of the positive's cosine: 0.05 allows at most 95 % of it.",
            show_default="no limit",
            rich_help_panel=RULE_PANEL,
        ),
    ] = None,
    strategy: Annotated[
        Literal["random", "top"],
        typer.Option(help="Draw at random among them, or take the nearest.", rich_help_panel=RULE_PANEL),
    ] = "random",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random draws.", rich_help_panel=RULE_PANEL)] = 0,
    model: Model = None,
    library: Annotated[
        Literal["thalweg", "sentence-transformers"],
        typer.Option(help="Library that opens the model.", rich_help_panel=MODEL_PANEL),
    ] = "thalweg",
    revision: Revision = None,
    device: Device = None,
    dtype: DtypeOption = None,
    query_prompt: Annotated[
        str | None,
        typer.Option(
            help="Text put before queries.",
            show_default="the row's instruction, else the model's",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    document_prompt: Annotated[
        str | None,
        typer.Option(help="Text put before documents.", show_default="the model's", rich_help_panel=MODEL_PANEL),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue an interrupted run, or start one.", rich_help_panel=RUN_PANEL),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output that is there.", rich_help_panel=RUN_PANEL)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.", rich_help_panel=RUN_PANEL)] = False,
    debug: Debug = False,
) -> None:
    """Find hard negatives for training pairs: texts near to a query that are not its positives.

    Texts equal to a positive of the same query in any row, or to the query, are never taken. The default is the rule of
    e5-mistral's synthetic data, a random one of the 10 nearest. Where unlabelled positives are likely, leave out the
    very nearest (--range-min) or those that score like the positive (--relative-margin 0.05).

    Example: thalweg mine pairs.jsonl -o triples.parquet -n 4 --range-min 5 --range-max 50 --relative-margin 0.05
    """
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    if range_max < range_min + negatives:
        raise typer.BadParameter(
            f"--range-min {range_min} and --range-max {range_max} have no room for {counted(negatives, 'negative')}"
        )
    mode: Mode = "resume" if resume else "overwrite" if overwrite else "new"
    console = stderr()
    with errors_told(debug):
        from thalweg.training.data import Rule
        from thalweg.training.data.extras import require_datasets

        require_datasets()
        rule = Rule(negatives, range_min, range_max, margin, relative_margin, strategy, seed)
        with libraries_quiet(debug):
            try:
                with _progress(console, shown=not quiet) as follow:
                    mined = _mine(
                        data,
                        out,
                        rule,
                        lambda: _load(library, model, revision, device, dtype),
                        mode,
                        {"corpus": corpus, "query_prompt": query_prompt, "document_prompt": document_prompt},
                        follow,
                    )
            except KeyboardInterrupt:
                console.print("interrupted; the same command with --resume goes on")
                raise typer.Exit(INTERRUPTED) from None
        if not quiet:
            _tell(console, mined, out)


def _mine(
    data: str,
    out: Path,
    rule: Rule,
    load: Callable[[], Any],
    mode: Mode,
    texts: dict[str, str | None],
    follow: Callable[[MiningStatus], None],
) -> Mined:
    from thalweg.training.data import mine_hard_negatives
    from thalweg.training.data.mining import check_out

    check_out(out, mode)
    return mine_hard_negatives(data, out, load(), rule, mode=mode, on_status=follow, **texts)


def _load(library: str, model: str | None, revision: str | None, device: str | None, dtype: DtypeName | None) -> Any:
    """A model of either library. No code of a folder is run."""
    if library == "thalweg":
        return load_model(model, revision, device, dtype)
    if model is None or dtype is not None:
        raise typer.BadParameter("--library sentence-transformers needs --model, and takes no --dtype")
    if importlib.util.find_spec("sentence_transformers") is None:
        raise MissingExtraError("--library sentence-transformers needs: pip install 'thalweg[train]'")
    from thalweg.integrations._peers import load_peer

    return load_peer(model, device, revision)


@contextmanager
def _progress(console: Console, shown: bool) -> Iterator[Callable[[MiningStatus], None]]:
    """On a terminal a bar; elsewhere nothing but the result."""
    if not shown or not console.is_terminal:
        yield lambda status: None
        return
    with ProgressBar(console, "bar", "count", "words", "elapsed") as bar:
        task = bar.add_task("reading the data", total=None)
        yield lambda status: bar.update(
            task, description=STAGES[status.stage], total=status.total, completed=status.done
        )


def _tell(console: Console, mined: Mined, out: Path) -> None:
    for number, noun, words in (
        (mined.duplicates, "duplicate row", "left out"),
        (mined.replaced, "negative", "that rows had before replaced"),
        (mined.without, "row", "without a negative, as no text passes the rule"),
    ):
        if number:
            console.print(f"{counted(number, noun)} {words}")
    if mined.remade:
        console.print(f"damaged, and made again: {', '.join(mined.remade)}")
    console.print(
        f"{counted(mined.rows, 'row')}, {counted(mined.negatives, 'negative')} out of "
        f"{counted(mined.documents, 'text')} for {counted(mined.queries, 'query', 'queries')} → {out}"
    )
    console.print(f"Next: thalweg train MODEL {shlex.quote(str(out))} -o DIR")
