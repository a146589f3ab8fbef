"""What the tokenizers library raises: bare Exceptions, and panics of its Rust code, which are not even that."""

from collections.abc import Iterator
from contextlib import contextmanager

import tokenizers

from thalweg.errors import CheckpointError, TokenizationError


@contextmanager
def library_errors(kind: type[CheckpointError] | type[TokenizationError], what: str) -> Iterator[None]:
    """Raise them as an error of ours; `what` says what could not be done."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what}: {error!s:.300}") from error


def encode(library: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    with library_errors(TokenizationError, "a text cannot be encoded with the model's tokenizer.json"):
        return library.encode(text, add_special_tokens=False)


def normalize(normalizer: tokenizers.normalizers.Normalizer | None, text: str) -> str:
    with library_errors(TokenizationError, "a text cannot be normalized with the model's tokenizer.json"):
        return text if normalizer is None else normalizer.normalize_str(text)
