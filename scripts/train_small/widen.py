"""An earlier version with more dimensions and fewer heads, to go on from: `warm.py --earlier` gives it its new table.

    python widen.py EARLIER --d-model 512 --heads 8 --whole DIR… --out wide.pt

    residual stream = [all of the earlier one | lexical | fill]
      lexical       a random direction for each token, shorter for frequent ones: tells which words a text has, where
                    the content tells what they mean. Long texts are found by their words
      fill          makes lexical and fill of equal length for all tokens, so that RMSNorm leaves the rest as it is

The layers read and write nothing of the new dimensions at first. Of their heads those stay that add most to the
residual stream on texts of the caches.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from batches import load_ids
from warm import EOS

import thalweg
from thalweg.models.mamba2 import Mamba2, Mamba2Layer

RARE = 3e-4  # a token this frequent keeps half of its lexical length
STRENGTH = 0.6  # of the mean lexical part, in lengths of the mean content


def lexical_codes(frequency: np.ndarray, width: int) -> Tensor:
    """(V, width) a random direction for each token, at most of length 1."""
    codes = torch.randn(len(frequency), width, generator=torch.Generator().manual_seed(0))
    return F.normalize(codes, dim=1) * torch.from_numpy(RARE / (RARE + frequency)).float()[:, None]


def strongest_heads(embedder: thalweg.Embedder, texts: list[np.ndarray], heads: int) -> list[Tensor]:
    """For each layer the heads whose outputs add most, in order."""
    sums: dict[Mamba2Layer, Tensor] = {}

    def listen(layer: Mamba2Layer, mixed: Tensor) -> None:
        weight = layer.mixer.out_proj.weight.unflatten(1, (-1, embedder.model.config.head_dim))
        added = torch.einsum("nhp,dhp->nhd", mixed.unflatten(1, weight.shape[1:]), weight)
        sums[layer] = sums.get(layer, 0) + added.square().sum((0, 2))

    hooks = [
        layer.mixer.register_forward_hook(lambda _, __, out, layer=layer: listen(layer, out[0]))
        for layer in embedder.model.layers
    ]
    embedder.encode_ids(texts)
    for hook in hooks:
        hook.remove()
    return [sums[layer].topk(heads).indices.sort().values for layer in embedder.model.layers]


@torch.no_grad()
def widen(model: Mamba2, d_model: int, kept: list[Tensor], codes: Tensor) -> Mamba2:
    """The wider model, with the heads `kept` of each layer and `codes` (V, d_model - earlier width - 1)."""
    old = model.config
    config = dataclasses.replace(old, d_model=d_model, n_heads=len(kept[0]))
    wide = Mamba2(config)
    new = d_model - old.d_model
    for layer, wider, heads in zip(model.layers, wide.layers, kept, strict=True):
        m, w = layer.mixer, wider.mixer
        channels = (heads[:, None] * old.head_dim + torch.arange(old.head_dim)).flatten()
        groups = old.d_inner + torch.arange(2 * old.n_groups * old.d_state)  # B and C, behind x
        gate, rest = channels, old.d_inner + torch.cat([channels, groups])
        rows = torch.cat([gate, rest, old.d_inner + old.conv_dim + heads])
        wider.norm.weight.copy_(F.pad(layer.norm.weight, (0, new), value=1.0))
        w.in_proj.weight.copy_(F.pad(m.in_proj.weight[rows], (0, new)))
        w.out_proj.weight.copy_(F.pad(m.out_proj.weight[:, channels], (0, 0, 0, new)))
        w.conv.weight.copy_(m.conv.weight[rest - old.d_inner])
        w.conv.bias.copy_(m.conv.bias[rest - old.d_inner])
        w.norm.weight.copy_(m.norm.weight[channels])
        for name in ("A_log", "D", "dt_bias"):
            getattr(w, name).copy_(getattr(m, name)[heads])
    vectors = F.normalize(model.embeddings.weight, dim=1) * old.d_model**0.5
    lexical = F.pad(codes, (0, 0, 0, len(vectors) - len(codes))) * (0.95 * new**0.5)
    fill = torch.sqrt(new - lexical.square().sum(1, keepdim=True))
    wide.embeddings.weight.copy_(torch.cat([vectors, lexical, fill], 1))
    content = (vectors * model.norm_f.weight)[: len(codes)].norm(dim=1).mean()
    gain = STRENGTH * content / lexical[: len(codes)].norm(dim=1).mean()
    wide.norm_f.weight.copy_(F.pad(torch.cat([model.norm_f.weight, gain.expand(new - 1)]), (0, 1)))
    return wide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("earlier", type=Path)
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--whole", type=Path, nargs="+", required=True, help="caches of whole shards")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    earlier = thalweg.load(args.earlier)
    ids, at = load_ids(args.whole)
    some = np.random.default_rng(0).integers(len(at) - 1, size=500)
    kept = strongest_heads(earlier, [np.append(ids[at[i] : at[i + 1]], EOS) for i in some], args.heads)
    frequency = np.bincount(ids, minlength=earlier.model.config.vocab_size) / len(ids)
    codes = lexical_codes(frequency, args.d_model - earlier.model.d_model - 1)
    wide = widen(earlier.model, args.d_model, kept, codes)
    torch.save({"weights": wide.state_dict(), "config": dataclasses.asdict(wide.config)}, args.out)
    print({"heads kept": [heads.tolist() for heads in kept]})


if __name__ == "__main__":
    main()
