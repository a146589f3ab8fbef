"""Checkpoints: names to folders, folders to models, and back.

Files, each with one reason:
    hub.py      name → folder                      format.py    what a format is; formats.py: the table of all
    files.py    tensor files, memory-mapped        mamba2.py    the formats of one family, as data
    structure.py config and shapes → model         embedding.py pooling, prompts: sentence-transformers' files
    loader.py   folder → model with its weights    lexicon.py   the codes of a lexicon
    describe.py the same without weights           fingerprint.py  a short name for the contents
    saver.py    model → folder                     card.py      its README
    tokens.py   special tokens                     tokenizer_files.py  a tokenizer's files, written
    fields.py   typed JSON                         auto_map.py  so that AutoModel opens what transformers lacks
"""

from thalweg.checkpoints.card import model_card
from thalweg.checkpoints.describe import describe_checkpoint
from thalweg.checkpoints.embedding import (
    EmbeddingConfig,
    read_embedding_config,
    save_embedding_config,
    save_model_settings,
)
from thalweg.checkpoints.formats import keeps_float32
from thalweg.checkpoints.hub import resolve
from thalweg.checkpoints.loader import Checkpoint, load_checkpoint, stated_dtype
from thalweg.checkpoints.saver import module_classes, save_checkpoint, write_model
from thalweg.checkpoints.tokens import TokenIds

__all__ = [
    "Checkpoint",
    "EmbeddingConfig",
    "TokenIds",
    "describe_checkpoint",
    "keeps_float32",
    "load_checkpoint",
    "model_card",
    "module_classes",
    "read_embedding_config",
    "resolve",
    "save_checkpoint",
    "save_embedding_config",
    "save_model_settings",
    "stated_dtype",
    "write_model",
]
