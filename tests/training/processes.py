"""`thalweg train` in processes of its own, which may be killed, or several of which train together."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path


def forkserver() -> ForkServerContext:
    """Processes that need not import torch and sentence-transformers each time; in all else they are like any other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["thalweg.training.run", "thalweg.cli.app", __name__])
    return context


def start(
    context: ForkServerContext,
    arguments: list[object],
    *,
    environment: dict[str, str] | None = None,
    gradients: Path | None = None,
) -> BaseProcess:
    """`thalweg train` with these arguments. gradients: a file for those of the first step."""
    texts = [str(argument) for argument in arguments]
    process = context.Process(target=_command, args=(texts, environment or {}, gradients))
    process.start()
    return process


def _command(arguments: list[str], environment: dict[str, str], gradients: Path | None) -> None:
    import torch

    from thalweg.cli.app import app

    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w") if gradients is None else sys.stderr  # noqa: SIM115
    if gradients is not None:
        keep_gradients(gradients)
    app(["train", *arguments])


def keep_gradients(path: Path) -> None:
    """Have the trainer write the gradients of its first step, as the optimizer gets them."""
    import torch
    from transformers import TrainerCallback

    from thalweg.training import run

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args: object, state: object, control: object, **things: object) -> None:
            if not path.exists():
                named = things["model"].named_parameters()  # type: ignore[attr-defined]
                torch.save({name: parameter.grad.clone() for name, parameter in named if parameter.requires_grad}, path)

    class Keeping(run.Trainer):
        def __init__(self, **settings: object) -> None:
            super().__init__(**settings)  # type: ignore[arg-type]
            if self.args.process_index == 0:
                self.add_callback(Keep())

    run.Trainer = Keeping  # type: ignore[misc]


def together(n: int) -> list[dict[str, str]]:
    """The environments of `n` processes that train together, as a launcher makes them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n)]
