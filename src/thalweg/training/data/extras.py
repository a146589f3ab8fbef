"""The packages of the extra `train` that data sets need."""

from __future__ import annotations

from typing import Any

from thalweg.errors import MissingExtraError


def require_datasets() -> Any:
    """The module `datasets`.

    Raises:
        MissingExtraError: with the pip command.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtraError("training data needs datasets: pip install 'thalweg[train]'") from error
    return datasets
