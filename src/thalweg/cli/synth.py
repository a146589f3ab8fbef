"""`thalweg synth`."""

from __future__ import annotations

import json
import os
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.cli import list_options as lists
from thalweg.cli.console import INTERRUPTED, SOME_FAILED, Console, errors_told, stderr, stdout
from thalweg.cli.options import Debug, Device, load_model
from thalweg.cli.progress import duration
from thalweg.cli.silence_libraries import libraries_quiet
from thalweg.cli.synth_progress import synth_progress, usage
from thalweg.system.words import counted

if TYPE_CHECKING:
    from thalweg.synthesis.client import Endpoint
    from thalweg.synthesis.mining import Mining
    from thalweg.synthesis.pacing import Pace
    from thalweg.synthesis.run import Status
    from thalweg.synthesis.settings import Settings
    from thalweg.synthesis.tasks import TaskType

ENDPOINT_PANEL, DATA_PANEL, NEGATIVE_PANEL, RUN_PANEL = "Endpoint", "Data", "Mined negatives", "Run"

DEFAULT_KEY = "OPENAI_API_KEY"


def synth(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            show_default=False,
            help="Output folder; an unfinished run there is continued.",
        ),
    ],
    base_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            show_default=False,
            help="Address of a server that speaks OpenAI's chat protocol, such as http://127.0.0.1:8000/v1.",
            rich_help_panel=ENDPOINT_PANEL,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(show_default=False, help="Model name, as the endpoint knows it.", rich_help_panel=ENDPOINT_PANEL),
    ] = None,
    api_key_env: Annotated[
        str,
        typer.Option(metavar="NAME", help="Environment variable that holds the key.", rich_help_panel=ENDPOINT_PANEL),
    ] = DEFAULT_KEY,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Requests that are sent at the same time.", rich_help_panel=ENDPOINT_PANEL)
    ] = 16,
    requests_per_minute: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            show_default="no limit",
            help="Most requests per minute; they are spread evenly.",
            rich_help_panel=ENDPOINT_PANEL,
        ),
    ] = None,
    tokens_per_minute: Annotated[
        float | None,
        typer.Option(
            min=1,
            show_default="no limit",
            help="Most tokens per minute, of prompts and replies together.",
            rich_help_panel=ENDPOINT_PANEL,
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.01, help="Seconds to wait for a reply.", rich_help_panel=ENDPOINT_PANEL)
    ] = 300.0,
    retries: Annotated[
        int,
        typer.Option(
            min=0, help="Retries of a request that fails, with growing pauses.", rich_help_panel=ENDPOINT_PANEL
        ),
    ] = 8,
    max_failures: Annotated[
        int,
        typer.Option(min=1, help="Give up after this many failures in a row.", rich_help_panel=ENDPOINT_PANEL),
    ] = 100,
    max_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="Maximum tokens per reply; truncated replies are rejected.", rich_help_panel=ENDPOINT_PANEL
        ),
    ] = 4096,
    body: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            show_default=False,
            help="JSON to put into every request; null takes a key out: "
            '{"max_tokens": null, "max_completion_tokens": 4096}.',
            rich_help_panel=ENDPOINT_PANEL,
        ),
    ] = None,
    send_seed: Annotated[
        bool,
        typer.Option("--send-seed", help="Send a seed with every request.", rich_help_panel=ENDPOINT_PANEL),
    ] = False,
    price: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="IN OUT",
            show_default="no costs are shown",
            help="Price of a million tokens, of prompts and of replies.",
            rich_help_panel=ENDPOINT_PANEL,
        ),
    ] = None,
    total: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help="Examples of all types together, in the paper's shares.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    counts: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE=N,…",
            show_default=False,
            help="Examples of each type: short-long, long-short, short-short, long-long, sts, bitext.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    languages: Annotated[
        list[str] | None,
        typer.Option(
            "--language",
            metavar="NAME[=WEIGHT]",
            show_default="English for 43 %, 48 others",
            help="Language of the examples, with its weight; may be given several times.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed that chooses the prompts and their order.", rich_help_panel=DATA_PANEL)
    ] = 0,
    attempts: Annotated[
        int, typer.Option(min=1, help="Attempts at an example before it is given up.", rich_help_panel=DATA_PANEL)
    ] = 5,
    tasks_per_call: Annotated[
        int, typer.Option(min=1, help="Tasks that one request of the first step asks for.", rich_help_panel=DATA_PANEL)
    ] = 20,
    examples_per_task: Annotated[
        int,
        typer.Option(
            min=1, help="Examples made for each task; more save requests and cost variety.", rich_help_panel=DATA_PANEL
        ),
    ] = 1,
    brainstorm_temperature: Annotated[
        float, typer.Option(min=0, help="Temperature of the first step.", rich_help_panel=DATA_PANEL)
    ] = 1.0,
    temperature: Annotated[
        float, typer.Option(min=0, help="Temperature of the second step.", rich_help_panel=DATA_PANEL)
    ] = 0.8,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Top-p of both steps.", rich_help_panel=DATA_PANEL)] = 0.9,
    mine: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            show_default="no negatives for these types",
            help="Model that finds the negatives: folder or hub id, or 'default' for the one that ships.",
            rich_help_panel=NEGATIVE_PANEL,
        ),
    ] = None,
    mine_types: Annotated[
        list[str] | None,
        typer.Option(
            "--mine-type",
            metavar="TYPE",
            show_default="short-short, long-long",
            help="Type that gets a mined negative besides those it has; may be given several times.",
            rich_help_panel=NEGATIVE_PANEL,
        ),
    ] = None,
    device: Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the first prompts and call nothing.", rich_help_panel=RUN_PANEL)
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Delete the run that is in DIR and start over.", rich_help_panel=RUN_PANEL),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.", rich_help_panel=RUN_PANEL)] = False,
    debug: Debug = False,
) -> None:
    """Have a chat model write training data: tasks first, then an example of each, with negatives.

    Every reply is saved at once, so the same command continues after an interruption. Replies that cannot be used are
    kept in DIR/rejected.jsonl with the reason. DIR/data is what to train on.

    Example: thalweg synth --base-url http://127.0.0.1:8000/v1 --model llama --total 10000 --mine default -o synthetic
    """
    if (total is None) == (counts is None):
        raise typer.BadParameter("give either --total N or --counts TYPE=N,…")
    if not dry_run and (base_url is None or model is None):
        raise typer.BadParameter("give --base-url and --model (or --dry-run)")
    if mine_types and mine is None:
        raise typer.BadParameter("--mine-type belongs to --mine MODEL")
    with errors_told(debug):
        from thalweg.synthesis.languages import default_languages, parse_languages
        from thalweg.synthesis.settings import Settings
        from thalweg.synthesis.tasks import counts_of_total, parse_counts

        chosen = parse_languages(languages) if languages else default_languages()
        left_out: list[TaskType] = ["bitext"] if counts is None and len(chosen) == 1 else []
        if left_out and not quiet:
            stderr().print(
                f"bitext is left out, as a translation needs two languages and {next(iter(chosen))} is the only one; "
                f"the other types share the {counted(total or 0, 'example')}"
            )
        settings = Settings(
            counts=parse_counts(counts) if counts is not None else counts_of_total(total or 0, left_out),
            seed=seed,
            languages=chosen,
            concurrency=concurrency,
            attempts=attempts,
            tasks_per_call=tasks_per_call,
            examples_per_task=examples_per_task,
            brainstorm_temperature=brainstorm_temperature,
            temperature=temperature,
            send_seed=send_seed,
            price=price,
        )
        if dry_run:
            _show_prompts(stdout(), settings)
            return
        from thalweg.synthesis.client import Endpoint
        from thalweg.synthesis.pacing import Pace

        endpoint = Endpoint(
            base_url or "",
            model or "",
            key=_key(api_key_env),
            key_name=api_key_env,
            timeout=timeout,
            retries=retries,
            max_failures=max_failures,
            top_p=top_p,
            max_tokens=max_tokens,
            body=_object(body),
        )
        pace = Pace(requests_per_minute, tokens_per_minute)
        types = _types(mine_types)
        if mine is not None:
            from thalweg.training.data.extras import require_datasets

            require_datasets()  # before anything is paid for
        with libraries_quiet(debug) if mine is not None else nullcontext():
            mining = None if mine is None else _mining(mine, types, device)
            status = _run(settings, endpoint, out, pace, mining, overwrite, quiet)
    if status.given_up:
        raise typer.Exit(SOME_FAILED)


def _run(
    settings: Settings,
    endpoint: Endpoint,
    out: Path,
    pace: Pace,
    mining: Mining | None,
    overwrite: bool,
    quiet: bool,
) -> Status:
    """The run itself, and what is said of it."""
    from thalweg.synthesis.run import synthesize

    console = stderr()
    try:
        with synth_progress(console, settings.price, shown=not quiet) as progress:
            status = synthesize(
                settings, endpoint, out, pace=pace, mining=mining, overwrite=overwrite, on_status=progress.follow
            )
    except KeyboardInterrupt:
        console.print(f"interrupted; what came is saved in {out}: the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    if not quiet:
        _tell(console, status, settings, out, progress.seconds)
    return status


def _tell(console: Console, status: Status, settings: Settings, out: Path, seconds: float) -> None:
    if status.rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in status.rejected.most_common())
        console.print(f"{status.rejected.total():,} rejected ({reasons}); all are in {out / 'rejected.jsonl'}")
    for name, wanted in status.tasks_wanted.items():
        if status.tasks[name] < wanted:
            console.print(
                f"{name}: {counted(status.tasks[name], 'different task')} of {wanted:,} wanted, so some have more than "
                "one example"
            )
    if status.given_up:
        console.print(
            f"{counted(status.given_up, 'example')} of {status.wanted:,} given up after "
            f"{counted(settings.attempts, 'attempt')}: "
            "the same command with more --attempts tries again"
        )
    console.print(
        counted(status.accepted, "example")
        + (f" ({status.before:,} from before)" if status.before else "")
        + f", {usage(status, settings.price)} in {duration(seconds)} → {out / 'data'}"
    )
    console.print(f"Next: thalweg train MODEL {shlex.quote(str(out / 'data'))} -o DIR")


def _show_prompts(console: Console, settings: Settings) -> None:
    from thalweg.synthesis.preview import first_prompts, n_requests

    for prompt in first_prompts(settings):
        console.rule(prompt.id, align="left")
        console.print(prompt.text, soft_wrap=True)
    console.rule()
    tasks, examples = n_requests(settings)
    console.print(f"at least {counted(tasks, 'request')} for tasks and {examples:,} for examples; none was made")


def _key(name: str) -> str | None:
    """The key; none only where the variable was not chosen, as many servers at home need none."""
    from thalweg.errors import InvalidInputError

    key = os.environ.get(name)
    if key is None and name != DEFAULT_KEY:
        raise InvalidInputError(f"the environment variable {name} of --api-key-env is not set")
    return key.strip() if key is not None else None


def _object(text: str | None) -> dict[str, Any]:
    from thalweg.errors import InvalidInputError

    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidInputError(f"--body takes a JSON object, but got {text!r:.200}")
    return value


def _types(values: list[str] | None) -> frozenset[TaskType]:
    from thalweg.errors import InvalidInputError
    from thalweg.synthesis.mining import MINED_TYPES
    from thalweg.synthesis.tasks import TASK_TYPES

    names = lists.names(values)
    for name in names:
        if name not in TASK_TYPES:
            raise InvalidInputError(f"unknown task type {name!r}: choose from {', '.join(TASK_TYPES)}")
    return frozenset(name for name in TASK_TYPES if name in names) or MINED_TYPES


def _mining(model: str, types: frozenset[TaskType], device: str | None) -> Mining:
    from thalweg.synthesis.mining import Mining

    return Mining(load_model(model, None, device, None), types)
