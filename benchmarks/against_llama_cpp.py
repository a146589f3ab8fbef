"""Tokens per second beside llama.cpp, in turns, on the same random weights in GGUF files that are written here.

Mamba2 (24 x 768) and RWKV-7 (12 x 768), one document, its last token's vector, as many threads on both sides; also the
cosine between the two vectors. Optional: nothing else needs what it imports, `gguf` and `llama-cpp-python`, which is
best built from its sources, for the instructions of the machine:

    CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" pip install --no-binary llama-cpp-python llama-cpp-python gguf
    python benchmarks/against_llama_cpp.py [--family mamba2] [--tokens 2048] [--types F32 BF16 Q8_0]
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
from torch import Tensor

from common import report
from thalweg.bench.meter import seconds, spread
from thalweg.bench.shapes import SHAPES
from thalweg.bench.weights import recurrent_model
from thalweg.engine.schedule import Schedule
from throughput import ours

MICRO_BATCH = 512
"""Tokens that llama.cpp computes at a time; its default."""
TYPES = {"F32": ("float32",), "BF16": ("bfloat16", "float32"), "Q8_0": ("bfloat16", "float32")}
"""llama.cpp's type of the matrices, and what we compute in beside it; the first is also the dtype of our weights.
bfloat16 is slow where a machine has no instructions for it."""


def mamba2_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a Mamba2 by llama.cpp's names."""
    yield "token_embd.weight", model.embeddings.weight
    yield "output_norm.weight", model.norm.weight
    for i, layer in enumerate(model.layers):
        mixer = layer.mixer
        yield f"blk.{i}.attn_norm.weight", layer.norm.weight
        yield f"blk.{i}.ssm_in.weight", mixer.in_proj.weight
        yield f"blk.{i}.ssm_conv1d.weight", mixer.conv.weight
        yield f"blk.{i}.ssm_conv1d.bias", mixer.conv.bias
        yield f"blk.{i}.ssm_dt.bias", mixer.dt_bias
        yield f"blk.{i}.ssm_a", -mixer.A_log.exp()[:, None]
        yield f"blk.{i}.ssm_d", mixer.D[:, None]
        yield f"blk.{i}.ssm_norm.weight", mixer.norm.weight.unflatten(0, (mixer.norm.groups, -1))
        yield f"blk.{i}.ssm_out.weight", mixer.out_proj.weight


def rwkv7_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors of an RWKV-7 by llama.cpp's names."""
    yield "token_embd.weight", model.embeddings.weight
    yield "output.weight", torch.zeros_like(model.embeddings.weight)
    for part in ("weight", "bias"):
        yield f"token_embd_norm.{part}", getattr(model.embedding_norm, part)
        yield f"output_norm.{part}", getattr(model.norm, part)
    for i, layer in enumerate(model.layers):
        att, ffn = layer.att, layer.ffn
        for part in ("weight", "bias"):
            yield f"blk.{i}.attn_norm.{part}", getattr(layer.att_norm, part)
            yield f"blk.{i}.attn_norm_2.{part}", getattr(layer.ffn_norm, part)
            yield f"blk.{i}.time_mix_ln.{part}", getattr(att.norm, part)
        mixes = torch.stack([att.mix[name] for name in "rwkvag"])
        yield f"blk.{i}.time_mix_lerp_fused.weight", mixes[:, None, None]
        for name in "wavg":
            low_rank = getattr(att, f"lora_{name}") or att.lora_a  # layer 0 has no v; something must be there
            if low_rank.bias is not None:
                yield f"blk.{i}.time_mix_{name}0.weight", low_rank.bias
            yield f"blk.{i}.time_mix_{name}1.weight", low_rank.down.weight
            yield f"blk.{i}.time_mix_{name}2.weight", low_rank.up.weight
        for name in ("k_k", "k_a", "r_k"):
            yield f"blk.{i}.time_mix_{name}.weight", getattr(att, name).flatten()
        for name in ("key", "value", "receptance", "output"):
            yield f"blk.{i}.time_mix_{name}.weight", getattr(att, name).weight
        yield f"blk.{i}.channel_mix_lerp_k.weight", ffn.mix[None, None]
        yield f"blk.{i}.channel_mix_key.weight", ffn.key.weight
        yield f"blk.{i}.channel_mix_value.weight", ffn.value.weight


def write_mamba2_fields(writer: gguf.GGUFWriter, c: Any) -> None:
    writer.add_feed_forward_length(0)
    writer.add_ssm_conv_kernel(c.d_conv)
    writer.add_ssm_inner_size(c.d_inner)
    writer.add_ssm_state_size(c.d_state)
    writer.add_ssm_time_step_rank(c.n_heads)
    writer.add_ssm_group_count(c.n_groups)
    writer.add_layer_norm_rms_eps(c.norm_eps)


def write_rwkv7_fields(writer: gguf.GGUFWriter, c: Any) -> None:
    writer.add_layer_norm_eps(c.norm_eps)
    writer.add_wkv_head_size(c.head_dim)
    writer.add_decay_lora_rank(c.rank_w)
    writer.add_iclr_lora_rank(c.rank_a)
    writer.add_value_residual_mix_lora_rank(c.rank_v)
    writer.add_gate_lora_rank(c.rank_g)
    writer.add_feed_forward_length(c.d_ffn)


FAMILIES: dict[str, tuple[str, Callable[..., None], Callable[..., Iterator[tuple[str, Tensor]]]]] = {
    "mamba2": ("mamba2-130m", write_mamba2_fields, mamba2_tensors),
    "rwkv7": ("rwkv7-0.1b", write_rwkv7_fields, rwkv7_tensors),
}
MATRICES = (
    "ssm_in",
    "ssm_out",
    "time_mix_key",
    "time_mix_value",
    "time_mix_receptance",
    "time_mix_output",
    "channel_mix_",
)
"""What is stored in the file's type; all else, embeddings among it, in float32."""


def write(model: Any, family: str, kind: str, path: Path) -> None:
    """The model as a GGUF file without a tokenizer."""
    _, write_fields, tensors = FAMILIES[family]
    c = model.config
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(c.d_model)
    writer.add_block_count(c.n_layers)
    writer.add_head_count(0)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("none")
    write_fields(writer, c)
    for name, tensor in tensors(model):
        values = tensor.detach().float().contiguous().numpy()
        matrix = values.ndim == 2 and name.endswith(".weight") and any(part in name for part in MATRICES)
        stored = gguf.GGMLQuantizationType[kind if matrix else "F32"]
        writer.add_tensor(name, gguf.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def theirs(path: Path, ids: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """One document through llama.cpp: the vector of its last token, and of no other."""
    lib = llama_cpp.llama_cpp
    settings = lib.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), settings)
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = len(ids) + 8, MICRO_BATCH, MICRO_BATCH, 1
    params.n_threads = params.n_threads_batch = threads
    params.embeddings, params.pooling_type = True, lib.LLAMA_POOLING_TYPE_NONE
    context = lib.llama_init_from_model(model, params)
    batch = lib.llama_batch_init(MICRO_BATCH, 0, 1)
    width = lib.llama_model_n_embd(model)

    def run() -> np.ndarray:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        for start in range(0, len(ids), MICRO_BATCH):
            part = ids[start : start + MICRO_BATCH].tolist()
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
                batch.logits[i] = start + i == len(ids) - 1
            if lib.llama_decode(context, batch) != 0:
                raise RuntimeError(f"llama.cpp failed at token {start}")
        return np.ctypeslib.as_array(lib.llama_get_embeddings_ith(context, -1), (width,)).copy()

    return run


@llama_cpp.llama_log_callback
def quiet(level: int, text: bytes, data: Any) -> None:
    """llama.cpp's log, dropped."""


def measure(family: str, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    name, dtypes = FAMILIES[family][0], TYPES[kind]
    model = recurrent_model(SHAPES[name], getattr(torch, dtypes[0]), vocabulary=args.vocabulary)
    ids = np.random.default_rng(0).integers(0, args.vocabulary, args.tokens)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write(model, family, kind, path)
        peer = theirs(path, ids, torch.get_num_threads())
        models = {dtype: copy.deepcopy(model).to(getattr(torch, dtype)) for dtype in dtypes}
        runs = {dtype: ours(each, [ids], Schedule().vertical_chunk_size) for dtype, each in models.items()}
        vector, vectors = peer(), {dtype: run() for dtype, run in runs.items()}
        turns = [(seconds(peer), {dtype: seconds(run) for dtype, run in runs.items()}) for _ in range(args.repeat)]
    found: dict[str, Any] = {"theirs": spread([args.tokens / taken for taken, _ in turns])}
    for dtype in dtypes:
        found[dtype] = {
            "tokens_per_s": spread([args.tokens / own[dtype] for _, own in turns]),
            "ours_over_theirs": spread([taken / own[dtype] for taken, own in turns]),
            "cosine": cosine(vector, vectors[dtype]),
        }
        print(
            f"{family}: {found[dtype]['tokens_per_s']['median']:,.0f} tokens/s of ours in {dtype}, "
            f"{found['theirs']['median']:,.0f} of llama.cpp in {kind}, "
            f"{found[dtype]['ours_over_theirs']['median']:.2f} times, cosine {found[dtype]['cosine']:.6f}",
            flush=True,
        )
    return found


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(FAMILIES), default="mamba2")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=4096, help="of the random model: rows of its embeddings")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--types", nargs="+", choices=list(TYPES), default=["F32", "BF16", "Q8_0"])
    args = parser.parse_args()
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    result: dict[str, Any] = {"family": args.family, "tokens": args.tokens, "llama_cpp": llama_cpp.__version__}
    for kind in args.types:
        result[kind] = measure(args.family, kind, args)
    report(f"against_llama_cpp-{args.family}", result)


if __name__ == "__main__":
    main()
