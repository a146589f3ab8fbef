"""The README of an exported folder: what the model is, how each tool opens it, and where it comes from."""

from __future__ import annotations

import re
from pathlib import Path

from thalweg.checkpoints.embedding import EmbeddingConfig, ModuleClasses
from thalweg.pooling import POOLINGS

KEPT_KEYS = ("license", "license_name", "license_link", "language", "base_model", "datasets")
"""What a card's front matter says of its origin, and the copy inherits."""

MAX_BYTES = 2**20
"""Bytes of a card that are copied; whatever is beyond is no card."""

TRUST = {"stock": "", "thalweg": ", trust_remote_code=True", "either": ", trust_remote_code=True"}

OPENS = {
    "stock": """\
The stock modules open it, without thalweg and without remote code; texts then cost memory by their length and are
padded to the longest of a batch.""",
    "thalweg": """\
This needs thalweg installed, whose engine runs the model; sentence-transformers wants the flag for every class that is
not its own.""",
    "either": """\
With thalweg installed its engine runs the model: any length in constant memory, packed without padding. Without it the
stock modules of sentence-transformers do, with the same vectors. The flag is for `thalweg_module.py` in this folder,
which chooses.""",
}


def model_card(
    name: str,
    *,
    family: str,
    n_parameters: int,
    dtype: str,
    dimension: int,
    embedding: EmbeddingConfig,
    classes: ModuleClasses,
    origin: Path,
    version: str,
) -> str:
    """The card in Markdown.

    Args:
        name: of the model it was made from: a hub id, or a folder's name.
        dtype: of the weights in the file, by name.
        origin: the folder it was made from; what its README.md says is kept.
        version: of thalweg.
    """
    metadata, body = _read_card(origin / "README.md")
    return "\n".join(
        [
            "---",
            *metadata,
            "library_name: sentence-transformers",
            "pipeline_tag: sentence-similarity",
            "tags:",
            *(f"- {tag}" for tag in ("sentence-transformers", "feature-extraction", "sentence-similarity", "thalweg")),
            f"- {family}",
            "---",
            "",
            f"# {name.rpartition('/')[2]}",
            "",
            f"A recurrent text embedder ({family}, {n_parameters / 1e6:,.1f} M parameters, stored in {dtype}).",
            "It reads texts of any length; nothing is cut.",
            "",
            *_facts(dimension, embedding),
            "",
            "## Use",
            "",
            *_use(embedding, classes),
            "",
            "## Origin",
            "",
            f"Written by `thalweg export` {version} from `{name}`. Licence and terms are those of the original.",
            *(["", "What its own card says:", "", *(f"> {line}".rstrip() for line in body)] if body else []),
            "",
        ]
    )


def _facts(dimension: int, embedding: EmbeddingConfig) -> list[str]:
    pooling = POOLINGS[embedding.pooling].title
    if embedding.append_eos:
        end = "an end token" if embedding.n_eos == 1 else f"{embedding.n_eos} end tokens"
        pooling += f", {end} put after every text"
    rows = [
        ("dimensions", f"{dimension:,}"),
        ("pooling", pooling),
        ("normalised to length 1", "yes" if embedding.normalize else "no"),
        ("similarity", embedding.similarity),
        *([("embedding head", f"`{embedding.head}`")] if embedding.head else []),
        *((f"prompt `{key}`", f"`{text!r}`") for key, text in embedding.prompts.items()),
        *([("prompt used by default", f"`{embedding.default_prompt_name}`")] if embedding.default_prompt_name else []),
    ]
    note = "A language model that was not tuned for embeddings; pooling and end token are assumed."
    return [
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in rows),
        *(["", note] if embedding.untuned else []),
    ]


def _use(embedding: EmbeddingConfig, classes: ModuleClasses) -> list[str]:
    encode = "encode_query" if "query" in embedding.prompts else "encode"
    return [
        "```python",
        "import thalweg",
        "",
        'model = thalweg.load("path/to/this/folder")',
        f'vectors = model.{encode}(["a sentence", "a whole book …"])',
        "```",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("path/to/this/folder"{TRUST[classes]})',
        f'vectors = model.{encode}(["a sentence", "a whole book …"])',
        "```",
        "",
        OPENS[classes],
        "",
        "```sh",
        "thalweg embed docs/ -o corpus.parquet --model path/to/this/folder",
        "```",
    ]


def _read_card(path: Path) -> tuple[list[str], list[str]]:
    """The lines of its front matter that the copy inherits, and its text."""
    if not path.is_file():
        return [], []
    with path.open("rb") as file:
        text = file.read(MAX_BYTES).decode(errors="replace")
    match = re.fullmatch(r"(?:---\n(.*?)\n---\n)?(.*)", text.strip() + "\n", re.DOTALL)
    assert match is not None
    kept, inside = [], False
    for line in (match[1] or "").splitlines():
        inside = (line.startswith((" ", "-")) and inside) or line.split(":")[0] in KEPT_KEYS
        kept += [line] * inside
    return kept, match[2].strip().splitlines()
