"""URL routes: exact paths, decoded once, each with its access."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsup.gateway.http.url_routes import HTTP_ROUTES, Access, match_path


def does(target: str, method: str = "GET") -> str | None:
    match = match_path(target)
    return match.methods[method].action if match else None


@pytest.mark.parametrize(
    ("target", "method", "name"),
    [
        ("/v2", "GET", "server"),
        ("/v2/models", "GET", "models"),
        ("/v2/models/stats", "GET", "all_stats"),
        ("/v2/models/stats/stats", "GET", "model_stats"),
        ("/v2/models/m", "GET", "model"),
        ("/v2/models/m?x=/y", "GET", "model"),
        ("/v2/models/m", "HEAD", "model"),
        ("/v2/models/m/versions/3/infer", "POST", "infer"),
        ("/v2/models/m/ready", "GET", "model_ready"),
        ("http://host:8000/v2/models/m", "GET", "model"),
        ("/v2/repository/models/m/load", "POST", "load"),
        ("/v2/repository/index", "POST", "index"),
        ("/v2/repository/other/index", "POST", "other_repository"),
        ("/v2/systemsharedmemory/unregister", "POST", "system_unregister"),
        ("/v2/cudasharedmemory/region/a%20b/unregister", "POST", "cuda_unregister"),
        ("/v2/systemsharedmemory/status", "GET", "system_status"),
        ("/v2/cudasharedmemory/region/r/register", "POST", "cuda_register"),
        ("/livez", "GET", "live"),
        ("/", "GET", "page"),
        ("/?x", "HEAD", "page"),
        ("http://host:8000/", "GET", "page"),
        ("/v1/models/m", "GET", "v1_model"),
        ("/v1/models/m:predict", "POST", "predict"),
        ("/v1/models/m%3Apredict", "POST", "predict"),
        ("/metrics", "GET", "metrics"),
    ],
)
def test_a_path_of_the_protocol_is_found(target: str, method: str, name: str) -> None:
    assert does(target, method) == name


@pytest.mark.parametrize(
    "target",
    [
        "", "*", "//", "/x/", "/v2/", "/v2//models", "//v2", "/v3", "/v2/models/", "/v2/models/m/", "/v2/models/m/nope",
        "/V2",
        "/v2/models/.m", "/v2/models/-m", "/v2/models/m%2Fversions", "/v2/models/%2e%2e", "/v2/models/m%00",
        "/v2/models/..%2fx", "/v2/models/" + "m" * 129, "/v2/models/m/versions/", "/v2/models/m%252e", "ftp://x/v2",
        "/v2/models/m/versions/1/load", "/v2/models/ü", "/v1/models", "/v1/models/m:explain", "/v2/models/m:predict",
        "/v1/models/:predict", "/v1/models/m:predict/", "/v1/models/m:predict:predict", "/v2/models/%FF",
        "/v2/models/m%0a",
    ],
)  # fmt: skip
def test_any_other_path_does_not_exist(target: str) -> None:
    assert match_path(target) is None


def test_a_name_is_decoded_once() -> None:
    match = match_path("/v2/models/a%2Eb/versions/%31")
    assert match is not None
    assert match.names == {"model": "a.b", "version": "1"}


def test_routes_that_change_the_server_require_control_access() -> None:
    control = {(each.method, each.action) for each in HTTP_ROUTES if each.access is Access.CONTROL}
    does = ("load", "unload", "sleep", "wake", "other_repository", "set_log", "set_trace")
    assert control == {("POST", each) for each in does}


def test_allow_names_every_method_of_a_path() -> None:
    match = match_path("/v2/logging")
    assert match is not None
    assert match.allow == "GET, HEAD, OPTIONS, POST"


@given(st.text("aZ0~%2fF/.?#;: \\\0\n\x7fé€😀\ud800", max_size=40))
def test_arbitrary_paths_are_not_found_without_an_exception(target: str) -> None:
    match = match_path("/v2/models/" + target)
    assert match is None or ".." not in match.names.get("model", "").split("/")
