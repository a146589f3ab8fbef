"""Tiny random checkpoints of Mamba2 in every public format, for tests of all families; `formats.py` writes them."""

from __future__ import annotations

from .formats import Checkpoints, mistral_config, tiny_config, write_mamba_ssm, write_mistral, write_transformers

CHECKPOINTS: Checkpoints = {
    "mamba2": ("mamba2/transformers", lambda folder: write_transformers(folder, tiny_config())),
    "mamba2, mamba-ssm": ("mamba2/mamba-ssm", lambda folder: write_mamba_ssm(folder, tiny_config())),
    "mamba2, mistral": ("mamba2/mistral", lambda folder: write_mistral(folder, mistral_config())),
}
