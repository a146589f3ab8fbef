"""`thalweg export`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from thalweg.cli.console import errors_told, stderr
from thalweg.cli.options import Debug, DtypeName, Revision, load_model

if TYPE_CHECKING:
    from thalweg.embedder.dtypes import Dtype


class FormatName(str, Enum):
    """Who is to open the folder."""

    sentence_transformers = "sentence-transformers"
    stock = "stock"


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model to write: folder or hub id 'org/name'.", show_default=False)
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder.", show_default=False)],
    format: Annotated[
        FormatName,
        typer.Option(
            help="sentence-transformers is run by thalweg, or by the stock modules where thalweg is not installed "
            "(Mamba, xLSTM), and opened with trust_remote_code=True. stock is always run by the stock modules, without "
            "that flag."
        ),
    ] = FormatName.sentence_transformers,
    dtype: Annotated[
        DtypeName, typer.Option("--dtype", help="Dtype of the weights in the folder.", show_default="the file's")
    ] = DtypeName.auto,
    revision: Revision = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is in DIR.")] = False,
    debug: Debug = False,
) -> None:
    """Write a model as a folder for sentence-transformers, transformers and thalweg.

    It holds the weights as safetensors, the tokenizer, pooling and prompts, and a model card.

    Example: thalweg export state-spaces/mamba2-130m mamba2 --dtype bfloat16
    """
    with errors_told(debug):
        embedder = load_model(model, revision, "cpu", DtypeName.auto)
        embedder.save(folder, format=format.value, dtype=cast("Dtype", dtype.value), overwrite=overwrite)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        flag = "" if format is FormatName.stock else ", trust_remote_code=True"
        stderr().print(f"{folder}: {size / 1e6:,.1f} MB; SentenceTransformer({str(folder)!r}{flag}) opens it")
