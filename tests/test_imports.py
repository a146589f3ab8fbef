"""What importing costs, and what is said where an optional package is missing. Each in a process of its own."""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

from thalweg import integrations

PYPROJECT = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")

OPTIONAL = (
    "accelerate",
    "datasets",
    "fastapi",
    "haystack",
    "langchain_core",
    "llama_index",
    "matplotlib",
    "mteb",
    "pandas",
    "peft",
    "psutil",
    "rank_bm25",
    "scipy",
    "sentence_transformers",
    "sklearn",
    "sqlglot",
    "transformers",
    "uvicorn",
)
"""What thalweg can do without; all of these are installed where its tests run."""


def run(program: str) -> str:
    """What a fresh process prints that runs a program."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.subprocess
@pytest.mark.parametrize(
    "statement", ["import thalweg", "import thalweg, thalweg.integrations, thalweg.errors", "import thalweg.cli.app"]
)
def test_importing_thalweg_imports_nothing_heavy(statement: str) -> None:
    heavy = {"torch", "numpy", "pyarrow", "tokenizers", "huggingface_hub", *OPTIONAL}
    assert run(f"{statement}\nimport sys\nprint({heavy!r} & set(sys.modules))") == "set()\n"


@pytest.mark.subprocess
def test_embedding_imports_nothing_optional() -> None:
    program = (
        "import sys, thalweg, thalweg.integrations.transformers\n"
        "assert thalweg.load().encode(['the river runs', '']).shape == (2, 768)\n"
        f"print({set(OPTIONAL)!r} & set(sys.modules))"
    )
    assert run(program) == "set()\n"


@pytest.mark.subprocess
def test_the_embedder_is_hardly_slower_to_import_than_torch() -> None:
    """Under 1.5 times `import torch`, in seconds of the processor: other work on the machine counts less in these than
    in seconds of the clock. Processes take turns, and the best of each are compared, until that is decided."""
    best = {"torch": float("inf"), "thalweg.embedder.embedder": float("inf")}
    for _ in range(6):
        for module in best:
            seconds = float(run(f"import time, {module}\nprint(time.process_time())"))
            best[module] = min(best[module], seconds)
        if best["thalweg.embedder.embedder"] < 1.5 * best["torch"]:
            return
    pytest.fail(f"seconds of the processor: {best}")


# A finder that knows everything but the optional packages: to what runs after it they are not installed.
WITHOUT = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {OPTIONAL!r} else super().find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""

USES = {
    "sentence_transformers": ("import thalweg.integrations.sentence_transformers", "sentence-transformers"),
    "transformers": ("from thalweg.integrations.transformers import register", "transformers"),
    "transformers, a loop": (
        "import torch; from thalweg.integrations.transformers import chunked_forward as run\n"
        "run(torch.nn.Linear(1, 1), torch.ones((1, 2), dtype=torch.int64))",
        "transformers",
    ),
    "langchain": ("import thalweg.integrations.langchain", "langchain"),
    "llama_index": ("import thalweg.integrations.llama_index", "llama-index"),
    "haystack": ("import thalweg.integrations.haystack", "haystack"),
    "mteb": ("import thalweg.integrations.mteb", "mteb"),
    "eval": ("from thalweg.evaluation.extras import require_extra; require_extra()", "eval"),
    "train": ("from thalweg.training.extras import require_extra; require_extra()", "train"),
    "train, data": ("from thalweg.training.data import load_training_data; load_training_data(['a'])", "train"),
    "synth": (  # httpx, which huggingface_hub has imported already
        "import sys; from unittest.mock import patch\n"
        "with patch.dict(sys.modules, {'httpx': None}): import thalweg.synthesis.client",
        "synth",
    ),
    "client": (
        "import importlib.util; from unittest.mock import patch; import thalweg.client\n"
        "with patch.object(importlib.util, 'find_spec', return_value=None): thalweg.client.Client",
        "client",
    ),
    "serve": ("from thalweg.serve.extras import require_extra; require_extra()", "serve"),
    "search": (
        "import pyarrow as pa; from thalweg.corpus.where import Where\n"
        "Where('n > 2', pa.schema({'n': pa.int64()}), 'a.parquet')",
        "search",
    ),
    "bench, memory": ("from thalweg.bench import machine; machine.psutil()", "bench"),
    "bench, pictures": ("from thalweg.bench import figures; figures._pyplot()", "bench"),
}
"""A use of each optional package, and the extra that its absence should name."""


@pytest.fixture(scope="module")
def messages() -> dict[str, str]:
    """What each use says in a process without any optional package, where embedding works all the same."""
    program = WITHOUT + (
        "import json, thalweg\n"
        "assert thalweg.load().encode(['the river runs']).shape == (1, 768)\n"
        "messages = {}\n"
        f"for name, (use, _) in {USES!r}.items():\n"
        "    try:\n"
        "        exec(use, {})\n"
        "        messages[name] = 'no error'\n"
        "    except thalweg.MissingExtraError as error:\n"
        "        messages[name] = str(error)\n"
        "print(json.dumps(messages))"
    )
    return json.loads(run(program))


@pytest.mark.subprocess
@pytest.mark.parametrize("name", USES)
def test_a_missing_extra_is_named_with_its_command(name: str, messages: dict[str, str]) -> None:
    extra = USES[name][1]
    assert f"pip install 'thalweg[{extra}]'" in messages[name]
    assert re.search(rf"^{extra} = \[", PYPROJECT, re.MULTILINE)


def test_every_integration_is_among_the_uses() -> None:
    modules = {module.name for module in pkgutil.iter_modules(integrations.__path__)}
    public = {name for name in modules if not name.startswith("_")} - {"mteb_instructions"}  # data, needs nothing
    assert public <= set(USES)


def test_every_extra_is_used() -> None:
    section = re.search(r"\[project\.optional-dependencies\]\n(.*?)\n\[", PYPROJECT, re.DOTALL)
    assert section is not None
    extras = set(re.findall(r"^([\w-]+) = \[", section[1], re.MULTILINE))
    assert extras - {extra for _, extra in USES.values()} <= {"dev"}
