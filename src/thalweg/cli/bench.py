"""`thalweg bench`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from thalweg.checks import lasting_name
from thalweg.cli.bench_progress import bench_progress, told
from thalweg.cli.console import INTERRUPTED, SOME_FAILED, Console, errors_told, stderr, stdout, table
from thalweg.cli.list_options import names, number, numbers
from thalweg.cli.options import Debug, Device
from thalweg.system.words import counted

if TYPE_CHECKING:
    from thalweg.bench.point import Point
    from thalweg.bench.process import Limits

WHAT, HOW, RUN, OUTPUT = "What is measured", "How it is run", "Limits", "Output"
LISTS = "Comma-separated, or given several times; 16k is 16384, 1M is 1048576."


def bench(
    study: Annotated[
        list[str] | None,
        typer.Option(
            help="What to vary: length, chunk (V and Q), batch or peers; may be given several times.",
            show_default="length",
            rich_help_panel=WHAT,
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Measure all families with two layers each; takes five minutes on two cores.",
            rich_help_panel=WHAT,
        ),
    ] = False,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Model size to measure with random weights; see --list-shapes.", rich_help_panel=WHAT),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Checkpoint to measure, a folder or hub id; transformers too.", rich_help_panel=WHAT),
    ] = None,
    length: Annotated[list[str] | None, typer.Option(help=f"Tokens per text. {LISTS}", rich_help_panel=WHAT)] = None,
    batch: Annotated[list[str] | None, typer.Option(help="Texts per batch.", rich_help_panel=WHAT)] = None,
    vertical_chunk_size: Annotated[
        list[str] | None,
        typer.Option(
            "--vertical-chunk-size",
            "-V",
            help="Vertical chunk sizes V, measured beside the horizontal order.",
            rich_help_panel=HOW,
        ),
    ] = None,
    inner_chunk: Annotated[
        list[str] | None,
        typer.Option("--inner-chunk", "-Q", help="Inner chunk sizes Q of the scans.", rich_help_panel=HOW),
    ] = None,
    attention: Annotated[
        Literal["sdpa", "flash_attention_2", "eager"] | None,
        typer.Option(
            help="How transformers compute attention.",
            show_default="the fastest installed",
            rich_help_panel=HOW,
        ),
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(
            help="Sliding windows of Mistral shapes; full means no window.", show_default="full,4k", rich_help_panel=HOW
        ),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Build each shape with this many layers.", rich_help_panel=HOW)
    ] = None,
    vocabulary: Annotated[
        int | None, typer.Option(min=1, help="Build each shape with a vocabulary of this size.", rich_help_panel=HOW)
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(
            help="Dtype of weights and matrix products.",
            show_default="float32 on the cpu, else bfloat16",
            rich_help_panel=HOW,
        ),
    ] = None,
    device: Device = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", rich_help_panel=HOW)] = None,
    warmup: Annotated[
        int, typer.Option(min=0, help="Untimed runs of each point, before the timed ones.", rich_help_panel=HOW)
    ] = 1,
    repeat: Annotated[int, typer.Option(min=1, help="Timed runs of each point.", rich_help_panel=HOW)] = 3,
    gguf: Annotated[
        Path | None, typer.Option(help="GGUF file that llama-cpp-python runs in the study peers.", rich_help_panel=HOW)
    ] = None,
    memory_limit: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Resident memory that a point may take, in GiB.",
            show_default="80% of what is free",
            rich_help_panel=RUN,
        ),
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=1, help="Seconds that a point may take in total.", rich_help_panel=RUN)
    ] = 600,
    go_beyond: Annotated[
        bool,
        typer.Option(
            "--go-beyond", help="Measure longer texts even if a shorter one hit a limit.", rich_help_panel=RUN
        ),
    ] = False,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Output folder; results that are there are kept and not measured again.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("bench"),
    retry: Annotated[
        bool, typer.Option("--retry", help="Measure points again that hit a limit before.", rich_help_panel=RUN)
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Markdown file to write the results into. Without other options nothing is measured.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    also: Annotated[
        list[Path] | None, typer.Option(help="More result folders to put into the report.", rich_help_panel=OUTPUT)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the points and stop.", rich_help_panel=OUTPUT)
    ] = False,
    list_shapes: Annotated[
        bool, typer.Option("--list-shapes", help="List the shapes and stop.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.", rich_help_panel=OUTPUT)] = False,
    debug: Debug = False,
) -> None:
    """Measure time and peak memory of models against the length of texts, horizontally and vertically.

    Horizontal is the usual order: the whole text through layer 1, then layer 2. Vertical takes V tokens of it through
    all layers, then the next V. Transformers with random weights stand beside them.

    Every point runs in a process of its own; one that exceeds the memory or time limit is stopped and recorded as such.
    Each result is on the disk before the next point begins, so the same command continues after an interruption.

    Example: thalweg bench --study length,chunk --shape mamba2-130m,mistral-130m --length 1k,4k,16k -o bench
    """
    if quick and any(
        (study, shape, model, length, batch, vertical_chunk_size, inner_chunk, window, layers, vocabulary)
    ):
        raise typer.BadParameter(
            "--quick measures a set of its own: leave out what chooses models, lengths or settings"
        )
    with errors_told(debug):
        if list_shapes:
            _list_shapes()
            return
        asked = (quick, study, shape, model, length, dry_run)
        failed = 0
        if any(asked) or report is None:
            from thalweg.bench.studies import Request, points_of, quick_study

            place = _device(device)
            base: dict[str, object] = {
                "dtype": dtype or ("float32" if place == "cpu" else "bfloat16"),
                "threads": threads,
                "attention": attention,
            }
            base |= {"layers": layers, "vocabulary": vocabulary}
            base |= {"warmup": warmup, "repeat": repeat, "budget": time_limit / 2}
            if quick:
                points = quick_study(place, str(base["dtype"]), threads)
            else:
                request = Request(
                    device=place,
                    shapes=names(shape),
                    models=_models(names(model)),
                    lengths=numbers(length),
                    vertical=numbers(vertical_chunk_size),
                    inner=numbers(inner_chunk),
                    batches=numbers(batch),
                    windows=[None if each == "full" else number(each) for each in names(window)],
                    gguf=None if gguf is None else str(gguf.resolve()),
                    base=base,
                )
                points = points_of(names(study) or ["length"], request)
            if dry_run:
                _list_points(points)
                return
            limits = _limits(memory_limit, time_limit)
            failed = _run(points, out, limits, go_beyond=go_beyond, retry=retry, quiet=quiet)
        if report is not None:
            from thalweg.bench.report import write_report

            write_report(report, [out, *(also or [])])
            stderr().print(f"results written into {report}")
    if failed:
        raise typer.Exit(SOME_FAILED)


def _limits(gib: float | None, seconds: float) -> Limits:
    from thalweg.bench.process import Limits, free_memory

    return Limits(int(min(gib, 2**20) * 2**30) if gib is not None else free_memory() * 4 // 5, seconds)


def _run(points: list[Point], out: Path, limits: Limits, *, go_beyond: bool, retry: bool, quiet: bool) -> int:
    """Measure, draw and tell; how many points ended in an error."""
    from thalweg.bench.figures import draw
    from thalweg.bench.point import ERROR
    from thalweg.bench.report import note_command
    from thalweg.bench.results import Results
    from thalweg.bench.runner import run_study

    console = stderr()
    if not quiet:
        _warn_if_loaded(console)
    with Results(out) as results:
        if retry:
            results.forget_limits()
        if any(results.row(point) is None for point in points):
            note_command(out, shlex.join(["thalweg", *sys.argv[1:]]))
        try:
            with bench_progress(console, quiet) as follow:
                rows = run_study(points, results, limits, go_beyond=go_beyond, on_status=follow)
        except KeyboardInterrupt:
            console.print(f"interrupted; what is measured is in {out}: the same command goes on")
            raise typer.Exit(INTERRUPTED) from None
        pictures = draw(results.rows, out)
    if not quiet:
        results_table = table("point", "what became of it")
        for row in rows:
            results_table.add_row(*told(row))
        stdout().print(results_table)
        console.print(f"points: {len(rows):,} → {out / 'results.jsonl'}, results.csv; pictures: {len(pictures)}")
    return sum(row["status"] == ERROR for row in rows)


def _warn_if_loaded(console: Console) -> None:
    """Times of a machine that has other work are too long, and nobody sees it in them later."""
    from thalweg.bench.machine import cores_in_use, loaded

    used, cores = cores_in_use(), os.cpu_count()
    if loaded(used, cores):
        console.print(
            f"warning: other programs use {used:.1f} of {counted(cores or 1, 'core')}, so times will be too long; end "
            "them, or wait. Points that they disturb are marked"
        )


def _models(wanted: list[str]) -> list[tuple[str, bool]]:
    """Checkpoints by a name that lasts, and whether each is a transformer."""
    from thalweg.bench.shapes import attends
    from thalweg.checkpoints import resolve

    return [(str(lasting_name(name)), attends(resolve(name))) for name in wanted]


def _device(device: str | None) -> str:
    import torch

    from thalweg.embedder.devices import check_device

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(check_device(device))


def _list_shapes() -> None:
    from thalweg.bench.shapes import LOOKS, SHAPES

    shapes = table("shape", "family", "layers × width", "like")
    for shape in SHAPES.values():
        shapes.add_row(shape.name, LOOKS[shape.family].title, f"{shape.n_layers} × {shape.width}", shape.like)
    stdout().print(shapes)


def _list_points(points: list[Point]) -> None:
    for point in points:
        stdout().print(point.title, soft_wrap=True)
    stderr().print(counted(len(points), "point"))
