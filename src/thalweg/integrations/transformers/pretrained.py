"""`from_pretrained` of the models of `modeling.py`: thalweg's own loader behind the arguments of transformers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch

from thalweg.checkpoints import Checkpoint, load_checkpoint, resolve, stated_dtype
from thalweg.checkpoints.fields import Fields
from thalweg.checkpoints.formats import format_to_write
from thalweg.errors import InvalidInputError

WITHOUT_MEANING = frozenset(
    {
        "_from_auto",
        "adapter_kwargs",
        "attn_implementation",
        "force_download",
        "low_cpu_mem_usage",
        "proxies",
        "trust_remote_code",
        "use_safetensors",
        "weights_only",
    }
)
"""Arguments that change nothing here: there is no attention, no code of a checkpoint is run, and only tensors are read,
one by one, from whatever file there is."""


def load(
    model_class: type[Any],
    models: Mapping[str, type[Any]],
    name: Any,
    *args: Any,
    config: Any = None,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    **others: Any,
) -> Any:
    """See `ThalwegModel.from_pretrained`. `models`: the class of each `model_type`."""
    unknown = sorted(key for key in others.keys() - WITHOUT_MEANING if others[key] is not None)
    if unknown or args:
        named = ", ".join(unknown) or repr(args)
        raise InvalidInputError(f"{model_class.__name__}.from_pretrained has no use for {named}; leave it out")
    source = _resolve(name, subfolder, revision, token, cache_dir, local_files_only)
    asked = dtype if dtype is not None else torch_dtype
    checkpoint = load_checkpoint(source, dtype=_dtype(asked, config, source), device=_device(device_map))
    found, written = _class_of(checkpoint, models)
    if not issubclass(found, model_class):
        raise InvalidInputError(f"{name} holds a {found.__name__}, not a {model_class.__name__}; use ThalwegModel")
    if config is None:
        assert found.config_class is not None
        ids = {f"{kind}_token_id": getattr(checkpoint, f"{kind}_token_id") for kind in ("eos", "bos", "pad")}
        config = found.config_class(**written, **ids)
    else:
        _check(config, found, checkpoint)
    config.name_or_path = str(name)
    model = found(config, stack=checkpoint.model.requires_grad_(True))
    config.dtype = model.dtype
    return model.train(False)


def _resolve(
    name: Any,
    subfolder: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    text = os.fspath(name)
    if Path(text).expanduser().exists():
        return resolve(Path(text) / subfolder if subfolder else text)  # a local folder has no revisions
    if subfolder:
        raise InvalidInputError(f"subfolder={subfolder!r} is possible in local folders only; download {text} first")
    return resolve(text, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only or None)


def _class_of(checkpoint: Checkpoint, models: Mapping[str, type[Any]]) -> tuple[type[Any], dict[str, Any]]:
    """The class of a checkpoint and the keys of its config."""
    if getattr(checkpoint.config, "heads", ()):
        raise InvalidInputError(
            f"{checkpoint.source} has embedding heads, which work on vectors of whole texts; use thalweg.load"
        )
    format = format_to_write(checkpoint.model)
    assert format.write_config is not None
    written = format.write_config(checkpoint.config)
    return models[written.pop("model_type")], written


def _check(config: Any, model_class: type[Any], checkpoint: Checkpoint) -> None:
    """A config that was changed after it was read would be ignored otherwise."""
    asked = model_class.format.read_config(Fields(config.to_dict(), type(config).__name__))
    stored = checkpoint.config
    names = [field.name for field in fields(stored) if getattr(asked, field.name) != getattr(stored, field.name)]
    if names:
        told = ", ".join(f"{name}={getattr(asked, name)!r} instead of {getattr(stored, name)!r}" for name in names)
        raise InvalidInputError(f"config does not describe {checkpoint.source}: {told}")


def _dtype(asked: torch.dtype | str | None, config: Any, source: Path) -> torch.dtype | Literal["auto"]:
    if asked is None or asked == "auto":
        asked = getattr(config, "dtype", None) or stated_dtype(source) or "auto"
    if asked == "auto":
        return "auto"
    named = getattr(torch, asked.removeprefix("torch."), None) if isinstance(asked, str) else asked
    if not isinstance(named, torch.dtype):
        raise InvalidInputError(f"dtype must be 'auto' or one of torch, not {asked!r}")
    return named


def _device(device_map: Any) -> torch.device:
    """Device of the whole model, which is never spread over several."""
    if isinstance(device_map, dict) and list(device_map) == [""]:
        device_map = device_map[""]
    if device_map == "auto":
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    if not isinstance(device_map, (str, int, torch.device, type(None))):
        raise InvalidInputError(f"device_map must be one device for the whole model, not {device_map!r}")
    try:
        return torch.device("cpu" if device_map is None else device_map)
    except RuntimeError as error:
        raise InvalidInputError(f"device_map must be a device or 'auto', not {device_map!r}") from error
