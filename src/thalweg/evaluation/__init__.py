"""Quality measured: benchmarks of mteb, a suite over local files, and other models beside ours.

What imports mteb is imported on first use; nothing here is imported by `import thalweg`.

    extras.py     the optional packages, or the pip command
    tasks.py      names, benchmarks and Python files to mteb tasks
    local.py      a folder of files to tasks that mteb's own code scores
    rows.py       the rows of such files, checked
    needles.py    needle and passkey retrieval of any length, out of books
    lengths.py    scores by document length, within mteb's results
    models.py     our encoder, BM25 and sentence-transformers models by name
    bm25.py       BM25 as mteb searches
    peers.py      a sentence-transformers model that cuts texts, or averages its vectors of their chunks
    store.py      results on the disk, whole or not at all
    run.py        all models on all tasks, resumable
    table.py      what the stored results say: rows, means, published scores
    report.py     Markdown and JSON; plots.py: scores against length
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thalweg.evaluation.extras import require_extra
from thalweg.lazy_names import lazy_names

if TYPE_CHECKING:
    from thalweg.evaluation.local import local_tasks, needle_tasks
    from thalweg.evaluation.models import other_models, our_model
    from thalweg.evaluation.run import evaluate
    from thalweg.evaluation.table import make_table

__all__ = ["evaluate", "local_tasks", "make_table", "needle_tasks", "other_models", "our_model"]

__getattr__ = lazy_names(
    __name__,
    {
        "evaluate": ".run",
        "local_tasks": ".local",
        "make_table": ".table",
        "needle_tasks": ".local",
        "other_models": ".models",
        "our_model": ".models",
    },
    require_extra,
)
