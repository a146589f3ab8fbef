"""Files of any number and size to one file of vectors, and the way back from a question to a passage.

Files, each with one reason:
    embed.py      files to vectors in one call        opened.py     vectors opened again: search, vectors, table
    records.py    rows of inputs → texts and ids      writers.py    rows → Parquet, JSONL, .npy
    documents.py  input files → documents             results.py    … and back
    passages.py   the text that goes with a vector    ranking.py    questions → nearest rows
    rows.py       columns and metadata                where.py      which rows a search looks at
    settings.py   what a user can say                 parts.py      finished rows that survive a crash
    run.py        all of it in order                  index.py      where they lie; what is done
    report.py     how far it is, what went wrong      manifest.py   what a resumed run must agree in
    outputs.py    what earlier runs have written      assemble.py   parts → output
    follow.py     stdin without an end → rows         keys.py       a key for each row
    arguments.py  arguments that several take

Input files are found and read by `thalweg.inputs`.
"""

from thalweg.corpus.embed import embed_corpus
from thalweg.corpus.follow import follow_stdin
from thalweg.corpus.opened import Corpus, Hit, open_corpus
from thalweg.corpus.outputs import discover
from thalweg.corpus.records import Columns
from thalweg.corpus.report import Status, Summary
from thalweg.corpus.results import read_metadata
from thalweg.corpus.rows import Metadata
from thalweg.corpus.run import embed_files
from thalweg.corpus.settings import Mode, Settings, check_free
from thalweg.corpus.writers import OUTPUT_SUFFIXES, companions, parts_path
from thalweg.inputs.discover import Found, Reading, Unreadable
from thalweg.inputs.files import STDIN, InputFile

__all__ = [
    "OUTPUT_SUFFIXES",
    "STDIN",
    "Columns",
    "Corpus",
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
    "embed_files",
    "follow_stdin",
    "open_corpus",
    "parts_path",
    "read_metadata",
]
