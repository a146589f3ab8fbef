"""The bounds of a server."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path

from thalweg.checks import whole_number
from thalweg.errors import InvalidInputError


@dataclass(frozen=True)
class Settings:
    """What a server allows. Counts and bytes are whole numbers, times are seconds.

    Args:
        max_concurrent_requests: requests in progress; further ones get 429.
        max_client_batch_size: texts of one request; more get 413.
        payload_limit: bytes of a body that is held whole, and of a line of a streamed one; more get 413.
        max_body_bytes: bytes of all bodies and answers held at a time; where they do not fit, requests get 429.
        max_queued_tokens, max_queued_texts: what may wait for the model; a request that does not fit waits itself.
        max_wait: how long such a request waits before it gets 429.
        request_timeout: after which a request that is not streamed gets 504; clients may ask for less.
        header_timeout: for the headers of a request to arrive.
        body_timeout: for a body that is held whole, and between two pieces of a streamed one.
        max_streams: streamed uploads at a time.
        max_sessions: sessions of one key at a time, and its saved ones.
        session_ttl: after which a session that nobody used is deleted.
        session_memory: bytes of sessions in memory; others wait on disk.
        session_folder: where saved sessions are; None: sessions cannot be saved.
        prefix_memory: bytes of the states of prefixes.
        cors_allow_origin: origins whose pages may use the server.

    Raises:
        InvalidInputError: a bound that cannot be.
    """

    max_concurrent_requests: int = 512
    max_client_batch_size: int = 2048
    payload_limit: int = 32 << 20
    max_body_bytes: int = 256 << 20
    max_queued_tokens: int = 1 << 22
    max_queued_texts: int = 1 << 14
    max_wait: float = 10.0
    request_timeout: float = 600.0
    header_timeout: float = 10.0
    body_timeout: float = 60.0
    max_streams: int = 64
    max_sessions: int = 1000
    session_ttl: float = 3600.0
    session_memory: int = 128 << 20
    session_folder: Path | None = None
    prefix_memory: int = 128 << 20
    cors_allow_origin: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type == "int":
                whole_number(each.name, value, least=0 if each.name in ("prefix_memory", "session_memory") else 1)
            elif each.type == "float" and not 0 < value < math.inf:
                raise InvalidInputError(f"{each.name} must be a number of seconds above 0, got {value!r}")
        if self.payload_limit > self.max_body_bytes:
            raise InvalidInputError(
                f"payload_limit={self.payload_limit} is above max_body_bytes={self.max_body_bytes}: such a body would "
                "never be taken in"
            )
