"""Tiny random RWKV-7 checkpoints in every public format, all from one table of tensors with the names of a `.pth`.

That table is also what the oracles read: PyPI `rwkv` takes the `.pth` itself, `reference` below the tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.checkpoints.formats import Checkpoints

Tensors = dict[str, Tensor]


def tiny_tensors(
    *,
    vocab_size: int = 96,
    d_model: int = 32,
    n_layers: int = 3,
    head_dim: int = 8,
    d_value: int | None = None,
    d_ffn: int = 64,
    layer_0_v: bool = False,
    norm_bias: bool = True,
    seed: int = 0,
) -> Tensors:
    """The tensors of BlinkDL's format, none at a special value; `layer_0_v` adds the unused v0, v1, v2 of layer 0."""
    generator = torch.Generator().manual_seed(seed)
    d_value = d_value or d_model

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    def matrix(d_out: int, d_in: int) -> Tensor:
        return normal(d_out, d_in, scale=d_in**-0.5)

    tensors = {"emb.weight": normal(vocab_size, d_model)}

    def norm(name: str, width: int = d_model, *, bias: bool = norm_bias) -> None:
        tensors[f"{name}.weight"] = 1 + normal(width, scale=0.2)
        if bias:
            tensors[f"{name}.bias"] = normal(width, scale=0.2)

    for i in range(n_layers):
        block, att, ffn = f"blocks.{i}", f"blocks.{i}.att", f"blocks.{i}.ffn"
        if i == 0:
            norm(f"{block}.ln0")
        norm(f"{block}.ln1")
        norm(f"{block}.ln2")
        for name in "rwkvag":
            tensors[f"{att}.x_{name}"] = torch.rand(1, 1, d_model, generator=generator)
        for name, rank, width, shift in (("w", 4, d_model, -1.0), ("a", 5, d_model, 0.0), ("v", 6, d_value, 0.5)):
            if name == "v" and i == 0 and not layer_0_v:
                continue
            tensors[f"{att}.{name}0"] = shift + normal(1, 1, width, scale=0.5)
            tensors[f"{att}.{name}1"] = normal(d_model, rank, scale=d_model**-0.5)
            tensors[f"{att}.{name}2"] = normal(rank, width, scale=rank**-0.5)
        tensors[f"{att}.g1"] = normal(d_model, 7, scale=d_model**-0.5)
        tensors[f"{att}.g2"] = normal(7, d_value)
        tensors[f"{att}.k_k"] = 0.8 + normal(1, 1, d_model, scale=0.1)
        tensors[f"{att}.k_a"] = 1 + normal(1, 1, d_model, scale=0.1)
        tensors[f"{att}.r_k"] = normal(d_model // head_dim, head_dim, scale=0.3)
        tensors[f"{att}.receptance.weight"] = matrix(d_model, d_model)
        tensors[f"{att}.key.weight"] = matrix(d_model, d_model)
        tensors[f"{att}.value.weight"] = matrix(d_value, d_model)
        tensors[f"{att}.output.weight"] = matrix(d_model, d_value)
        norm(f"{att}.ln_x", d_value, bias=True)
        tensors[f"{ffn}.x_k"] = torch.rand(1, 1, d_model, generator=generator)
        tensors[f"{ffn}.key.weight"] = matrix(d_ffn, d_model)
        tensors[f"{ffn}.value.weight"] = matrix(d_model, d_ffn)
    norm("ln_out")
    tensors["head.weight"] = normal(vocab_size, d_model)
    return tensors


def write_pth(
    folder: Path, tensors: Tensors, name: str = "RWKV-x070-tiny.pth", dtype: torch.dtype | None = None
) -> Path:
    """BlinkDL's format: nothing but this file."""
    folder.mkdir(exist_ok=True)
    torch.save({key: tensor.to(dtype or tensor.dtype) for key, tensor in tensors.items()}, folder / name)
    return folder / name


def write_emb(folder: Path, tensors: Tensors, *, vision: bool = False, name: str = "rwkv0b1-emb-tiny.pth") -> Tensors:
    """The format of PyPI `rwkv-emb` 0.2.6; returns all its tensors."""
    generator = torch.Generator().manual_seed(7)
    width = tensors["ln_out.weight"].shape[0]
    stored = {f"rwkv.{key}": tensor for key, tensor in tensors.items() if key != "head.weight"}
    for head in ("cls", "sts", "retr"):
        for part in ("fc1", "fc2"):
            stored[f"head.{head}_head.{part}.weight"] = torch.randn(width, width, generator=generator) * width**-0.5
        stored[f"head.{head}_head.norm.weight"] = 1 + 0.2 * torch.randn(width, generator=generator)
        stored[f"head.{head}_head.norm.bias"] = 0.2 * torch.randn(width, generator=generator)
    if vision:
        stored["vit.vision_model.head.probe"] = torch.ones(1, 1, 4)
        stored["proj.gate.weight"] = torch.ones(4, 4)
    write_pth(folder, stored, name)
    return stored


def write_fla(
    folder: Path,
    tensors: Tensors,
    *,
    stacked: bool = False,
    prefix: str = "model.",
    lm_head: bool = True,
    config: dict[str, Any] | None = None,
) -> None:
    """fla's format, made as its own converter makes it; `stacked` is that of files from before 2025-04 (`attn.x_x`)."""
    n_layers = sum(name.endswith(".ln1.weight") for name in tensors)
    head_dim = tensors["blocks.0.att.r_k"].shape[1]
    vocab_size, d_model = tensors["emb.weight"].shape
    d_value, d_ffn = tensors["blocks.0.att.value.weight"].shape[0], tensors["blocks.0.ffn.key.weight"].shape[0]
    stored: Tensors = {}
    for name, tensor in tensors.items():
        if name.startswith("blocks.0.att.v") and name[-2:] in ("v0", "v1", "v2"):
            continue
        new = name.replace("blocks.", "layers.").replace(".att.", ".attn.").replace(".ln0.", ".pre_norm.")
        new = new.replace(".ln1.", ".attn_norm.").replace(".ln2.", ".ffn_norm.").replace(".ln_x.", ".g_norm.")
        for short, projection in (("r", "receptance"), ("k", "key"), ("v", "value"), ("o", "output")):
            new = new.replace(f".attn.{projection}.", f".attn.{short}_proj.")
        new = {"emb.weight": "embeddings.weight", "head.weight": "lm_head.weight"}.get(
            new, new.replace("ln_out", "norm")
        )
        last = new.rpartition(".")[2]
        if ".attn." in new and len(last) == 2 and last[0] in "wvag" and last[1] in "012":
            part = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[last[1]]
            new = f"{new[:-3]}.{last[0]}_lora.lora.{part}"
            tensor = tensor.flatten() if last[1] == "0" else tensor.t()
        elif last.startswith("k_") or new.endswith(".ffn.x_k"):
            tensor = tensor.flatten()
        if new != "lm_head.weight":
            new = prefix + new
        elif not lm_head:
            continue
        stored[new] = tensor.contiguous()
    if stacked:
        for i in range(n_layers):
            attn = f"{prefix}layers.{i}.attn."
            stored[f"{attn}x_x"] = torch.cat([stored.pop(f"{attn}x_{name}")[0] for name in "rwkvag"])
    keys = {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "attn": None,
        "attn_mode": "chunk",
        "vocab_size": vocab_size,
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "head_dim": head_dim,
        "num_heads": None,
        "value_dim": [d_value] * n_layers,
        "hidden_ratio": d_ffn / d_model,
        "intermediate_size": d_ffn,
        "decay_low_rank_dim": tensors["blocks.0.att.w1"].shape[1],
        "a_low_rank_dim": tensors["blocks.0.att.a1"].shape[1],
        "v_low_rank_dim": tensors["blocks.1.att.v1"].shape[1],
        "gate_low_rank_dim": tensors["blocks.0.att.g1"].shape[1],
        "hidden_act": "sqrelu",
        "norm_eps": 1e-5,
        "norm_bias": "ln_out.bias" in tensors,
        "norm_first": "blocks.0.ln0.weight" in tensors,
        "fuse_norm": False,
        "tie_word_embeddings": False,
    }
    folder.mkdir(exist_ok=True)
    changed = {key: value for key, value in {**keys, **(config or {})}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(changed), encoding="utf-8")
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def reference(tensors: Tensors, ids: Tensor, *, norm_eps: float = 1e-5, head_eps: float = 64e-5) -> Tensor:
    """(N,) ids -> (N, D) float64 after ln_out: the paper's formulas, one token and one head after the other."""
    z = {name: tensor.double().squeeze() if tensor.ndim == 3 else tensor.double() for name, tensor in tensors.items()}
    n_heads, head_dim = z["blocks.0.att.r_k"].shape

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], z[f"{name}.weight"], z.get(f"{name}.bias"), norm_eps)

    def previous(x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x[:1]), x[:-1]])

    u = z["emb.weight"][ids]
    u = norm(u, "blocks.0.ln0") if "blocks.0.ln0.weight" in z else u
    v_first = None
    for i in range(sum(name.endswith(".ln1.weight") for name in z)):
        att = {name.removeprefix(f"blocks.{i}.att."): t for name, t in z.items() if name.startswith(f"blocks.{i}.att.")}
        ffn = {name.removeprefix(f"blocks.{i}.ffn."): t for name, t in z.items() if name.startswith(f"blocks.{i}.ffn.")}
        x = norm(u, f"blocks.{i}.ln1")
        x_r, x_w, x_k, x_v, x_a, x_g = (x + (previous(x) - x) * att[f"x_{name}"] for name in "rwkvag")
        r, k, v = (x_r @ att["receptance.weight"].T, x_k @ att["key.weight"].T, x_v @ att["value.weight"].T)
        w = torch.exp(-math.exp(-0.5) * torch.sigmoid(att["w0"] + torch.tanh(x_w @ att["w1"]) @ att["w2"]))
        a = torch.sigmoid(att["a0"] + x_a @ att["a1"] @ att["a2"])
        g = torch.sigmoid(x_g @ att["g1"]) @ att["g2"]
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(att["v0"] + x_v @ att["v1"] @ att["v2"])
        removed = k * att["k_k"]
        k = k * (1 + (a - 1) * att["k_a"])
        heads = []
        for h in range(n_heads):
            rh, wh, kh, vh, ah, kkh = (t.chunk(n_heads, dim=1)[h] for t in (r, w, k, v, a, removed))
            kkh = kkh / kkh.norm(dim=1, keepdim=True)
            state, out = torch.zeros(vh.shape[1], head_dim, dtype=torch.float64), []
            for t in range(len(ids)):
                state = state * wh[t] - torch.outer(state @ kkh[t], ah[t] * kkh[t]) + torch.outer(vh[t], kh[t])
                out.append(state @ rh[t])
            y = torch.stack(out)
            y = (y - y.mean(1, keepdim=True)) / (y.var(1, unbiased=False, keepdim=True) + head_eps).sqrt()
            weight, bias = (att[f"ln_x.{part}"].chunk(n_heads)[h] for part in ("weight", "bias"))
            heads.append(y * weight + bias + (rh * kh * att["r_k"][h]).sum(1, keepdim=True) * vh)
        u = u + (torch.cat(heads, dim=1) * g) @ att["output.weight"].T
        x = norm(u, f"blocks.{i}.ln2")
        inner = (x + (previous(x) - x) * ffn["x_k"]) @ ffn["key.weight"].T
        u = u + inner.relu().square() @ ffn["value.weight"].T
    return norm(u, "ln_out")


def write_world_vocabulary(folder: Path) -> None:
    """The world tokenizer's file, with the bytes and a few words only."""
    entries: list[Any] = [bytes([i]) if i > 127 else chr(i) for i in range(256)]
    entries += ["the ", "river", "runs", " thalweg"]
    lines = [
        f"{i} {entry!r} {len(entry.encode() if isinstance(entry, str) else entry)}"
        for i, entry in enumerate(entries, 1)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "rwkv_vocab_v20230424.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _with_vocabulary(write: Callable[..., Any], **sizes: int) -> Callable[[Path], Any]:
    def write_both(folder: Path) -> None:
        write_world_vocabulary(folder)
        write(folder, tiny_tensors(**{"vocab_size": 300, **sizes}))

    return write_both


CHECKPOINTS: Checkpoints = {
    # Heads of 64 channels, as all published models have: fla's format, in which it is exported, ties an epsilon to it.
    "rwkv7, pth": ("rwkv7/pth", _with_vocabulary(write_pth, d_model=64, head_dim=64)),
    "rwkv7, fla": ("rwkv7/fla", _with_vocabulary(write_fla)),
    "rwkv7, rwkv-emb": ("rwkv7/rwkv-emb", _with_vocabulary(write_emb, vocab_size=65536)),
}
