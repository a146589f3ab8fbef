"""Opens this folder in sentence-transformers.

With thalweg installed its engine runs the model: texts of any length in constant memory, packed without padding.
Without it the stock modules do, which give the same vectors in memory that grows with the longest text.
"""

try:
    from thalweg.integrations.sentence_transformers import Pooling as _Pooling
    from thalweg.integrations.sentence_transformers import ThalwegModule as _Model
except ModuleNotFoundError as error:
    if error.name != "thalweg":
        raise
    try:
        from sentence_transformers.sentence_transformer.modules import Pooling as _Pooling
        from sentence_transformers.sentence_transformer.modules import Transformer as _Model
    except ModuleNotFoundError:  # before 5.4
        from sentence_transformers.models import Pooling as _Pooling
        from sentence_transformers.models import Transformer as _Model


class Model(_Model):
    """Tokens to hidden vectors, or with thalweg to the pooled vector at once."""


class Pooling(_Pooling):
    """Hidden vectors to one vector; with thalweg there is nothing left to do."""
