"""The one source of the version: the package, its metadata and what it writes into files read it here."""

__version__ = "0.1.0"
