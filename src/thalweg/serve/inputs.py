"""What `input` and `inputs` of a request may be."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from thalweg.serve.errors import RequestError

Token = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Inputs: TypeAlias = str | list[str | Token | list[Token]]
"""A text, its ids, or a list of texts and ids of texts."""


def texts_of(inputs: Inputs, field: str, most: int) -> list[str | list[int]]:
    """The texts, each a str or its ids.

    Raises:
        RequestError: there are none, more than `most`, or ids beside texts.
    """
    if isinstance(inputs, str):
        return [inputs]
    if not inputs:
        raise RequestError("empty", f"`{field}` cannot be empty", param=field)
    if all(isinstance(each, int) for each in inputs):
        return [list(inputs)]  # type: ignore[arg-type]
    if len(inputs) > most:
        raise RequestError(
            "too_many", f"`{field}` has {len(inputs):,} texts, but one request may have {most:,}", param=field
        )
    texts: list[str | list[int]] = []
    for number, each in enumerate(inputs):
        if isinstance(each, int):
            raise RequestError("invalid", f"`{field}[{number}]` is a number beside texts", param=field)
        if not isinstance(each, str) and not each:
            raise RequestError("empty", f"`{field}[{number}]` cannot be empty", param=field)
        texts.append(each)
    return texts
