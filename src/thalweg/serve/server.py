"""A server's models, limits and counters, and what begins and ends with it."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar

from starlette.requests import Request

from thalweg.embedder.embedder import Embedder
from thalweg.engine.schedule import Schedule
from thalweg.errors import InvalidInputError
from thalweg.serve.bodies import BodyBudget
from thalweg.serve.errors import RequestError
from thalweg.serve.keys import Keys
from thalweg.serve.logs import log_event
from thalweg.serve.metrics import Metrics
from thalweg.serve.model import ServedModel
from thalweg.serve.sessions import OwnedSessions
from thalweg.serve.settings import Settings

T = TypeVar("T")

TOKENIZERS = 2
"""Threads that tokenise."""

SESSION_THREADS = 16
"""Requests for sessions that wait for the engine or the disk at a time."""

RETRY_WHEN_FULL = 1.0
"""Seconds after which a request may come again where too many are in progress."""


class Server:
    """Made before its event loop runs; its application is made by `make_app`.

    Args:
        embedders: the models by the names under which they are served, the default one first.
        settings: its bounds.
        keys: who may use it.
        aliases: further names of the first model.
        schedule: the bounds of the steps.
        any_host: take requests for any name in the header Host without a key.

    Raises:
        InvalidInputError: two models with the same name, or none.
    """

    def __init__(
        self,
        embedders: Mapping[str, Embedder],
        settings: Settings | None = None,
        keys: Keys | None = None,
        *,
        aliases: Sequence[str] = (),
        schedule: Schedule | None = None,
        any_host: bool = False,
    ) -> None:
        if not embedders:
            raise InvalidInputError("a server needs a model")
        if doubled := set(aliases) & set(embedders):
            raise InvalidInputError(f"the name {min(doubled)!r} is that of another model; give this one another")
        self.settings = settings or Settings()
        self.keys = keys or Keys()
        self._any_host = any_host or bool(self.keys)
        self.metrics = Metrics()
        self.budget = BodyBudget(self.settings.max_body_bytes)
        self.started = int(time.time())
        self.draining = False
        self.n_tokenizers = TOKENIZERS
        self.uploads = 0  # streamed bodies under way
        self._in_progress = 0
        self._pool = ThreadPoolExecutor(TOKENIZERS, "thalweg-tokens")
        self._session_pool = ThreadPoolExecutor(SESSION_THREADS, "thalweg-sessions")
        self.upload_pool = ThreadPoolExecutor(2 * self.settings.max_streams, "thalweg-upload")
        bounds = schedule or Schedule()
        self._models: dict[str, ServedModel] = {}
        self._sessions: dict[str, OwnedSessions] = {}
        for number, (name, embedder) in enumerate(embedders.items()):
            served = ServedModel(
                embedder,
                [name, *(aliases if number == 0 else ())],
                self.settings,
                self._pool,
                schedule=bounds,
                on_embedded=self.metrics.embedded,
                on_step=functools.partial(self.metrics.step, name, bounds.max_tokens_per_step),
            )
            self._models |= dict.fromkeys(served.names, served)
            self._sessions[name] = OwnedSessions(served, self.settings, self._session_pool)
        self.metrics.watch(self.models, self._sessions)

    @property
    def names(self) -> list[str]:
        """All names of all models."""
        return list(self._models)

    @property
    def models(self) -> list[ServedModel]:
        """The models, the default one first."""
        return list(dict.fromkeys(self._models.values()))

    def model(self, name: str | None) -> ServedModel:
        """The model of this name; None: the default one.

        Raises:
            RequestError: 404.
        """
        if name is None:
            return self.models[0]
        if name not in self._models:
            names = ", ".join(map(repr, self._models))
            raise RequestError("unknown_model", f"there is no model {name[:200]!r}, but {names}", param="model")
        return self._models[name]

    def sessions(self, model: ServedModel) -> OwnedSessions:
        """The sessions of a model."""
        return self._sessions[model.name]

    async def in_session_pool(self, work: Callable[[], T]) -> T:
        """Do what waits for an engine."""
        return await asyncio.get_running_loop().run_in_executor(self._session_pool, work)

    def client(self, owner: str, request: Request) -> str:
        """Among whom the models are shared: several keys, or else addresses."""
        if len(self.keys) > 1:
            return f"key {owner}"
        return f"address {request.client.host if request.client else ''}"

    def check_host(self, host: str) -> None:
        """A page of another site can have a browser on this machine ask this server, under the site's own name, and
        read the answer; where no key is needed, only addresses and "localhost" are taken for the server's name.

        Raises:
            RequestError: 403.
        """
        if self._any_host:
            return
        name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        if name.lower() in ("", "localhost"):
            return
        try:
            ipaddress.ip_address(name)
        except ValueError:
            raise RequestError(
                "invalid",
                f"without an API key this server answers to addresses and to localhost only, not to {name[:80]!r}: "
                "give it a key, or say --insecure",
                status=403,
            ) from None

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A request in progress.

        Raises:
            RequestError: 429, there are too many; 503, the server ends.
        """
        if self._in_progress >= self.settings.max_concurrent_requests:
            raise RequestError(
                "overloaded",
                f"{self._in_progress} requests are in progress, as many as this server takes; try again soon",
                retry_after=RETRY_WHEN_FULL,
            )
        self._in_progress += 1
        try:
            yield
        finally:
            self._in_progress -= 1

    @contextmanager
    def upload(self) -> Iterator[None]:
        """A streamed body under way.

        Raises:
            RequestError: 429, there are too many.
        """
        if self.uploads >= self.settings.max_streams:
            raise RequestError(
                "overloaded",
                f"{self.uploads} bodies are being streamed, as many as this server takes; try again later",
                retry_after=RETRY_WHEN_FULL,
            )
        self.uploads += 1
        try:
            yield
        finally:
            self.uploads -= 1

    def check_health(self) -> None:
        """Raises RequestError: 503, an engine has ended."""
        for model in self.models:
            if not model.thread.is_alive:
                raise RequestError("unavailable", f"the engine of {model.name} has ended; start the server again")

    def check_ready(self) -> None:
        """Raises RequestError: 503, no requests are taken in."""
        self.check_health()
        if self.draining:
            raise RequestError("unavailable", "the server ends")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """What goes on while the server runs."""
        keeper = asyncio.ensure_future(self._keep_house())
        log_event("ready", models=[model.name for model in self.models])
        try:
            yield
        finally:
            keeper.cancel()
            with suppress(asyncio.CancelledError):
                await keeper

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(min(60.0, self.settings.session_ttl / 4))
            for name, sessions in self._sessions.items():
                if count := sessions.expire():
                    log_event("sessions expired", model=name, count=count)

    def close(self) -> None:
        """End all threads; what is under way fails."""
        for model in self.models:
            model.close()
        for pool in (self._pool, self._session_pool, self.upload_pool):
            pool.shutdown(wait=False, cancel_futures=True)
