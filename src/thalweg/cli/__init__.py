"""The command line: `thalweg embed`, `search`, `info`, `demo`. Commands import what they need when they run."""

from thalweg.cli.app import main

__all__ = ["main"]
