"""Files of any number and size to one file of vectors, and the way back from a question to a passage.

Files, each with one reason:
    inputs.py     arguments → input files             writers.py    rows → Parquet, JSONL, .npy
    streams.py    bytes, text in pieces               results.py    … and back
    tables.py     JSONL, CSV, Parquet → rows          search.py     query → nearest rows
    documents.py  input files → documents             parts.py      finished rows that survive a crash
    passages.py   the text that goes with a vector    index.py      where they lie; what is done
    rows.py       columns and metadata                manifest.py   what a resumed run must agree in
    settings.py   what a user can say                 assemble.py   parts → output
    run.py        all of it in order                  report.py     how far it is, what went wrong
"""

from thalweg.corpus.inputs import STDIN, InputFile, Unreadable, discover
from thalweg.corpus.report import Status, Summary
from thalweg.corpus.results import read_metadata
from thalweg.corpus.rows import Metadata
from thalweg.corpus.run import embed_corpus
from thalweg.corpus.search import Hit, search
from thalweg.corpus.settings import Mode, Settings, check_free
from thalweg.corpus.tables import Columns
from thalweg.corpus.writers import companions, parts_path

__all__ = [
    "STDIN",
    "Columns",
    "Hit",
    "InputFile",
    "Metadata",
    "Mode",
    "Settings",
    "Status",
    "Summary",
    "Unreadable",
    "check_free",
    "companions",
    "discover",
    "embed_corpus",
    "parts_path",
    "read_metadata",
    "search",
]
