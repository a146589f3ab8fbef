"""What ships with the package: a small English embedding model and a public-domain book to try it on."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["book", "model_folder"]

MODEL_NAME = "thalweg-small-en"
DEFAULT = "default"
"""Another name of the shipped model, for where a model must be named."""

MODULE_FILE = "thalweg_module.py"


def model_folder() -> Path:
    """The folder of the shipped model."""
    return Path(str(files(__name__) / MODEL_NAME))


def book() -> Path:
    """The shipped book, plain UTF-8 text."""
    return Path(str(files(__name__) / "book.txt"))


def module_file() -> Path:
    """The Python file that every exported folder brings for sentence-transformers."""
    return model_folder() / MODULE_FILE
