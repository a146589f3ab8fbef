"""What the embedders for LangChain, LlamaIndex and Haystack have in common.

A model is loaded once per process for the same arguments. Calls that run at the same time, from any threads, share one
engine, and so the memory that was planned: a query leaves with the next step, however long a text is beside it.
Coroutines hand their texts to threads of the model's own, so that they block neither the event loop nor the threads
that others share; a call that is cancelled stops at the next step.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from thalweg.errors import InvalidInputError, MissingExtraError
from thalweg.system.cached import cached_property

WITHOUT_EFFECT = ("batch_size", "trust_remote_code")
"""Options of sentence-transformers that are taken and do nothing: texts are packed by tokens, and no code of a model's
repository is ever run."""


WORKERS = 64
"""Calls of coroutines that are under way at the same time; others wait for one of them to end."""

Result = TypeVar("Result")


@contextmanager
def needs_extra(extra: str, package: str) -> Iterator[None]:
    """Turn the absence of `package`, imported in this context, into the pip command of the extra that brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise MissingExtraError(f"{package} is not installed: pip install 'thalweg[{extra}]'") from error


def plain(value: Any) -> Any:
    """`value` with what no JSON can hold (paths, dtypes, devices) by name, in mappings too."""
    import torch

    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    return value


def without_token(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` as they may be shown or written."""
    return {name: value for name, value in options.items() if name != "token"}


def check_load_options(options: Mapping[str, Any]) -> None:
    """Raises InvalidInputError for what `thalweg.load` does not take."""
    _check("model_kwargs", options, _load_options(), {"encode_kwargs": _encode_options()})


def check_encode_options(options: Mapping[str, Any], where: str = "encode_kwargs") -> None:
    """Raises InvalidInputError for what `Embedder.encode` does not take; `where` names the options in the message."""
    _check(where, options, _encode_options(), {"model_kwargs": _load_options()})


def shared_model(name: str, **options: Any) -> SharedModel:
    """The model that `thalweg.load(name, **options)` gives, or the same one again while somebody still uses it.

    `name` may be that of the shipped model. A local folder that has changed since is loaded anew.
    """
    options = {key: value for key, value in options.items() if value is not None and key not in WITHOUT_EFFECT}
    key = repr((name, sorted(options.items()), _version(Path(name).expanduser())))
    with _loading:
        model = _models.get(key)
        if model is None:
            model = _models[key] = SharedModel(name, options)
        return model


class SharedModel:
    """A loaded model for any number of threads and event loops. Made by `shared_model`.

    Copies are the same object, and a pickle holds the arguments only: the model is loaded where it is unpickled.
    """

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        from thalweg.embedder.loading import load

        self._arguments = name, options
        self.embedder = load(name, **options)

    def embed_query(self, text: str, options: Mapping[str, Any]) -> list[float]:
        """The vector of a query, with the model's prompt for queries unless `options` (of `encode`) name another."""
        if not isinstance(text, str):
            raise InvalidInputError(f"a query must be a str, not {type(text).__name__}: {text!r:.80}")
        vector: list[float] = self.embedder.encode_query(text, **effective(options)).tolist()
        return vector

    def embed_documents(self, texts: Iterable[str], options: Mapping[str, Any]) -> list[list[float]]:
        """The vectors of documents, with the model's prompt for documents unless `options` name another."""
        vectors: list[list[float]] = self.embedder.encode_document(listed(texts), **effective(options)).tolist()
        return vectors

    async def aembed_query(self, text: str, options: Mapping[str, Any]) -> list[float]:
        """`embed_query` in a thread of the model's; a call that is cancelled stops at the next step."""
        return await self.in_thread(self.embed_query, text, options)

    async def aembed_documents(self, texts: Iterable[str], options: Mapping[str, Any]) -> list[list[float]]:
        """`embed_documents` in a thread of the model's; a call that is cancelled stops at the next step."""
        return await self.in_thread(self.embed_documents, texts, options)

    async def in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What `function` returns, run in a thread of the model's; a call that is cancelled stops at the next step."""
        from thalweg.embedder.cancelling import stoppable

        cancelled = threading.Event()
        call = functools.partial(stoppable, cancelled, function, *arguments)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._workers, call)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    @cached_property
    def _workers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=WORKERS, thread_name_prefix="thalweg")

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedModel:
        return self

    def __copy__(self) -> SharedModel:
        return self

    def __reduce__(self) -> tuple[Callable[..., SharedModel], tuple[Any, ...]]:
        name, options = self._arguments
        return functools.partial(shared_model, **options), (name,)


_models: WeakValueDictionary[str, SharedModel] = WeakValueDictionary()
_loading = threading.Lock()


def listed(texts: Any) -> list[Any]:
    """`texts` as a list. Raises InvalidInputError for a single text and for what is no iterable."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise InvalidInputError(f"texts must be a list of str, not {type(texts).__name__}: {texts!r:.80}")
    return list(texts)


def effective(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` without those that have no effect."""
    return {key: value for key, value in options.items() if key not in WITHOUT_EFFECT}


def _version(path: Path) -> list[tuple[str, int, int]]:
    """What changes when the files of a local model do; empty for a hub id."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    stats = [(str(file.resolve()), file.stat()) for file in files if file.is_file()]
    return [(file, stat.st_mtime_ns, stat.st_size) for file, stat in stats]


def _check(where: str, options: Mapping[str, Any], known: frozenset[str], elsewhere: dict[str, frozenset[str]]) -> None:
    for option in options:
        if option in known or option in WITHOUT_EFFECT:
            continue
        place = next((f"; it belongs in {name}" for name, others in elsewhere.items() if option in others), "")
        raise InvalidInputError(f"{where} has no option {option!r}{place or '; its options: ' + _listing(known)}")


def _listing(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


@functools.cache
def _load_options() -> frozenset[str]:
    from thalweg.embedder.loading import load

    return frozenset(inspect.signature(load).parameters) - {"name_or_path"}


@functools.cache
def _encode_options() -> frozenset[str]:
    from thalweg.embedder.embedder import Embedder

    # Where the model is, and what comes back, is not each call's to say here.
    return frozenset(inspect.signature(Embedder.encode).parameters) - {"self", "texts", "device", "convert_to_tensor"}
