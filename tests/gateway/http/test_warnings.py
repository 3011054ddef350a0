"""gateway/http/warnings.py: warnings in the header of an answer."""

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from gateway.http.warnings import WARNING_HEADER, add_warning, warning_headers


def warned(*warnings: str) -> dict[str, str]:
    request: web.Request = make_mocked_request("GET", "/")
    for warning in warnings:
        add_warning(request, warning)
    return dict(warning_headers(request))


def test_warnings_are_joined_and_bounded() -> None:
    assert warned() == warned("") == {}
    assert warned("a", "", "b") == {WARNING_HEADER: "a; b"}
    assert warned("x\r\nSet-Cookie: a=é") == {WARNING_HEADER: "x??Set-Cookie: a=?"}
    assert len(warned("x" * 1_000)[WARNING_HEADER]) == 1_000
    cut = warned("x" * 100_000)[WARNING_HEADER]
    assert (len(cut), cut[-4:]) == (1_000, "x...")
