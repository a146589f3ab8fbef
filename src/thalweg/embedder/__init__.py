"""Text to vectors: `load` a model, then `Embedder.encode` or `Embedder.encode_stream`."""

from thalweg.embedder.dtypes import Dtype
from thalweg.embedder.embedder import Embedder
from thalweg.embedder.export import ExportFormat
from thalweg.embedder.loading import load
from thalweg.embedder.results import Embedding

__all__ = ["Dtype", "Embedder", "Embedding", "ExportFormat", "load"]
