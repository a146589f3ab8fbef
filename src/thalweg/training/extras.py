"""The optional packages of `thalweg train`."""

from __future__ import annotations

import importlib.util

from thalweg.errors import InvalidInputError, MissingExtraError

PACKAGES = ("sentence_transformers", "transformers", "datasets", "accelerate", "peft", "matplotlib")


def require_extra() -> None:
    """Raises:
    MissingExtraError: with the pip command.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"thalweg train needs {', '.join(missing)}: pip install 'thalweg[train]'")


def require_4bit(device: str) -> None:
    """Raises:
    InvalidInputError: 4-bit weights on another device than CUDA.
    MissingExtraError: bitsandbytes is not installed.
    """
    if device != "cuda":
        raise InvalidInputError(
            f"quantize_4bit=true needs a CUDA device, but this run is on {device!r}; --set quantize_4bit=false trains "
            "adapters on weights that are not quantised"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("quantize_4bit=true needs: pip install bitsandbytes")
