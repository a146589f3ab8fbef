"""The public formats of RWKV-7: BlinkDL's `.pth`, fla's (for transformers), and the embedding models of `rwkv-emb`.

A `.pth` has no config: the shapes of its tensors say all. fla's low-rank matrices are those of `nn.Linear`, the
`.pth` holds them transposed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from thalweg.checkpoints.embedding import EmbeddingConfig
from thalweg.checkpoints.fields import Fields
from thalweg.checkpoints.format import HYBRID_HINT, Format, TensorMap
from thalweg.checkpoints.tokens import TokenIds
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.models.rwkv7 import RWKV7, RWKV7Config
from thalweg.pooling import LastToken

NORMS = {"att_norm": ("ln1", "attn_norm"), "ffn_norm": ("ln2", "ffn_norm")}
PROJECTIONS = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
MIXES = "rwkvag"  # also the order in which old files of fla stack them
HEADS = ("retr", "sts", "cls")

PTH = (
    TensorMap("embeddings.weight", ("emb.weight",)),
    *(
        row
        for part in ("weight", "bias")
        for row in (
            TensorMap(f"embedding_norm.{part}", (f"blocks.0.ln0.{part}",), keep_float32=True),
            *(
                TensorMap(f"layers.{{i}}.{name}.{part}", (f"blocks.{{i}}.{stored}.{part}",), keep_float32=True)
                for name, (stored, _) in NORMS.items()
            ),
            TensorMap(f"layers.{{i}}.att.norm.{part}", (f"blocks.{{i}}.att.ln_x.{part}",), keep_float32=True),
            TensorMap(f"norm.{part}", (f"ln_out.{part}",), keep_float32=True),
        )
    ),
    *(
        TensorMap(f"layers.{{i}}.att.mix.{name}", (f"blocks.{{i}}.att.x_{name}",), ones=2, keep_float32=True)
        for name in MIXES
    ),
    *(
        row
        for name in "wavg"
        for row in (
            TensorMap(f"layers.{{i}}.att.lora_{name}.bias", (f"blocks.{{i}}.att.{name}0",), ones=2, keep_float32=True),
            TensorMap(f"layers.{{i}}.att.lora_{name}.down.weight", (f"blocks.{{i}}.att.{name}1",), transpose=True),
            TensorMap(f"layers.{{i}}.att.lora_{name}.up.weight", (f"blocks.{{i}}.att.{name}2",), transpose=True),
        )
    ),
    # In layer 0 these belong to nothing: its v is v_first.
    *(TensorMap(None, (f"blocks.0.att.v{part}",)) for part in "012"),
    TensorMap("layers.{i}.att.k_k", ("blocks.{i}.att.k_k",), ones=2, keep_float32=True),
    TensorMap("layers.{i}.att.k_a", ("blocks.{i}.att.k_a",), ones=2, keep_float32=True),
    TensorMap("layers.{i}.att.r_k", ("blocks.{i}.att.r_k",), keep_float32=True),
    *(TensorMap(f"layers.{{i}}.att.{name}.weight", (f"blocks.{{i}}.att.{name}.weight",)) for name in PROJECTIONS),
    TensorMap("layers.{i}.ffn.mix", ("blocks.{i}.ffn.x_k",), ones=2, keep_float32=True),
    TensorMap("layers.{i}.ffn.key.weight", ("blocks.{i}.ffn.key.weight",)),
    TensorMap("layers.{i}.ffn.value.weight", ("blocks.{i}.ffn.value.weight",)),
    TensorMap(None, ("head.weight",)),
)

RWKV_EMB = (
    *PTH,
    *(
        TensorMap(f"heads.{head}.{part}.{kind}", (f"head.{head}_head.{part}.{kind}",))
        for head in HEADS
        for part, kind in (("fc1", "weight"), ("fc2", "weight"), ("norm", "weight"), ("norm", "bias"))
    ),
    # Models that were trained with images too: a text does not meet these.
    TensorMap(None, ("vit.{*}", "proj.{*}")),
)

FLA = (
    TensorMap("embeddings.weight", ("embeddings.weight",)),
    *(
        row
        for part in ("weight", "bias")
        for row in (
            TensorMap(f"embedding_norm.{part}", (f"layers.0.pre_norm.{part}",), keep_float32=True),
            *(
                TensorMap(f"layers.{{i}}.{name}.{part}", (f"layers.{{i}}.{stored}.{part}",), keep_float32=True)
                for name, (_, stored) in NORMS.items()
            ),
            TensorMap(f"layers.{{i}}.att.norm.{part}", (f"layers.{{i}}.attn.g_norm.{part}",), keep_float32=True),
            TensorMap(f"norm.{part}", (f"norm.{part}",), keep_float32=True),
        )
    ),
    *(
        TensorMap(f"layers.{{i}}.att.mix.{name}", (f"layers.{{i}}.attn.x_{name}",), ones=2, keep_float32=True)
        for name in MIXES
    ),
    *(
        TensorMap(
            f"layers.{{i}}.att.mix.{name}",
            ("layers.{i}.attn.x_x",),
            squeeze=0,
            part=(at, len(MIXES)),
            keep_float32=True,
        )
        for at, name in enumerate(MIXES)
    ),
    *(
        row
        for name in "wavg"
        for row in (
            TensorMap(
                f"layers.{{i}}.att.lora_{name}.bias", (f"layers.{{i}}.attn.{name}_lora.lora.2.bias",), keep_float32=True
            ),
            TensorMap(f"layers.{{i}}.att.lora_{name}.down.weight", (f"layers.{{i}}.attn.{name}_lora.lora.0.weight",)),
            TensorMap(f"layers.{{i}}.att.lora_{name}.up.weight", (f"layers.{{i}}.attn.{name}_lora.lora.2.weight",)),
        )
    ),
    TensorMap("layers.{i}.att.k_k", ("layers.{i}.attn.k_k",), keep_float32=True),
    TensorMap("layers.{i}.att.k_a", ("layers.{i}.attn.k_a",), keep_float32=True),
    TensorMap("layers.{i}.att.r_k", ("layers.{i}.attn.r_k",), keep_float32=True),
    *(
        TensorMap(f"layers.{{i}}.att.{name}.weight", (f"layers.{{i}}.attn.{stored}.weight",))
        for name, stored in PROJECTIONS.items()
    ),
    TensorMap("layers.{i}.ffn.mix", ("layers.{i}.ffn.x_k",), keep_float32=True),
    TensorMap("layers.{i}.ffn.key.weight", ("layers.{i}.ffn.key.weight",)),
    TensorMap("layers.{i}.ffn.value.weight", ("layers.{i}.ffn.value.weight",)),
    TensorMap(None, ("lm_head.weight",)),
)


def read_shapes(shapes: Fields) -> RWKV7Config:
    """From the shapes of a `.pth`'s tensors, by name."""
    return _read_shapes(shapes, prefix="", heads=())


def read_emb_shapes(shapes: Fields) -> RWKV7Config:
    """As `read_shapes`, with the heads that are there."""
    return _read_shapes(
        shapes, prefix="rwkv.", heads=tuple(h for h in HEADS if f"head.{h}_head.fc1.weight" in shapes.raw)
    )


def _read_shapes(shapes: Fields, *, prefix: str, heads: tuple[str, ...]) -> RWKV7Config:
    def shape(name: str, rank: int) -> tuple[int, ...]:
        found = shapes.raw.get(prefix + name)
        if found is None or len(found) != rank:
            raise CheckpointError(
                f"{shapes.source}: {prefix}{name} should be a tensor of {rank} axes that gives the model's shape, but "
                + ("is missing" if found is None else f"is {list(found)}")
            )
        return tuple(found)

    numbers = re.compile(rf"{re.escape(prefix)}blocks\.(0|[1-9][0-9]{{0,8}})\.")
    n_layers = 1 + max(int(match[1]) for match in map(numbers.match, shapes.raw) if match)
    vocab_size, d_model = shape("emb.weight", 2)
    n_heads, head_dim = shape("blocks.0.att.r_k", 2)
    if n_heads * head_dim != d_model:
        raise CheckpointError(
            f"{shapes.source}: {prefix}blocks.0.att.r_k is {[n_heads, head_dim]}, but the width is {d_model}"
        )
    return RWKV7Config(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        head_dim=head_dim,
        d_value=shape("blocks.0.att.value.weight", 2)[0],
        d_ffn=shape("blocks.0.ffn.key.weight", 2)[0],
        rank_w=shape("blocks.0.att.w1", 2)[1],
        rank_a=shape("blocks.0.att.a1", 2)[1],
        # A single layer has no use for it.
        rank_v=shape("blocks.1.att.v1", 2)[1] if n_layers > 1 else 1,
        rank_g=shape("blocks.0.att.g1", 2)[1],
        heads=heads,
    )


def read_fla(fields: Fields) -> RWKV7Config:
    """From the config.json of fla's RWKV7; missing keys take the defaults of its config class.

    Knowingly ignored, because they change speed or training only: attn_mode, fuse_norm, fuse_cross_entropy,
    use_l2warp, max_position_embeddings, initializer_range, use_cache, tie_word_embeddings, num_heads beside head_dim.
    """
    fields.require("hidden_act", "sqrelu", ("sqrelu",), "only the squared relu is implemented")
    if fields.raw.get("attn"):
        raise CheckpointError(f"{fields.source}: attn names attention layers; {HYBRID_HINT}")
    d_model, n_layers = fields.integer("hidden_size", 2048), fields.integer("num_hidden_layers", 24)
    if fields.raw.get("head_dim") is None and fields.raw.get("num_heads") is not None:
        head_dim = d_model // fields.integer("num_heads")
    else:
        head_dim = fields.integer("head_dim", 64)
    return RWKV7Config(
        vocab_size=fields.integer("vocab_size", 32000),
        d_model=d_model,
        n_layers=n_layers,
        head_dim=head_dim,
        d_value=_value_width(fields, d_model),
        d_ffn=_ffn_width(fields, d_model),
        rank_w=fields.integer("decay_low_rank_dim", 64),
        rank_a=fields.integer("a_low_rank_dim", 64),
        rank_v=fields.integer("v_low_rank_dim", 16),
        rank_g=fields.integer("gate_low_rank_dim", 128),
        norm_eps=fields.epsilon("norm_eps", 1e-5),
        head_norm_eps=head_dim * fields.epsilon("norm_eps", 1e-5),
        norm_bias=fields.flag("norm_bias", True),
        embedding_norm=fields.flag("norm_first", True),
    )


def _value_width(fields: Fields, d_model: int) -> int:
    """`value_dim` is one number, or one for each layer; different ones could not share v_first."""
    value = fields.raw.get("value_dim")
    listed = value if isinstance(value, list) and value else [value]
    widths = [Fields({"value_dim": each}, fields.source).integer("value_dim", d_model) for each in listed]
    if set(widths) != {widths[0]}:
        raise fields.wrong("value_dim", value, "one width: layers of different width are not supported")
    return widths[0]


def _ffn_width(fields: Fields, d_model: int) -> int:
    if fields.raw.get("intermediate_size") is not None:
        return fields.integer("intermediate_size")
    width = int(d_model * fields.factor("hidden_ratio", 4))
    return -(-width // 32) * 32


def write_fla(config: RWKV7Config) -> dict[str, Any]:
    """The config.json of fla's `RWKV7Model`, for `save_checkpoint`."""
    if config.heads:
        raise InvalidInputError("a model with embedding heads cannot be saved: fla's format has no place for them")
    if not math.isclose(config.head_norm_eps, config.head_dim * config.norm_eps):
        raise InvalidInputError(
            f"fla's format implies head_norm_eps = head_dim × norm_eps = {config.head_dim} × {config.norm_eps:g}, "
            f"but it is {config.head_norm_eps:g}"
        )
    return {
        "architectures": ["RWKV7Model"],
        "model_type": "rwkv7",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "head_dim": config.head_dim,
        "value_dim": [config.d_value] * config.n_layers,
        "intermediate_size": config.d_ffn,
        "decay_low_rank_dim": config.rank_w,
        "a_low_rank_dim": config.rank_a,
        "v_low_rank_dim": config.rank_v,
        "gate_low_rank_dim": config.rank_g,
        "norm_eps": config.norm_eps,
        "norm_bias": config.norm_bias,
        "norm_first": config.embedding_norm,
        "hidden_act": "sqrelu",
        "tie_word_embeddings": False,
    }


def _is_pth(shapes: Mapping[str, Any]) -> bool:
    return "blocks.0.att.r_k" in shapes and "emb.weight" in shapes


def _is_rwkv_emb(shapes: Mapping[str, Any]) -> bool:
    return "rwkv.blocks.0.att.r_k" in shapes and any(name.startswith("head.") for name in shapes)


FORMATS = (
    Format(
        name="rwkv7/fla",
        family="rwkv7",
        config_file="config.json",
        looks_like="config.json with model_type rwkv7",
        recognises=lambda config: config.get("model_type") == "rwkv7",
        read_config=read_fla,
        model_class=RWKV7,
        tensor_maps=FLA,
        # RWKV7Model has no prefix, RWKV7ForCausalLM has `model.`.
        prefixes=("", "model."),
        token_ids=TokenIds(eos=0, bos=0, pad=0),
        write_config=write_fla,
    ),
    Format(
        name="rwkv7/pth",
        family="rwkv7",
        config_file=None,
        looks_like="one .pth with the tensors emb.weight and blocks.0.att.r_k",
        recognises=_is_pth,
        read_config=read_shapes,
        model_class=RWKV7,
        tensor_maps=PTH,
        # The world vocabulary begins with 1; 0 stands between the documents that the models were trained on.
        token_ids=TokenIds(eos=0, bos=0, pad=0),
    ),
    Format(
        name="rwkv7/rwkv-emb",
        family="rwkv7",
        config_file=None,
        looks_like="one .pth with the tensors rwkv.blocks.0.att.r_k and head.*",
        recognises=_is_rwkv_emb,
        read_config=read_emb_shapes,
        model_class=RWKV7,
        tensor_maps=RWKV_EMB,
        prefixes=("rwkv.", ""),
        token_ids=TokenIds(eos=65535, pad=0),
        # One EOS after the text, its hidden vector through the head of the task, which is retrieval unless another is
        # asked for: what the package does. The prompt is that of the authors' evaluation for queries.
        embedding=EmbeddingConfig(
            pooling=LastToken.name,
            head="retr",
            prompts={"query": "Instruct: Given a query, retrieve documents that answer the query\nQuery: "},
        ),
    ),
)
