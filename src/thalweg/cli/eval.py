"""`thalweg eval`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from thalweg.cli.console import INTERRUPTED, SOME_FAILED, Console, errors_told, stderr, stdout
from thalweg.cli.console import table as new_grid
from thalweg.cli.options import Debug, Device, DtypeOption, Model, QuantizeOption, Revision, load_model
from thalweg.cli.silence_libraries import libraries_quiet
from thalweg.cli.steps import steps_shown
from thalweg.system.words import counted

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from thalweg.evaluation.run import Outcome
    from thalweg.evaluation.table import Table

TASK_PANEL, MODEL_PANEL, NEEDLE_PANEL, RUN_PANEL = "Tasks", "Models", "Needle and passkey", "Run"

Instructions = Literal["auto", "paper", "model", "none"]


def evaluate(
    benchmarks: Annotated[
        list[str] | None,
        typer.Option(
            "--benchmark",
            metavar="NAME",
            help="Benchmark of mteb, such as 'MTEB(eng, v2)', 'MTEB(Multilingual, v2)' or LongEmbed.",
            rich_help_panel=TASK_PANEL,
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME", help="Task of mteb, such as STSBenchmark.", rich_help_panel=TASK_PANEL),
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--task-file",
            metavar="FILE[:CLASS]",
            help="Python file or module with tasks of your own: subclasses of mteb's AbsTask… with their data. Its "
            "code is run.",
            rich_help_panel=TASK_PANEL,
        ),
    ] = None,
    suite: Annotated[
        Literal["local"] | None,
        typer.Option(help="Suite of tasks made from the files of --data, without network.", rich_help_panel=TASK_PANEL),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Folder with sts/, classification/, retrieval/ and books.jsonl.gz, for --suite local.",
            rich_help_panel=TASK_PANEL,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Keep only the tasks whose names match.", rich_help_panel=TASK_PANEL),
    ] = None,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also measure bm25, or a model of sentence-transformers (as it is, and with the mean of chunks).",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    max_length: Annotated[
        str,
        typer.Option(
            metavar="N|none",
            help="Truncate texts to this many tokens; the paper used 512 for MTEB and 32768 for LongEmbed.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = "none",
    instructions: Annotated[
        Instructions,
        typer.Option(
            help="What stands before queries: the paper's instruction for each task, the model's own prompts, or "
            "nothing. auto takes the paper's for models that were trained with them.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = "auto",
    needle_lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="Document lengths in tokens, for --suite local; 'none' leaves these tasks out.",
            show_default="256, 1024, 4096, … 1048576, if there are books",
            rich_help_panel=NEEDLE_PANEL,
        ),
    ] = None,
    needle_documents: Annotated[
        int, typer.Option(min=1, max=100, help="Documents of each length.", rich_help_panel=NEEDLE_PANEL)
    ] = 100,
    needle_queries: Annotated[
        int, typer.Option(min=1, max=100, help="Queries for each length.", rich_help_panel=NEEDLE_PANEL)
    ] = 50,
    seed: Annotated[
        int, typer.Option(help="Seed that chooses the sentences and their places.", rich_help_panel=NEEDLE_PANEL)
    ] = 0,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Output folder; an unfinished run there is continued.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = Path("evaluation"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Measure again what is in DIR already.", rich_help_panel=RUN_PANEL)
    ] = False,
    vertical_chunk_size: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of one document per step.", show_default="1024", rich_help_panel=RUN_PANEL),
    ] = None,
    max_tokens_per_step: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens per step.", show_default="2048", rich_help_panel=RUN_PANEL),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.", rich_help_panel=RUN_PANEL)] = False,
    debug: Debug = False,
) -> None:
    """Measure how good a model's vectors are, on benchmarks of mteb or on files of your own.

    Every result is stored at once, so the same command continues after an interruption.

    Example: thalweg eval --suite local --data data --against bm25 --against all-MiniLM-L6-v2 -o evaluation
    """
    if not (benchmarks or names or sources or suite):
        raise typer.BadParameter("give --benchmark, --task, --task-file or --suite local")
    if (suite is None) != (data is None):
        raise typer.BadParameter("--suite local and --data DIR belong together")
    length = _whole(max_length, "--max-length")
    lengths = None if needle_lengths is None else _several(needle_lengths)
    with errors_told(debug, "--max-tokens-per-step 512 or --dtype bfloat16 takes less"):
        from thalweg.evaluation.extras import require_extra

        require_extra()
        with libraries_quiet(debug):
            from thalweg.evaluation import tasks as task_lists
            from thalweg.evaluation.models import other_models, our_model

            of_benchmarks = {name: task_lists.benchmark_tasks(name) for name in benchmarks or []}
            tasks = [task for group in of_benchmarks.values() for task in group]
            tasks += task_lists.named_tasks(names or [])
            tasks += [task for source in sources or [] for task in task_lists.file_tasks(source)]
            if data is not None:
                from thalweg.evaluation.local import local_tasks

                tasks += local_tasks(data, lengths, needle_documents, needle_queries, seed)
            embedder = load_model(model, revision, device, dtype, quantize)
            ours = our_model(
                embedder,
                instructions,
                length,
                vertical_chunk_size=vertical_chunk_size,
                max_tokens_per_step=max_tokens_per_step,
            )
            contestants = [ours, *other_models(against or [], device)]
            settings = {
                "command": shlex.join(["thalweg", *sys.argv[1:]]),
                "model": embedder.name,
                "fingerprint": embedder.fingerprint,
                "dtype": str(embedder.dtype).removeprefix("torch."),
                "quantize": embedder.quantization,
                "max_length": length,
                "instructions": instructions,
            }
            of_names = {name: [task.metadata.name for task in group] for name, group in of_benchmarks.items()}
            failed = _run(
                contestants, task_lists.chosen(_distinct(tasks), only or []), out, of_names, settings, overwrite, quiet
            )
    if failed:
        raise typer.Exit(SOME_FAILED)


def _run(
    contestants: list[Any],
    tasks: list[AbsTask],
    out: Path,
    benchmarks: dict[str, list[str]],
    settings: dict[str, Any],
    overwrite: bool,
    quiet: bool,
) -> int:
    """The run itself and its report, which is written of what is done when it is interrupted, too."""
    from thalweg.evaluation.run import evaluate as run_tasks

    console = stderr()
    done: list[Outcome] = []
    out.mkdir(parents=True, exist_ok=True)
    n_steps = sum(contestant.takes(task) for contestant in contestants for task in tasks)
    try:
        with steps_shown(console, n_steps, shown=not quiet) as steps:

            def end(outcome: Outcome) -> None:
                done.append(outcome)
                steps.end(_told(outcome), free=outcome.stored)

            run_tasks(
                contestants,
                tasks,
                out,
                overwrite=overwrite,
                on_start=lambda contestant, task: steps.start(f"{contestant.label} · {task.metadata.name}"),
                on_end=end,
                on_texts=lambda done, total: steps.inside(f" · {done:,} of {counted(total, 'text')}"),
            )
    except KeyboardInterrupt:
        _report(out, done, benchmarks, settings)
        console.print(
            f"interrupted; {len(done)} of {counted(n_steps, 'result')} in {out}: the same command goes on from there"
        )
        raise typer.Exit(INTERRUPTED) from None
    table = _report(out, done, benchmarks, settings)
    if not quiet:
        _show(stdout(), table)
        console.print(f"results: {len(table.scores)} → {out / 'results.md'}, results.json")
    for failure in table.failures:
        console.print(f"{failure['model']} on {failure['task']}: {failure['error']}", style="red")
    return len(table.failures)


def _report(out: Path, done: list[Outcome], benchmarks: dict[str, list[str]], settings: dict[str, Any]) -> Table:
    from thalweg.evaluation.plots import write_plots
    from thalweg.evaluation.report import write_report
    from thalweg.evaluation.table import make_table

    table = make_table(done, benchmarks)
    write_report(out, table, settings, write_plots(out, table))
    return table


def _show(console: Console, table: Table) -> None:
    for benchmark in dict.fromkeys(mean.benchmark for mean in table.means):
        grid = new_grid(benchmark, "", "mean over tasks", "over task types")
        for mean in table.means:
            if mean.benchmark == benchmark:
                kind = "published" if mean.published else "measured"
                over_types = "–" if mean.over_types is None else f"{mean.over_types:.1f}"
                grid.add_row(mean.model, kind, f"{mean.over_tasks:.1f}", over_types)
        console.print(grid)
        console.print()
    if table.scores:
        grid = new_grid("task", "× 100", *table.models)
        for task in table.tasks:
            scores = [table.score(model, task) for model in table.models]
            measure = next(score.measure for score in scores if score)
            grid.add_row(task, measure, *(f"{100 * score.score:.1f}" if score else "–" for score in scores))
        console.print(grid)


def _told(outcome: Outcome) -> str:
    name = f"{outcome.model} · {outcome.task.metadata.name}"
    if outcome.result is None:
        return f"{name}: failed"
    score = f"{name}: {outcome.task.metadata.main_score} {100 * outcome.result.get_score():.1f}"
    return score + (" (stored)" if outcome.stored else "")


def _distinct(tasks: list[AbsTask]) -> list[AbsTask]:
    return list({task.metadata.name: task for task in tasks}.values())


def _several(value: str) -> list[int]:
    if value == "none":
        return []
    return [cast(int, _whole(part, "--needle-lengths")) for part in value.split(",")]


def _whole(value: str, option: str) -> int | None:
    if value == "none":
        return None
    if not value.strip().isdecimal() or len(value) > 18 or int(value) < 1:
        raise typer.BadParameter(f"{option} takes a whole number from 1, or none, but got {value!r}")
    return int(value)
