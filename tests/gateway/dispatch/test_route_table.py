"""Lookups in the route table, and what is forgotten when a new brain has said everything."""

from __future__ import annotations

import pytest

from mmsup.gateway.dispatch.route_table import RouteTable
from mmsup.ipc.errors import CallerError
from mmsup.ipc.messages.gateway_control import Route, VersionState


def version(number: str, state: str = "ready") -> VersionState:
    return VersionState(number, state, "", "", 0.0, None, None)


def table() -> RouteTable:
    routes = RouteTable()
    routes.put(Route("m", wanted=True, default="3", versions=(version("1"), version("3"))))
    routes.put(Route("off", wanted=False, default="", versions=(version("1", "stopped"),)))
    return routes


@pytest.mark.parametrize(("asked", "found"), [("", "3"), ("1", "1"), ("3", "3"), ("01", "1")])
def test_a_version_is_found(asked: str, found: str) -> None:
    assert table().version("m", asked).version == found


@pytest.mark.parametrize(
    ("name", "asked", "code", "text"),
    [
        ("x", "", "unknown_model", "Request for unknown model: 'x' is not found"),
        ("m", "2", "unknown_version", "Request for unknown model: 'm' version 2 is not found"),
        ("m", "99999999999999999999999", "bad_version", "failed to get model version from specified version string"),
        ("m", "latest", "bad_version", "failed to get model version from specified version string 'latest'"),
        ("m", "-1", "bad_version", "failed to get model version from specified version string '-1'"),
        ("off", "1", "unknown_model", "Request for unknown model: 'off' has no available versions"),
    ],
)
def test_what_is_not_served_is_said_in_the_words_that_clients_test_for(
    name: str, asked: str, code: str, text: str
) -> None:
    with pytest.raises(CallerError) as caught:
        table().version(name, asked)
    assert caught.value.code == code
    assert caught.value.text.startswith(text)


def test_what_a_new_brain_does_not_name_is_gone() -> None:
    routes = table()
    routes.begin_sync()
    routes.put(Route("new", wanted=True, default="1", versions=(version("1"),)))
    routes.put(Route("m", wanted=True, default="1", versions=(version("1"),)))
    routes.end_sync()
    assert routes.names() == ["m", "new"]


def test_a_dropped_model_is_unknown() -> None:
    routes = table()
    routes.drop("m")
    routes.drop("never there")
    with pytest.raises(CallerError):
        routes.model("m")
