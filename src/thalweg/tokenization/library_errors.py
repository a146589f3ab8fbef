"""What the tokenizers library raises: bare Exceptions, and panics of its Rust code, which are not even that."""

from collections.abc import Iterator
from contextlib import contextmanager

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
