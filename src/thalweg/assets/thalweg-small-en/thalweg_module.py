"""Opens this folder in sentence-transformers.

With thalweg installed its engine runs the model: texts of any length in constant memory, packed without padding.
Without it the stock modules do, which give the same vectors in memory that grows with the longest text.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

try:
    from thalweg.integrations.sentence_transformers import LexiconModule as _Lexicon
    from thalweg.integrations.sentence_transformers import Pooling as _Pooling
    from thalweg.integrations.sentence_transformers import ThalwegModule as _Model
except ModuleNotFoundError as error:
    if error.name != "thalweg":
        raise
    _Lexicon = None
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


class _StockLexicon(torch.nn.Module):
    """Puts the mean of the tokens' codes beside the pooled vector: thalweg.pooling.lexicon, for padded batches."""

    def __init__(self, config, codes):
        super().__init__()
        self.config = config
        for name, tensor in codes.items():  # integers and halves, whatever the model is cast to
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, features, **_):
        ids, mask, pooled = (features[name] for name in ("input_ids", "attention_mask", "sentence_embedding"))
        values = (self.values[ids].float() * mask[..., None]).flatten(1)
        codes = values.new_zeros(len(ids), self.config["d_lexicon"])
        codes = codes.scatter_add(1, self.columns[ids].long().flatten(1), values) / mask.sum(1, keepdim=True)
        size = codes.norm(dim=1, keepdim=True)
        weight = self.config["strength"] / (1 + (size / self.config["threshold"]) ** self.config["exponent"])
        pooled = pooled.float() / pooled.float().norm(dim=1, keepdim=True).clamp_min(1e-12)
        return {**features, "sentence_embedding": torch.cat([pooled, codes * (weight / size.clamp_min(1e-12))], 1)}

    def get_sentence_embedding_dimension(self):
        return self.config["in_features"] + self.config["d_lexicon"]

    def save(self, output_path, *args, **kwargs):
        Path(output_path, "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        save_file({"columns": self.columns, "values": self.values}, Path(output_path, "model.safetensors"))

    @classmethod
    def load(cls, input_path):
        config = json.loads(Path(input_path, "config.json").read_text())
        return cls(config, load_file(Path(input_path, "model.safetensors")))


class Lexicon(_Lexicon or _StockLexicon):
    """The words of a text beside its meaning; with thalweg there is nothing left to do."""
