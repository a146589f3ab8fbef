"""The package is light, its public names are what it says, and it stands alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from thalweg import checkpoints


def test_public_names() -> None:
    assert all(hasattr(checkpoints, name) for name in checkpoints.__all__)
    assert checkpoints.__all__ == sorted(checkpoints.__all__)


@pytest.mark.subprocess
def test_import_cost() -> None:
    """Neither the oracles of these tests nor, until a hub id is resolved, huggingface_hub."""
    program = (
        "import sys, thalweg.checkpoints\n"
        "heavy = {'transformers', 'sentence_transformers', 'huggingface_hub', 'tokenizers'}\n"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "set()"
