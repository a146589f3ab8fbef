"""The chatter of other libraries, kept off the terminal."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def libraries_quiet(debug: bool) -> Iterator[None]:
    """No progress bars and no warnings of datasets, transformers and mteb, unless debugging."""
    if debug:
        yield
        return
    for name in ("datasets", "transformers.utils.logging", "huggingface_hub.utils"):
        module = importlib.import_module(name)
        getattr(module, "disable_progress_bars", getattr(module, "disable_progress_bar", lambda: None))()
    os.environ.setdefault("TQDM_DISABLE", "1")
    for name in ("mteb", "datasets", "transformers", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
