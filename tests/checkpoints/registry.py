"""A tiny random checkpoint of every format of every family: those that each `formats_FAMILY.py` writes."""

from __future__ import annotations

import importlib

from thalweg.families import FAMILIES

from .formats import Checkpoints

CHECKPOINTS: Checkpoints = {}
for family in FAMILIES:
    CHECKPOINTS |= importlib.import_module(f"tests.checkpoints.formats_{family.name}").CHECKPOINTS
