"""Sessions of clients: each belongs to the key that began it, and is forgotten when nobody uses it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from thalweg.embedder.results import Embedding
from thalweg.embedder.sections import Sections
from thalweg.embedder.sessions.memory import SessionMemory
from thalweg.embedder.sessions.session import Session
from thalweg.embedder.sessions.sessions import Sessions
from thalweg.errors import InvalidInputError
from thalweg.pooling.vectors import FloatArray
from thalweg.serve.errors import RequestError
from thalweg.serve.model import ServedModel, ThreadedEmbedder, Wish
from thalweg.serve.settings import Settings

T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
"""Names of saved sessions; they are names of files."""

_SUFFIX = ".session"


@dataclass(eq=False)
class Held:
    """A session of a client. used: when it was, in seconds of the clock; lock: held by the request that uses it."""

    id: str
    owner: str
    session: Session
    used: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class OwnedSessions:
    """The sessions of one model, in one event loop.

    Args:
        served: the model.
        settings: of the server.
        pool: for work that waits for the engine or the disk.
        clock: in seconds.
    """

    def __init__(
        self, served: ServedModel, settings: Settings, pool: Executor, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._served = served
        self._settings = settings
        self._pool = pool
        self._clock = clock
        self._memory = SessionMemory(settings.session_memory)
        self._held: dict[str, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Bytes of those in memory."""
        return self._memory.nbytes

    def of(self, owner: str) -> list[Held]:
        """The sessions of an owner."""
        return [held for held in self._held.values() if held.owner == owner]

    def has(self, owner: str, id: str) -> bool:
        """Whether there is such a session of this owner."""
        return id in self._held and self._held[id].owner == owner

    def get(self, owner: str, id: str) -> Held:
        """Raises RequestError: there is none, or it is somebody else's."""
        if not self.has(owner, id):
            raise RequestError("not_found", "there is no such session; it may have expired")
        return self._held[id]

    def expires_in(self, held: Held) -> float:
        """Seconds after which it is deleted, if nobody uses it."""
        return max(0.0, held.used + self._settings.session_ttl - self._clock())

    def expire(self) -> int:
        """Delete those that nobody has used for long; how many."""
        old = [held for held in self._held.values() if not self.expires_in(held) and not held.lock.locked()]
        for held in old:
            del self._held[held.id]
        return len(old)

    async def begin(self, owner: str, wish: Wish, sections: Sections | None) -> Held:
        """A session of which nothing is known but its prompt.

        sections: how it is cut, if at all.
        """
        self._check_quota(owner)
        embedder = self._served.embedder
        settings = embedder.session_settings(wish.normalize, wish.dimensions, None, None, sections)
        return self._keep(owner, await self._run(lambda: self._sessions(owner).begin(wish.prompt, settings)))

    async def append(self, held: Held, piece: str | bytes) -> list[Embedding]:
        """Read on; with the errors of `Session.append`. The sections that have ended, which are forgotten."""

        def append() -> list[Embedding]:
            held.session.append(piece)
            return [] if held.session.settings.sections is None else held.session.take_sections()

        return await self._use(held, append)

    async def sections(self, held: Held) -> list[Embedding]:
        """Those that have not ended, as if the text ended here."""
        return await self._use(held, held.session.sections)

    async def vector(self, held: Held) -> tuple[int, FloatArray]:
        """The tokens and the vector of the text as if it ended here."""
        return await self._use(held, lambda: (held.session.tokens, held.session.vector()))

    async def tokens(self, held: Held) -> int | None:
        """The tokens of the text; None while it ends inside a character."""

        def count() -> int | None:
            with contextlib.suppress(ValueError):
                return held.session.tokens
            return None

        return await self._use(held, count)

    async def fork(self, held: Held) -> Held:
        """Another session at the same point."""
        self._check_quota(held.owner)
        return self._keep(held.owner, await self._use(held, held.session.fork))

    def delete(self, held: Held) -> None:
        """Forget a session."""
        self._held.pop(held.id, None)

    # -- saved ones --------------------------------------------------------------------------------------------------

    async def save(self, held: Held, name: str) -> None:
        """Write it to a file that survives the server."""
        path = self._path(held.owner, name)

        def write() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() and len(self._saved(held.owner)) >= self._settings.max_sessions:
                raise RequestError(
                    "conflict", f"this key has {self._settings.max_sessions} saved sessions; delete some of them first"
                )
            held.session.save(path)

        await self._use(held, write)

    async def restore(self, owner: str, name: str) -> Held:
        """The session that was saved under a name. The file stays."""
        self._check_quota(owner)
        path = self._path(owner, name)

        def read() -> Session:
            if not path.is_file():
                raise RequestError("not_found", f"there is no saved session {name!r}")
            try:
                return self._sessions(owner).restore(
                    path, self._served.embedder.saved_session_settings, same_numeric_path=True
                )
            except InvalidInputError as error:
                raise InvalidInputError(str(error).replace(str(path), f"the saved session {name!r}")) from None

        return self._keep(owner, await self._run(read))

    async def saved(self, owner: str) -> list[str]:
        """The names of an owner's saved sessions."""
        self._folder(owner)
        return await self._run(lambda: self._saved(owner))

    async def delete_saved(self, owner: str, name: str) -> None:
        """Remove a saved session."""
        path = self._path(owner, name)

        def remove() -> None:
            try:
                path.unlink()
            except FileNotFoundError:
                raise RequestError("not_found", f"there is no saved session {name!r}") from None

        await self._run(remove)

    def _saved(self, owner: str) -> list[str]:
        return sorted(path.name.removesuffix(_SUFFIX) for path in self._folder(owner).glob(f"*{_SUFFIX}"))

    def _folder(self, owner: str) -> Path:
        """An owner's own folder, whatever the owner is called and whether or not the disk tells capitals apart."""
        if self._settings.session_folder is None:
            raise RequestError("invalid", "this server saves no sessions: start it with --session-folder FOLDER")
        return self._settings.session_folder / (hashlib.sha256(owner.encode()).hexdigest()[:32] if owner else "all")

    def _path(self, owner: str, name: str) -> Path:
        folder = self._folder(owner)
        if not NAME.fullmatch(name):
            raise RequestError(
                "invalid",
                f"the name {name[:80]!r} cannot be used; take up to 100 letters, digits, '_', '.' and '-', a letter or "
                "digit first",
                param="name",
            )
        return folder / f"{name}{_SUFFIX}"

    # -- ours --------------------------------------------------------------------------------------------------------

    def _sessions(self, owner: str) -> Sessions:
        return Sessions(ThreadedEmbedder(self._served, ("session", owner)), self._memory)

    def _check_quota(self, owner: str) -> None:
        self.expire()
        if len(self.of(owner)) >= self._settings.max_sessions:
            raise RequestError(
                "conflict", f"this key has {self._settings.max_sessions} sessions; delete some of them first"
            )

    def _keep(self, owner: str, session: Session) -> Held:
        held = Held(secrets.token_urlsafe(16), owner, session, self._clock())
        self._held[held.id] = held
        return held

    async def _use(self, held: Held, work: Callable[[], T]) -> T:
        async with held.lock:
            self.get(held.owner, held.id)  # it may have been deleted while this waited
            try:
                return await self._run(work)
            finally:
                held.used = self._clock()

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except OSError as error:
            raise RequestError(
                "backend", f"the disk of the server failed ({error.strerror or type(error).__name__})", status=507
            ) from error
