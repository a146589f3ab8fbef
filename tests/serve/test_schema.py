"""The schema of the whole interface: it can be read, and what is made from it never breaks the server."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.serve.running import Running


def page_of(served: Running) -> Any:
    with served.client() as client:
        return client.get("/openapi.json").json()


@pytest.mark.slow
def test_requests_made_from_the_schema(served: Running) -> None:
    schema = schemathesis.openapi.from_dict(page_of(served))
    schema.config.update(base_url=served.url)
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(case=operation.as_strategy())
        def never_breaks(case: Any) -> None:
            case.headers.pop("X-Request-Timeout", None)  # what does not get ready gets 504
            case.call_and_validate(excluded_checks=[positive_data_acceptance])  # names and widths are those of models

        never_breaks()
        tried += 1
    assert tried > 20


def test_every_route_is_in_the_schema(served: Running) -> None:
    page = page_of(served)
    assert "/v1/embeddings" in page["paths"]
    append = page["paths"]["/v1/thalweg/sessions/{id}/append"]["post"]
    assert {"application/json", "text/plain"} == set(append["requestBody"]["content"])
    assert {"200", "400", "401", "404", "429"} <= set(append["responses"])
    body = page["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].rpartition("/")[2] in page["components"]["schemas"]
    sections = page["paths"]["/v1/thalweg/sections"]["post"]
    assert {"by", "every", "mode", "look_ahead"} <= {each["name"] for each in sections["parameters"]}
