"""`thalweg compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thalweg.checks import lasting_name
from thalweg.cli.console import errors_told, print_json, stderr, stdout, table, to_json, working
from thalweg.cli.options import Debug
from thalweg.cli.progress import duration
from thalweg.system.words import counted

if TYPE_CHECKING:
    from thalweg.bench.compare import Comparison
    from thalweg.bench.compare_worker import Side

SETTINGS_HELP = (
    "Settings for {}, as NAME=VALUE[,NAME=VALUE]: dtype, device, vertical_chunk_size, max_tokens_per_step, "
    "max_in_flight, inner_chunk, threads, max_length, truncate_dim, prompt, prompt_name, revision, head."
)


def compare(
    a: Annotated[
        str, typer.Argument(metavar="A", help="First model: folder, hub id, or 'default' for the model that ships.")
    ],
    b: Annotated[
        str | None,
        typer.Argument(
            metavar="[B]", help="Second model; leave it out to compare two settings of A.", show_default="the same as A"
        ),
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(
            help="Texts to compare on: files, folders or globs, as for `thalweg embed`; may be given several times."
        ),
    ] = None,
    a_settings: Annotated[list[str] | None, typer.Option("--a", help=SETTINGS_HELP.format("A"))] = None,
    b_settings: Annotated[list[str] | None, typer.Option("--b", help=SETTINGS_HELP.format("B"))] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Treat every line of a text file as a document.")] = False,
    sections: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Compare a vector for every N tokens instead of one per text."),
    ] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Stop after this many texts.", show_default="all")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Nearest neighbours to compare for each text.")] = 10,
    repeat: Annotated[int, typer.Option(min=1, help="How often the texts are embedded, for the timing.")] = 2,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds that each side may take.")] = 3600,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write the JSON into as well.")] = None,
    debug: Debug = False,
) -> None:
    """Compare two models, or two settings of one, on your texts: vectors, neighbours, speed and memory.

    It shows whether you may change the chunk size, the dtype or the model. Each side runs in a process of its own.

    Example: thalweg compare default --b dtype=bfloat16,vertical_chunk_size=256 --texts docs/
    """
    if not texts:
        raise typer.BadParameter("--texts is missing: the files or folders to compare on")
    with errors_told(debug):
        from thalweg.bench import compare as comparing
        from thalweg.bench.compare_worker import Side, Task
        from thalweg.bench.process import Limits, free_memory
        from thalweg.corpus import STDIN
        from thalweg.embedder.devices import check_device
        from thalweg.errors import InvalidInputError

        if STDIN in texts:
            raise InvalidInputError("stdin cannot be read twice: put the texts into a file")
        left = Side(_model(a), comparing.parse_settings(a_settings or []))
        right = Side(_model(a if b is None else b), comparing.parse_settings(b_settings or []))
        for side in (left, right):
            if "device" in side.settings:
                check_device(side.settings["device"])
        task = Task(left, tuple(texts), lines, most, sections, repeat)
        console = stderr()
        with working(console, "starting") as tell:
            found = comparing.compare(
                left,
                right,
                task,
                Limits(free_memory() * 9 // 10, time_limit),
                k=k,
                on_side=lambda name: tell(f"embedding with {name}"),
            )
        if out is not None:
            from thalweg.storage.durable import write_durably

            write_durably(out, lambda stream: stream.write(f"{to_json(found.to_json())}\n".encode()))
        if as_json:
            print_json(found.to_json())
        else:
            _show(found, left, right)


def _model(name: str) -> str | None:
    from thalweg.assets import DEFAULT

    return None if name == DEFAULT else lasting_name(name)


def _show(found: Comparison, a: Side, b: Side) -> None:
    from thalweg.bench.compare import describe

    console, agreement = stdout(), found.agreement
    measured = table("", "A", "B", "B / A")
    for row in _measured(found):
        measured.add_row(*row)
    console.print(f"A: {describe(a)}\nB: {describe(b)}\n{counted(agreement.n, 'vector')}\n")
    console.print(measured)
    console.print()
    agreed = table()
    for name, value in _agreed(found):
        agreed.add_row(name, value)
    console.print(agreed)
    console.print(f"\n{agreement.verdict}", soft_wrap=True)
    for unread in found.unread:
        stderr().print(f"left out: {unread['id']}: {unread['reason']}")


def _measured(found: Comparison) -> list[tuple[str, str, str, str]]:
    a, b = found.a, found.b
    rates = [side["tokens_per_s"]["median"] for side in (a, b)]
    peaks = [side["memory"].get("cuda_allocated", side["memory"]["peak_rss"]) / 2**20 for side in (a, b)]
    return [
        ("dimension", f"{a['dimension']:,}", f"{b['dimension']:,}", ""),
        ("dtype", a["dtype"], b["dtype"], ""),
        ("tokens", f"{a['tokens']:,}", f"{b['tokens']:,}", ""),
        ("time", duration(a["seconds"]["median"]), duration(b["seconds"]["median"]), ""),
        ("tokens/s", f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{rates[1] / max(rates[0], 1e-9):.2f}"),
        ("peak memory", f"{peaks[0]:,.0f} MiB", f"{peaks[1]:,.0f} MiB", f"{peaks[1] / peaks[0]:.2f}"),
    ]


def _agreed(found: Comparison) -> list[tuple[str, str]]:
    agreed = found.agreement
    rows: list[tuple[str, str]] = []
    if agreed.cosine is not None:
        c = agreed.cosine
        rows += [("cosine of A and B, mean", f"{c['mean']:.6f}"), ("least", f"{c['min']:.6f}")]
        rows += [("percentiles 1, 5, 50", f"{c['p1']:.6f}, {c['p5']:.6f}, {c['p50']:.6f}")]
        rows += [("farthest", ", ".join(found.rows[i]["id"] for i in agreed.farthest))]
    if agreed.overlap is not None:
        rows.append((f"shared of the {agreed.k} nearest", f"{agreed.overlap:.1%}"))
        rows.append(("the same nearest", f"{agreed.nearest:.1%}"))
    if agreed.across is not None:
        rows.append((f"shared where B looks among A's, of {agreed.k}", f"{agreed.across:.1%}"))
    if agreed.spearman is not None:
        rows.append(("Spearman of similarities", f"{agreed.spearman:.4f}"))
    return rows
