"""Checkpoints: names to folders, folders to models, and back.

Files, each with one reason:
    hub.py      name → folder                      layout.py    what a format is; layouts.py: the table of all
    files.py    tensor files, memory-mapped        mamba2.py    the formats of one family, as data
    loader.py   folder → model                     embedding.py pooling, prompts: sentence-transformers' files
    saver.py    model → folder                     tokens.py    special tokens; fields.py: typed JSON
"""

from thalweg.checkpoints.embedding import EmbeddingConfig, read_embedding_config, save_embedding_config
from thalweg.checkpoints.hub import resolve
from thalweg.checkpoints.loader import Checkpoint, load_checkpoint, load_weights
from thalweg.checkpoints.saver import save_checkpoint

__all__ = [
    "Checkpoint",
    "EmbeddingConfig",
    "load_checkpoint",
    "load_weights",
    "read_embedding_config",
    "resolve",
    "save_checkpoint",
    "save_embedding_config",
]
