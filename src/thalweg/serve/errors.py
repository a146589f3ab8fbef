"""What goes wrong with a request, in the words of each interface."""

from __future__ import annotations

import math
from typing import Any, Literal

import orjson
from starlette.responses import Response

from thalweg.errors import InvalidInputError, NumericalError, ThalwegError, TokenizationError

Interface = Literal["openai", "tei"]
"""Whose shape an error has; `/v1/thalweg/` has OpenAI's."""

Kind = Literal[
    "malformed", "invalid", "empty", "unauthorized", "unknown_model", "not_found", "conflict", "too_large", "too_many",
    "unsupported", "timeout", "overloaded", "unavailable", "backend",
]  # fmt: skip

_STATUS: dict[Kind, tuple[int, int]] = {  # OpenAI's, TEI's
    "malformed": (400, 400),
    "invalid": (400, 422),
    "empty": (400, 400),
    "unauthorized": (401, 401),
    "unknown_model": (404, 404),
    "not_found": (404, 404),
    "conflict": (409, 409),
    "too_large": (413, 413),
    "too_many": (413, 413),
    "unsupported": (415, 415),
    "timeout": (504, 504),
    "overloaded": (429, 429),
    "unavailable": (503, 503),
    "backend": (500, 424),
}

_WORDS = {
    400: "The request cannot be understood, or is not one.",
    401: "An API key is missing, or another one.",
    403: "Without an API key, the server answers to other names.",
    404: "There is no such model, session or path.",
    405: "The path has other methods.",
    408: "The body did not arrive in time.",
    409: "There are too many sessions.",
    413: "The body is too large, or has too many texts.",
    415: "The body is of a kind that is not taken.",
    422: "The request cannot be understood.",
    424: "The model failed.",
    429: "The server has too much to do; `Retry-After` says when to come again.",
    500: "The server failed.",
    503: "The server ends.",
    504: "It took too long.",
    507: "The disk of the server is full.",
}

STATUSES: dict[Interface, dict[int, str]] = {
    "openai": {status: words for status, words in _WORDS.items() if status not in (422, 424)},
    "tei": {status: words for status, words in _WORDS.items() if status not in (409, 500, 507)},
}
"""The statuses of errors, and what they mean."""

_TEI_TYPES: dict[Kind, str] = {
    "empty": "Empty",
    "unauthorized": "Unauthorized",
    "overloaded": "Overloaded",
    "unavailable": "Unhealthy",
    "backend": "Backend",
}

_OPENAI_TYPES: dict[Kind, str] = {
    "unauthorized": "authentication_error",
    "overloaded": "rate_limit_error",
    "timeout": "timeout_error",
    "unavailable": "server_error",
    "backend": "server_error",
}

_OPENAI_CODES: dict[Kind, str] = {
    "unauthorized": "invalid_api_key",
    "unknown_model": "model_not_found",
    "overloaded": "rate_limit_exceeded",
}


class RequestError(Exception):
    """A request that gets an error.

    Args:
        kind: of the error, which decides its status.
        message: for the client. It is not logged, as it may quote what the client sent.
        param: the field that is to blame.
        retry_after: seconds after which another try will be taken in.
        status: instead of that of the kind.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.kind, self.message, self.param = kind, message, param
        self.retry_after, self._status = retry_after, status

    def status(self, interface: Interface) -> int:
        """Its HTTP status."""
        return self._status or _STATUS[self.kind][interface == "tei"]

    def body(self, interface: Interface) -> dict[str, Any]:
        """Its JSON."""
        if interface == "tei":
            return {"error": self.message, "error_type": _TEI_TYPES.get(self.kind, "Validation")}
        return {
            "error": {
                "message": self.message,
                "type": _OPENAI_TYPES.get(self.kind, "invalid_request_error"),
                "param": self.param,
                "code": _OPENAI_CODES.get(self.kind),
            }
        }

    def response(self, interface: Interface) -> Response:
        """The whole answer."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.kind == "unauthorized":
            headers["www-authenticate"] = "Bearer"
        content = orjson.dumps(self.body(interface))
        return Response(content, self.status(interface), headers, media_type="application/json")


def as_request_error(error: Exception) -> RequestError:
    """What the client is told of an error that a text or the model raised."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, NumericalError):
        return RequestError("backend", str(error))
    if isinstance(error, InvalidInputError | TokenizationError):
        return RequestError("invalid", str(error))
    if isinstance(error, ThalwegError):
        return RequestError("backend", str(error))
    return RequestError("backend", "the server failed; its log names the error")
