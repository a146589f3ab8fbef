"""Files of any number and size to one file of vectors, and the way back from a question to a passage.

Files, each with one reason:
    records.py    rows of inputs → texts and ids      writers.py    rows → Parquet, JSONL, .npy
    documents.py  input files → documents             results.py    … and back
    passages.py   the text that goes with a vector    search.py     query → nearest rows
    rows.py       columns and metadata                parts.py      finished rows that survive a crash
    settings.py   what a user can say                 index.py      where they lie; what is done
    run.py        all of it in order                  manifest.py   what a resumed run must agree in
    report.py     how far it is, what went wrong      assemble.py   parts → output
    outputs.py    what earlier runs have written      keys.py       a key for each row
    follow.py     stdin without an end → rows as they come

Input files are found and read by `thalweg.inputs`.
"""

from thalweg.corpus.follow import follow_stdin
from thalweg.corpus.outputs import discover
from thalweg.corpus.records import Columns
from thalweg.corpus.report import Status, Summary
from thalweg.corpus.results import read_metadata
from thalweg.corpus.rows import Metadata
from thalweg.corpus.run import embed_corpus
from thalweg.corpus.search import Hit, search
from thalweg.corpus.settings import Mode, Settings, check_free
from thalweg.corpus.writers import companions, parts_path
from thalweg.inputs.discover import Found, Reading, Unreadable
from thalweg.inputs.files import STDIN, InputFile

__all__ = [
    "STDIN",
    "Columns",
    "Found",
    "Hit",
    "InputFile",
    "Metadata",
    "Mode",
    "Reading",
    "Settings",
    "Status",
    "Summary",
    "Unreadable",
    "check_free",
    "companions",
    "discover",
    "embed_corpus",
    "follow_stdin",
    "parts_path",
    "read_metadata",
    "search",
]
