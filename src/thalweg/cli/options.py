"""Options that several commands have."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Annotated, TypedDict, cast

import typer

if TYPE_CHECKING:
    from thalweg.embedder.dtypes import Dtype
    from thalweg.embedder.embedder import Embedder


class DtypeName(str, Enum):
    """Dtype of weights and matrix products."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class QuantizeName(str, Enum):
    """How the wide weights of a model are stored."""

    int8 = "int8"
    int4 = "int4"


class SpecialTokensName(str, Enum):
    """What the literal of a special token in a text is read as."""

    token = "token"
    text = "text"


class PrecisionName(str, Enum):
    """Number format of stored vectors."""

    float32 = "float32"
    int8 = "int8"
    uint8 = "uint8"
    binary = "binary"
    ubinary = "ubinary"


Model = Annotated[
    str | None,
    typer.Option(help="Model: folder or hub id 'org/name'.", show_default="the model that ships with thalweg"),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.", show_default=False)]
Device = Annotated[
    str | None,
    typer.Option(help="Device to run on: cpu, cuda, cuda:1 or mps.", show_default="cuda where there is one, else cpu"),
]
DtypeOption = Annotated[
    DtypeName | None,
    typer.Option(
        "--dtype", help="Dtype of weights and matrix products.", show_default="float32 on the cpu, else the file's"
    ),
]
QuantizeOption = Annotated[
    QuantizeName | None,
    typer.Option(
        "--quantize",
        help="Store the weights in 8 bits, for speed, or in 4, for memory; on the cpu only.",
        show_default=False,
    ),
]
SpecialTokensOption = Annotated[
    SpecialTokensName | None,
    typer.Option(
        "--special-tokens",
        help="What the literal of a special token, such as <|endoftext|>, in a text is: that token or text.",
        show_default="what the model says, else token",
    ),
]
MaxUncutChars = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Characters of a text that cannot be tokenised in parts to hold in memory, at 200 to 650 bytes each.",
        show_default="1048576",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class TokenizerOptions(TypedDict):
    """How texts are tokenised, for `load_model`."""

    special_tokens: SpecialTokensName | None
    max_uncut_chars: int | None


def finite(value: float | None) -> float | None:
    """The callback of an option that takes any number.

    Raises:
        typer.BadParameter: it is infinite or none.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"a number is wanted, not {value}")
    return value


def load_model(
    model: str | None,
    revision: str | None,
    device: str | None,
    dtype: DtypeName | None,
    quantize: QuantizeName | None = None,
    *,
    local_files_only: bool | None = None,
    special_tokens: SpecialTokensName | None = None,
    max_uncut_chars: int | None = None,
) -> Embedder:
    """`thalweg.load` with what the command line gave."""
    import thalweg

    return thalweg.load(
        model,
        revision=revision,
        device=device,
        dtype=cast("Dtype", dtype.value if dtype else None),
        quantize=quantize.value if quantize else None,
        local_files_only=local_files_only,
        special_tokens=special_tokens.value if special_tokens else None,
        max_uncut_chars=max_uncut_chars,
    )
