"""`thalweg info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from thalweg.cli.console import errors_told, stdout, table
from thalweg.cli.options import Debug, Device, DtypeOption, QuantizeOption, Revision
from thalweg.system.words import counted

if TYPE_CHECKING:
    from thalweg.embedder.dtypes import Dtype
    from thalweg.embedder.embedder import Embedder


def info(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Model: folder or hub id 'org/name'.",
            show_default="the model that ships with thalweg",
        ),
    ] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    debug: Debug = False,
) -> None:
    """Show what a model is and how much memory it takes, without downloading its weights.

    Example: thalweg info state-spaces/mamba2-130m
    """
    with errors_told(debug):
        from thalweg.embedder.loading import describe

        embedder = describe(
            model,
            revision=revision,
            device=device,
            dtype=cast("Dtype", dtype.value if dtype else None),
            quantize=quantize.value if quantize else None,
        )
        console = stdout()
        for rows in (_facts(embedder), _memory(embedder)):
            facts = table()
            for name, value in rows:
                facts.add_row(name, value)
            console.print(facts)
            console.print()


def _facts(embedder: Embedder) -> list[tuple[str, str]]:
    from thalweg import kernels
    from thalweg.checkpoints.files import has_weights
    from thalweg.models.quantized import weight_count

    config = embedder.embedding_config
    return [
        ("model", embedder.name),
        ("family", embedder.family),
        ("format", embedder.format),
        ("parameters", f"{weight_count(embedder.model):,}"),
        ("weights in the file", str(embedder.weights_dtype or "not looked at").removeprefix("torch.")),
        ("dimension", f"{embedder.dimension:,}"),
        (
            "pooling",
            config.pooling + (", normalised" if config.normalize else ""),
        ),
        ("similarity", config.similarity),
        ("prompts", ", ".join(f"{name}: {text!r}" for name, text in embedder.prompts.items()) or "none"),
        ("vocabulary", f"{embedder.tokenizer.vocab_size:,}"),
        ("fingerprint", embedder.fingerprint if has_weights(embedder.source) else "known once it is downloaded"),
        *kernels.report(embedder.model.device, embedder.dtype),
        *_quantized(embedder),
    ]


def _quantized(embedder: Embedder) -> list[tuple[str, str]]:
    """How a quantised model is computed on this machine."""
    from thalweg.ops.quantized import missing

    if embedder.quantization is None:
        return []
    if embedder.quantization == "int4":
        return [("quantised", "int4: weights only, products in " + str(embedder.dtype).removeprefix("torch."))]
    lacking = missing()
    products = f"products in float32, slower than without --quantize: {lacking}" if lacking else "products in integers"
    return [("quantised", f"int8: weights and rows, {products}")]


def _memory(embedder: Embedder) -> list[tuple[str, str]]:
    from thalweg.engine.states import nbytes

    plan, schedule = embedder.plan_memory(), embedder.schedule()
    return [
        ("state of one document", _size(nbytes(embedder.model.init_state(1)))),
        (
            "a run takes",
            f"{counted(schedule.max_tokens_per_step, 'token')} per step, "
            f"{counted(schedule.max_in_flight, 'long document')} at a time",
        ),
        ("  weights", _size(plan.weights)),
        ("  states", _size(plan.states)),
        ("  activations", _size(plan.activations)),
        ("  room for holes", _size(plan.room)),
        ("  total", f"{_size(plan.total)}, the same at any length"),
    ]


def _size(n_bytes: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.1f} {unit}"
    return counted(n_bytes, "byte")
