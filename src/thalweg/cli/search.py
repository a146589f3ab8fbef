"""`thalweg search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thalweg.assets import MODEL_NAME
from thalweg.cli.console import errors_told, print_json, stderr, stdout
from thalweg.cli.options import (
    Debug,
    Device,
    DtypeOption,
    MaxUncutChars,
    QuantizeOption,
    Revision,
    SpecialTokensOption,
    TokenizerOptions,
    load_model,
)
from thalweg.cli.show_hits import show_hits
from thalweg.errors import CheckpointError


def search(
    vectors: Annotated[
        Path,
        typer.Argument(metavar="OUT", show_default=False, help="What `thalweg embed` wrote: .parquet, .jsonl, .npy."),
    ],
    query: Annotated[str, typer.Argument(metavar="QUERY", show_default=False, help="A question, or any text.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Passages to show.")] = 5,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id 'org/name'.", show_default="the one that OUT names")
    ] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    special_tokens: SpecialTokensOption = None,
    max_uncut_chars: MaxUncutChars = None,
    prompt: Annotated[str | None, typer.Option(help="Text put before the query.", show_default=False)] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="The model's prompt of that name.", show_default="query, if it has one")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    debug: Debug = False,
) -> None:
    """Show the passages nearest to a question. Every vector is looked at, in bounded memory."""
    if prompt is not None and prompt_name is not None:
        raise typer.BadParameter("--prompt and --prompt-name exclude each other")
    with errors_told(debug):
        from thalweg import corpus

        reading: TokenizerOptions = {"special_tokens": special_tokens, "max_uncut_chars": max_uncut_chars}
        metadata = corpus.read_metadata(vectors)
        named = metadata.model not in (None, MODEL_NAME)
        if model is None and named:
            # A file that somebody else may have written: its model is told before it is loaded, and never fetched.
            model, revision = metadata.model, revision or metadata.revision
            stderr().print(f"model: {model}, named by {vectors}")
            try:
                embedder = load_model(model, revision, device, dtype, quantize, local_files_only=True, **reading)
            except CheckpointError as error:
                raise CheckpointError(f"{error}; pass --model {model} to fetch it, if you trust it") from error
        else:
            embedder = load_model(model, revision, device, dtype, quantize, **reading)
        hits = corpus.search(vectors, metadata, embedder, query, k, prompt=prompt, prompt_name=prompt_name)
        if as_json:
            found = [{"rank": rank, "score": hit.score, **hit.row} for rank, hit in enumerate(hits, 1)]
            print_json(found)
        else:
            show_hits(stdout(), hits)
