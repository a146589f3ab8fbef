"""`thalweg train`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thalweg.checks import lasting_name
from thalweg.cli.console import INTERRUPTED, Console, ProgressBar, errors_told, stderr, stdout, table
from thalweg.cli.options import Debug, Revision
from thalweg.cli.progress import LOG_EVERY, duration
from thalweg.cli.silence_libraries import libraries_quiet
from thalweg.system.words import counted

if TYPE_CHECKING:
    from thalweg.training.progress_log import Status
    from thalweg.training.recipes import Recipe
    from thalweg.training.run import Summary
    from thalweg.training.workspace import Mode

DATA_PANEL, RECIPE_PANEL, RUN_PANEL = "Data", "Recipe", "Run"


def train(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Model to train: folder, hub id 'org/name', or 'default'.", show_default=False
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA...",
            show_default=False,
            help="Training data: JSON lines (also .gz), Parquet, folders of them, hub:org/name[:split], or a named "
            "set; @0.5 after a name takes half of it.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", show_default=False, help="Output folder.")
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Recipe: e5-mistral, distill, tiny, or the recipe.json of a trained model.",
            rich_help_panel=RECIPE_PANEL,
        ),
    ] = "e5-mistral",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            show_default=False,
            help="Change a setting of the recipe; may be given several times.",
            rich_help_panel=RECIPE_PANEL,
        ),
    ] = None,
    show: Annotated[
        bool,
        typer.Option("--print", help="Show the recipe with all its settings and stop.", rich_help_panel=RECIPE_PANEL),
    ] = False,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Teacher of the recipe distill: a model of sentence-transformers, or thalweg:MODEL.",
            rich_help_panel=RECIPE_PANEL,
        ),
    ] = None,
    dev: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Dev set to score the model on, as JSON lines: sentence1, sentence2, score (Spearman); or query, "
            "positive, negatives (nDCG@10). May be given several times.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    revision: Revision = None,
    device: Annotated[
        str | None,
        typer.Option(help="Device to train on: cpu, cuda or mps.", show_default="cuda where there is one, else cpu"),
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
    """Turn a recurrent language model into an embedder, or train an embedder further.

    A row of data is a query, a text that answers it and, if there are any, texts that do not.

    Checkpoints are kept in OUT.run until OUT is complete. After a crash the same command with --resume continues from
    the last one, and the result is the same as without the crash.

    For several GPUs run accelerate launch -m thalweg.cli train … with the same options.

    Example: thalweg train state-spaces/mamba2-130m pairs.jsonl -o tuned --dev sts.jsonl --set batch_size=256
    """
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    if not show and (model is None or not data or out is None):
        raise typer.BadParameter("give MODEL, DATA and --out DIR; or --print to see a recipe")
    with errors_told(debug, "lower mini_batch_tokens, or set vertical_chunk_size: --set vertical_chunk_size=256"):
        from thalweg.training.recipes import find_recipe, override

        changes = [*(settings or []), *([f"teacher={teacher}"] if teacher is not None else [])]
        chosen = override(find_recipe(recipe), changes)
        if show:
            _show(stdout(), chosen)
            return
        from thalweg.training.extras import require_extra

        require_extra()
        assert model is not None
        assert data is not None
        assert out is not None
        mode: Mode = "resume" if resume else "overwrite" if overwrite else "new"
        with libraries_quiet(debug):
            _run(model, data, out, chosen, dev or [], revision, device, mode, quiet)


def _show(console: Console, recipe: Recipe) -> None:
    """A setting a line, as `--set` takes it."""
    grid = table()
    for name, value, about in recipe.describe():
        grid.add_row(f"{name}={value}", about)
    console.print(grid)


def _run(
    model: str,
    data: list[str],
    out: Path,
    recipe: Recipe,
    dev: list[Path],
    revision: str | None,
    device: str | None,
    mode: Mode,
    quiet: bool,
) -> None:
    from thalweg.training.run import train as run
    from thalweg.training.workspace import run_folder

    console = stderr()
    try:
        with _progress(console, shown=not quiet) as follow:
            summary = run(
                lasting_name(model),
                data,
                out,
                recipe,
                dev=dev,
                revision=revision,
                device=device,
                mode=mode,
                on_status=follow,
            )
    except KeyboardInterrupt:
        folder = run_folder(out)
        saved = any(folder.glob("checkpoint-*"))
        console.print(
            f"interrupted; the last checkpoint is in {folder}: go on with --resume"
            if saved
            else "interrupted; there is no checkpoint to go on from"
        )
        raise typer.Exit(INTERRUPTED) from None
    if not quiet and summary.first:
        _tell(console, summary)


def _tell(console: Console, summary: Summary) -> None:
    if summary.nothing_to_do:
        console.print(f"{summary.out} is complete; nothing to do")
        return
    for name, counts in summary.counts.items():
        left_out = [
            f"{count:,} {reason}" for reason, count in counts.items() if reason not in ("read", "kept") and count
        ]
        if left_out:
            kept = f"{counts['kept']:,} of {counted(counts['read'], 'row')}"
            console.print(f"{name}: {kept}; left out: {', '.join(left_out)}")
    if summary.cut:
        console.print(f"{counted(summary.cut, 'text')} {'was' if summary.cut == 1 else 'were'} cut to max_length")
    again = f", from step {summary.first_step:,} on" if summary.first_step else ""
    loss = "" if summary.loss is None else f", loss {summary.loss:.4f}"
    scores = "".join(f", {_score(name, summary.metric, score)}" for name, score in summary.scores.items())
    console.print(
        f"{counted(summary.steps, 'step')}{again}, {counted(summary.tokens, 'token')} in "
        f"{duration(summary.seconds)}{loss}{scores} → {summary.out}"
    )
    console.print(f"Next: thalweg embed FOLDER --model {shlex.quote(str(summary.out))} -o vectors.parquet")


def _score(name: str, metric: Mapping[str, str], score: float) -> str:
    return f"{name} {metric[name]} {score:.4f}" if name in metric else f"{name} {score:.4f}"


@contextmanager
def _progress(console: Console, shown: bool) -> Iterator[Callable[[Status], None]]:
    """A bar over steps with the loss; scores as lines. In a log file, a line every minute."""
    if not shown:
        yield lambda status: None
        return
    with ProgressBar(console, "bar", "count", "elapsed", "left", "words") as bar:
        task = bar.add_task("loading", total=None)
        told = [bar.get_time()]

        def follow(status: Status) -> None:
            if status.notice:
                console.print(status.notice)
                return
            words = _words(status)
            bar.update(task, completed=status.done, total=status.total or None, description=words)
            if status.entry and "dev" in status.entry:
                console.print(words)
            elif not console.is_terminal and bar.get_time() - told[0] >= LOG_EVERY:
                told[0] = bar.get_time()
                console.print(f"[{status.done}/{status.total}] {words}")

        yield follow


def _words(status: Status) -> str:
    entry = status.entry
    if status.stage == "teacher":
        return "texts that the teacher has embedded"
    if status.stage == "write":
        return "writing the model"
    if entry is None:
        return "steps"
    if "dev" in entry:
        scores = (_score(name, entry.get("metric", {}), score) for name, score in entry["dev"].items())
        return f"step {entry['step']:,}: {', '.join(scores)}"
    return f"loss {entry['loss']:.4f} · {counted(entry['tokens'], 'token')}"
