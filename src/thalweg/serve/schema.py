"""What the OpenAPI page says of a route."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from thalweg.serve.errors import STATUSES, Interface

REFERENCES = "#/components/schemas/{name}"

_TEXT = {"type": "string"}
_ERRORS: dict[Interface, dict[str, Any]] = {
    "openai": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
    "tei": {"type": "object", "required": ["error", "error_type"], "properties": {"error": _TEXT, "error_type": _TEXT}},
}

_HEADERS = [
    {
        "name": "X-Priority",
        "in": "header",
        "description": "Texts of low priority begin when no others wait.",
        "schema": {"type": "string", "enum": ["normal", "low"], "default": "normal"},
    },
    {
        "name": "X-Request-Timeout",
        "in": "header",
        "description": "Seconds after which the request gets 504, if less than what the server allows.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
]


def components(structs: Sequence[type[msgspec.Struct]]) -> dict[str, Any]:
    """The parts of the page that routes refer to: JSON schemas of these and of the errors."""
    _, found = msgspec.json.schema_components(structs, ref_template=REFERENCES)
    return {**found, **{_error_name(interface): schema for interface, schema in _ERRORS.items()}}


def operation(
    path: str,
    interface: Interface,
    *,
    body: type[msgspec.Struct] | None,
    query: type[msgspec.Struct] | None,
    others: Sequence[str],
    answers: Mapping[int, str | None],
    public: bool,
    has_keys: bool,
    structs: Sequence[type[msgspec.Struct]],
) -> dict[str, Any]:
    """What the page says of a route, besides what FastAPI does.

    Args:
        body: as JSON. others: further kinds of bodies.
        public: needs no key. has_keys: whether others do.
        answers: media type of each status of an answer; None for one without content.
        structs: those of `components`.
    """
    names = re.findall(r"{(\w+)[:}]", path)
    parameters = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names]
    parameters += [] if query is None else _of_query(query)
    parameters += [] if public or body is None else _HEADERS
    found: dict[str, Any] = {"parameters": parameters, "security": [{"key": []}] if has_keys and not public else []}
    if body is not None:
        schemas, _ = msgspec.json.schema_components(structs, ref_template=REFERENCES)
        kinds = {"application/json": schemas[list(structs).index(body)]} | dict.fromkeys(others, _TEXT)
        found["requestBody"] = {"required": True, "content": {kind: {"schema": each} for kind, each in kinds.items()}}
    error = {"application/json": {"schema": {"$ref": REFERENCES.format(name=_error_name(interface))}}}
    found["responses"] = {
        **{str(status): {"description": words, "content": error} for status, words in STATUSES[interface].items()},
        **{
            str(status): {"description": "Done.", "content": {kind: {}}} if kind else {"description": "Done."}
            for status, kind in answers.items()
        },
    }
    return found


def _of_query(query: type[msgspec.Struct]) -> list[dict[str, Any]]:
    _, found = msgspec.json.schema_components([query], ref_template=REFERENCES)
    properties: dict[str, Any] = found[query.__name__]["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]


def _error_name(interface: Interface) -> str:
    return {"openai": "OpenAIError", "tei": "TEIError"}[interface]
