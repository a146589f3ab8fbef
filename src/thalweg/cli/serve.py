"""`thalweg serve`."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from thalweg.cli.console import Console, errors_told, stdout, table
from thalweg.cli.options import (
    Debug,
    Device,
    DtypeName,
    DtypeOption,
    MaxUncutChars,
    QuantizeName,
    QuantizeOption,
    Revision,
    SpecialTokensName,
    SpecialTokensOption,
    load_model,
)

if TYPE_CHECKING:
    from thalweg.embedder.dtypes import Dtype
    from thalweg.embedder.embedder import Embedder
    from thalweg.engine.memory_plan import MemoryPlan
    from thalweg.engine.schedule import Schedule
    from thalweg.serve.plan import ServerPlan

NETWORK_PANEL, LIMIT_PANEL, STEP_PANEL, SESSION_PANEL = "Network", "Limits", "Steps", "Sessions and prefixes"

_NAMED = re.compile(r"(?P<name>[A-Za-z0-9_.-]{1,100})=(?P<model>.+)")


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "--model-id",
            metavar="[NAME=]MODEL",
            envvar="THALWEG_MODEL",
            help="Model: folder or hub id 'org/name', and the name under which it is served. May be repeated.",
            show_default="the model that ships with thalweg",
        ),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            envvar="THALWEG_SERVED_MODEL_NAME",
            help="Further name of the first model; answers show the first of these. May be repeated.",
            show_default=False,
        ),
    ] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    special_tokens: SpecialTokensOption = SpecialTokensName.text,
    max_uncut_chars: MaxUncutChars = None,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            "--hostname",
            envvar="THALWEG_HOST",
            help="Address to listen on. Others than this machine's own need an API key, or --insecure.",
            rich_help_panel=NETWORK_PANEL,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            "--port",
            "-p",
            min=0,
            max=65535,
            envvar="THALWEG_PORT",
            help="Port to listen on; 0 takes any free one.",
            rich_help_panel=NETWORK_PANEL,
        ),
    ] = 8080,
    uds_path: Annotated[
        Path | None,
        typer.Option(
            envvar="THALWEG_UDS_PATH",
            help="Unix socket to listen on instead.",
            show_default=False,
            rich_help_panel=NETWORK_PANEL,
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME:]KEY",
            envvar="THALWEG_API_KEY",
            help="Key that requests must send. Other users of this machine can see it here: prefer the variable or the "
            "file. May be repeated.",
            show_default=False,
            show_envvar=True,
            rich_help_panel=NETWORK_PANEL,
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="THALWEG_API_KEY_FILE",
            help="File of such keys, one a line.",
            show_default=False,
            rich_help_panel=NETWORK_PANEL,
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            envvar="THALWEG_INSECURE",
            help="Listen on any address without a key.",
            rich_help_panel=NETWORK_PANEL,
        ),
    ] = False,
    cors_allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            envvar="THALWEG_CORS_ALLOW_ORIGIN",
            help="Origin whose pages may use the server. May be repeated.",
            show_default=False,
            rich_help_panel=NETWORK_PANEL,
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None,
        typer.Option(
            envvar="THALWEG_TLS_CERTIFICATE",
            help="Certificate for TLS.",
            show_default=False,
            rich_help_panel=NETWORK_PANEL,
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            envvar="THALWEG_TLS_KEY",
            help="Private key of the certificate.",
            show_default=False,
            rich_help_panel=NETWORK_PANEL,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            envvar="THALWEG_MEMORY",
            help="Do not start if the memory plan has more, such as 4GiB.",
            show_default=False,
            rich_help_panel=LIMIT_PANEL,
        ),
    ] = None,
    max_concurrent_requests: Annotated[
        int,
        typer.Option(
            min=1,
            envvar="THALWEG_MAX_CONCURRENT_REQUESTS",
            help="Requests in progress; further ones get 429.",
            rich_help_panel=LIMIT_PANEL,
        ),
    ] = 512,
    max_client_batch_size: Annotated[
        int,
        typer.Option(
            min=1, envvar="THALWEG_MAX_CLIENT_BATCH_SIZE", help="Texts of one request.", rich_help_panel=LIMIT_PANEL
        ),
    ] = 2048,
    payload_limit: Annotated[
        int,
        typer.Option(
            min=1,
            envvar="THALWEG_PAYLOAD_LIMIT",
            help="Bytes of a body that is not streamed.",
            rich_help_panel=LIMIT_PANEL,
        ),
    ] = 32 << 20,
    max_body_bytes: Annotated[
        int,
        typer.Option(
            min=1,
            envvar="THALWEG_MAX_BODY_BYTES",
            help="Bytes of all bodies and answers that are held at a time.",
            rich_help_panel=LIMIT_PANEL,
        ),
    ] = 256 << 20,
    max_queued_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            envvar="THALWEG_MAX_QUEUED_TOKENS",
            help="Tokens that may wait for a model.",
            rich_help_panel=LIMIT_PANEL,
        ),
    ] = 1 << 22,
    max_queued_texts: Annotated[
        int,
        typer.Option(
            min=1,
            envvar="THALWEG_MAX_QUEUED_TEXTS",
            help="Texts that may wait for a model.",
            rich_help_panel=LIMIT_PANEL,
        ),
    ] = 1 << 14,
    max_wait: Annotated[
        float,
        typer.Option(
            min=0.001,
            envvar="THALWEG_MAX_WAIT",
            help="Seconds for which a request waits for room before it gets 429.",
            rich_help_panel=LIMIT_PANEL,
        ),
    ] = 10.0,
    request_timeout: Annotated[
        float,
        typer.Option(
            min=0.001,
            envvar="THALWEG_REQUEST_TIMEOUT",
            help="Seconds after which a request that is not streamed gets 504.",
            rich_help_panel=LIMIT_PANEL,
        ),
    ] = 600.0,
    header_timeout: Annotated[
        float,
        typer.Option(
            min=0.001,
            envvar="THALWEG_HEADER_TIMEOUT",
            help="Seconds for the headers of a request to arrive.",
            rich_help_panel=LIMIT_PANEL,
        ),
    ] = 10.0,
    body_timeout: Annotated[
        float,
        typer.Option(
            min=0.001,
            envvar="THALWEG_BODY_TIMEOUT",
            help="Seconds for a body to arrive, and between two pieces of one that is streamed.",
            rich_help_panel=LIMIT_PANEL,
        ),
    ] = 60.0,
    max_streams: Annotated[
        int,
        typer.Option(
            min=1,
            envvar="THALWEG_MAX_STREAMS",
            help="Bodies that are streamed at a time.",
            rich_help_panel=LIMIT_PANEL,
        ),
    ] = 64,
    max_tokens_per_step: Annotated[
        int | None,
        typer.Option(
            "--max-tokens-per-step",
            "--max-batch-tokens",
            metavar="N",
            envvar="THALWEG_MAX_TOKENS_PER_STEP",
            help="Tokens of one step, over all texts.",
            show_default="2048",
            rich_help_panel=STEP_PANEL,
        ),
    ] = None,
    vertical_chunk_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            envvar="THALWEG_VERTICAL_CHUNK_SIZE",
            help="Tokens of one text in one step.",
            show_default="1024",
            rich_help_panel=STEP_PANEL,
        ),
    ] = None,
    max_in_flight: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            envvar="THALWEG_MAX_IN_FLIGHT",
            help="Long texts that may hold a state at a time.",
            show_default="8",
            rich_help_panel=STEP_PANEL,
        ),
    ] = None,
    session_folder: Annotated[
        Path | None,
        typer.Option(
            envvar="THALWEG_SESSION_FOLDER",
            help="Folder of saved sessions; without it none can be saved.",
            show_default=False,
            rich_help_panel=SESSION_PANEL,
        ),
    ] = None,
    session_ttl: Annotated[
        float,
        typer.Option(
            min=0.001,
            envvar="THALWEG_SESSION_TTL",
            help="Seconds after which a session that nobody uses is deleted.",
            rich_help_panel=SESSION_PANEL,
        ),
    ] = 3600.0,
    max_sessions: Annotated[
        int,
        typer.Option(min=1, envvar="THALWEG_MAX_SESSIONS", help="Sessions of one key.", rich_help_panel=SESSION_PANEL),
    ] = 1000,
    session_memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            envvar="THALWEG_SESSION_MEMORY",
            help="Memory for the sessions of a model; others wait on disk.",
            rich_help_panel=SESSION_PANEL,
        ),
    ] = "128MiB",
    prefix_memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            envvar="THALWEG_PREFIX_MEMORY",
            help="Memory for the states of a model's prefixes.",
            rich_help_panel=SESSION_PANEL,
        ),
    ] = "128MiB",
    debug: Debug = False,
) -> None:
    """Serve embeddings over HTTP, with the interfaces of OpenAI and text-embeddings-inference.

    Texts may have any length, and nothing is cut. The memory plan is shown before the server starts.

    Example: thalweg serve --port 8080
    """
    with errors_told(debug):
        from thalweg.serve.extras import require_extra

        require_extra()

        from thalweg.engine.schedule import Schedule
        from thalweg.serve.keys import Keys, read_keys
        from thalweg.serve.logs import json_lines
        from thalweg.serve.plan import parse_size, plan_server
        from thalweg.serve.run import Runner, bound_socket, check_exposure
        from thalweg.serve.server import Server
        from thalweg.serve.settings import Settings

        settings = Settings(
            max_concurrent_requests=max_concurrent_requests,
            max_client_batch_size=max_client_batch_size,
            payload_limit=payload_limit,
            max_body_bytes=max(payload_limit, max_body_bytes),
            max_queued_tokens=max_queued_tokens,
            max_queued_texts=max_queued_texts,
            max_wait=max_wait,
            request_timeout=request_timeout,
            header_timeout=header_timeout,
            body_timeout=body_timeout,
            max_streams=max_streams,
            max_sessions=max_sessions,
            session_ttl=session_ttl,
            session_memory=parse_size(session_memory),
            session_folder=session_folder,
            prefix_memory=parse_size(prefix_memory),
            cors_allow_origin=tuple(cors_allow_origin or ()),
        )
        keys = Keys(read_keys(api_key or [], api_key_file))
        if uds_path is None:
            check_exposure(host, has_keys=bool(keys), insecure=insecure)
        if session_folder is not None:
            session_folder.mkdir(parents=True, exist_ok=True)
        bounds = (max_tokens_per_step, vertical_chunk_size, max_in_flight)
        names = ("max_tokens_per_step", "vertical_chunk_size", "max_in_flight")
        schedule = Schedule(**{name: each for name, each in zip(names, bounds, strict=True) if each is not None})
        named = _named(model or [""])
        most = None if memory is None else parse_size(memory)
        if most is not None:
            plans = {name: _planned(each, revision, device, dtype, quantize, schedule) for name, each in named.items()}
            plan_server(plans, settings).check(most)
        with ExitStack() as stack:
            stack.enter_context(json_lines())
            embedders: dict[str, Embedder] = {}
            for number, (name, each) in enumerate(named.items()):
                first = served_model_name[0] if served_model_name and number == 0 else name
                embedders[first] = load_model(
                    each or None,
                    revision,
                    device,
                    dtype,
                    quantize,
                    special_tokens=special_tokens,
                    max_uncut_chars=max_uncut_chars,
                )
            plan = plan_server({name: _plan(each, schedule) for name, each in embedders.items()}, settings)
            plan.check(most)
            where, url = stack.enter_context(bound_socket(host, port, uds_path))
            aliases = [] if served_model_name is None else [*served_model_name[1:], next(iter(named))]
            server = Server(
                embedders,
                settings,
                keys,
                aliases=[name for name in dict.fromkeys(aliases) if name not in embedders],
                schedule=schedule,
                any_host=insecure or uds_path is not None,
            )
            _tell(stdout(), plan, url if tls_certificate is None else url.replace("http:", "https:"))
            Runner(server, tls_certificate, tls_key).run_on(where)


def _named(models: list[str]) -> dict[str, str]:
    """What to load by the name under which it is served.

    Raises:
        typer.BadParameter: two have the same.
    """
    from thalweg.assets import MODEL_NAME

    found: dict[str, str] = {}
    for each in models:
        parts = _NAMED.fullmatch(each)
        model = parts["model"] if parts and not Path(each).exists() else each
        name = parts["name"] if parts and model != each else model or MODEL_NAME
        if Path(name).is_dir():
            name = Path(name).resolve().name
        if name in found:
            raise typer.BadParameter(f"two models have the name {name!r}: give one of them another, --model NAME=MODEL")
        found[name] = model
    return found


def _planned(
    model: str,
    revision: str | None,
    device: str | None,
    dtype: DtypeName | None,
    quantize: QuantizeName | None,
    schedule: Schedule,
) -> MemoryPlan:
    """The plan of a model whose weights are not loaded."""
    from thalweg.embedder.loading import describe

    embedder = describe(
        model or None,
        revision=revision,
        device=device,
        dtype=cast("Dtype", dtype.value if dtype else None),
        quantize=quantize.value if quantize else None,
    )
    return _plan(embedder, schedule)


def _plan(embedder: Embedder, schedule: Schedule) -> MemoryPlan:
    from thalweg.engine.memory_plan import plan_memory

    return plan_memory(embedder.model, schedule, embedder.pooling)


def _tell(console: Console, plan: ServerPlan, url: str) -> None:
    rows = table()
    for words, n_bytes in plan.rows():
        rows.add_row(words, f"{n_bytes / 2**20:,.1f} MiB")
    console.print("Memory, besides Python and its libraries:")
    console.print(rows)
    console.print(f"Serving on {url}", soft_wrap=True)
