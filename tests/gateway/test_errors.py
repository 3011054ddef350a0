"""gateway/errors.py: status, type and headers of errors."""

import pytest

from gateway.errors import FailedCall, RequestError, field_path
from gateway.graph.errors import Failure, GraphError


@pytest.mark.parametrize(
    ("where", "field", "path"),
    [("", "model", "model"), ("calls.0", "", "calls.0"), ("calls.0", "model", "calls.0.model"), ("", "", "")],
)
def test_paths_of_fields(where: str, field: str, path: str) -> None:
    assert field_path(where, field) == path


@pytest.mark.parametrize(
    ("status", "type"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_the_type_follows_from_the_status(status: int, type: str) -> None:
    assert RequestError(status, "no").type == type


def test_refusals_that_pass_say_when_to_try_again() -> None:
    assert RequestError(429, "no").headers == {"Retry-After": "1"}
    assert RequestError(503, "no", headers={"Retry-After": "7"}).headers == {"Retry-After": "7"}
    assert RequestError(500, "no").headers == {}


def test_headers_are_not_shared() -> None:
    headers = {"Allow": "GET"}
    RequestError(503, "no", headers=headers)
    assert headers == {"Allow": "GET"}


def test_every_code_of_a_refusal_of_the_graph_has_a_status() -> None:
    kinds = GraphError.__subclasses__()
    assert len(kinds) > 5
    for kind in (GraphError, *kinds):
        error = RequestError.of_graph(kind("no", "calls.0"))
        assert (error.code, error.param, str(error)) == (kind.code, "calls.0", "no")
        assert error.status in (400, 401, 404, 409, 410, 413, 429, 503), kind


@pytest.mark.parametrize(
    ("code", "status"), [("upstream_failed", 424), ("engine_failed", 503), ("a code of the future", 500)]
)
def test_the_status_of_a_failed_call_follows_from_its_code(code: str, status: int) -> None:
    error = FailedCall(Failure(code, "it broke", field="seed"))
    assert (error.status, str(error), error.code, error.param) == (status, "it broke", code, "seed")
