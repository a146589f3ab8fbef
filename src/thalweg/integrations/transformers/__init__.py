"""thalweg for users of transformers; transformers itself is imported when first needed.

from thalweg.integrations.transformers import register
register()                          # AutoModel knows the families that transformers lacks from here on

chunked.py    chunk by chunk through any transformers model that carries a cache, once it has proved exact
modeling.py   thalweg's models as `PreTrainedModel`s: padding and caches exact, every family
batches.py    a padded batch as packed steps
cache.py      the states of a batch, handed from call to call
configs.py    configs of the families that transformers lacks
world.py      the tokenizer of the RWKV models for AutoTokenizer
auto.py       AutoConfig, AutoModel and AutoTokenizer find them
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from thalweg.errors import MissingExtraError
from thalweg.families import FAMILIES
from thalweg.integrations.transformers.chunked import Chunk, chunked_forward, iterate_chunks, verify
from thalweg.lazy_names import lazy_names

if TYPE_CHECKING:
    from thalweg.integrations.transformers.auto import register
    from thalweg.integrations.transformers.cache import RecurrentCache
    from thalweg.integrations.transformers.modeling import RecurrentModelOutput, ThalwegModel
    from thalweg.integrations.transformers.world import RWKVWorldTokenizer

_LAZY = {
    "RWKVWorldTokenizer": ".world",
    "RecurrentCache": ".cache",
    "RecurrentModelOutput": ".modeling",
    "ThalwegModel": ".modeling",
    "register": ".auto",
}
_LAZY |= {row.model: ".modeling" for family in FAMILIES for row in family.transformers}
_LAZY |= {row.config: ".configs" for family in FAMILIES if not family.in_transformers for row in family.transformers}

__all__ = [
    "Chunk",
    "RWKVWorldTokenizer",
    "RecurrentCache",
    "RecurrentModelOutput",
    "ThalwegModel",
    "chunked_forward",
    "iterate_chunks",
    "register",
    "verify",
]
__all__ += sorted(_LAZY.keys() - set(__all__))


def _require_transformers() -> None:
    try:
        importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtraError(f"{__name__} needs: pip install 'thalweg[transformers]'") from error


__getattr__ = lazy_names(__name__, _LAZY, _require_transformers)


def __dir__() -> list[str]:
    return sorted(__all__)
