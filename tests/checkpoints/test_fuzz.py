"""Edited checkpoints give a model or a CheckpointError; `fuzz.py` is the script, and tries thousands when it is run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by what /proc says")
def test_random_edits_give_a_model_or_a_checkpoint_error() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.checkpoints.fuzz", "--edits", "150", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
