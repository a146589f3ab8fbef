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
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub id 'org/name'.", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="To write.", show_default=False)],
    format: Annotated[
        FormatName,
        typer.Option(
            help="sentence-transformers: run by thalweg, or where it is not installed by the stock modules (Mamba, "
            "xLSTM); opened with trust_remote_code=True. stock: always run by the stock modules, without that flag."
        ),
    ] = FormatName.sentence_transformers,
    dtype: Annotated[
        DtypeName, typer.Option("--dtype", help="Of the weights in the folder.", show_default="the file's")
    ] = DtypeName.auto,
    revision: Revision = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that lies in DIR.")] = False,
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
