"""A web page cannot use a server on loopback: neither by its own host name nor from its own site."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from mmsup.gateway.http.host_policy import ANY_HOST, HostPolicy, check_change, check_host, host_name, listener_policy
from mmsup.ipc.errors import CallerError

LOCAL = listener_policy("127.0.0.1", "Machine", ("Models.example", "10.1.2.3"), is_loopback=True)
TARGET = "/v2/models/m/infer"


def is_refused(policy: HostPolicy, *hosts: str, target: str = TARGET) -> bool:
    try:
        check_host(policy, hosts, target)
    except CallerError as error:
        return error.code == "forbidden"
    return False


@pytest.mark.parametrize(
    ("host", "name"),
    [
        *(("a.example", "a.example"), ("A.Example:8000", "a.example"), ("a.example.", "a.example"), (" a:", "a")),
        *(("[::1]:8000", "::1"), ("[::1]", "::1"), ("127.0.0.1:80", "127.0.0.1"), ("", ""), (":80", "")),
    ],
)
def test_names_are_compared_without_the_port(host: str, name: str) -> None:
    assert host_name(host) == name


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]:8000",
        "[::ffff:127.0.0.1]",
        "machine",
        "models.example:443",
        "10.1.2.3",
    ],
)
def test_a_loopback_listener_answers_to_its_own_names_and_those_that_are_allowed(host: str) -> None:
    assert not is_refused(LOCAL, host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "0.0.0.0",
        "10.1.2.4",
        "",
        "evil@localhost",
        "[::1]evil.com",
        "[localhost]",
        "[::1%25lo]",
        "[::1%lo]",
        "[::1",
        "[::ffff:10.1.2.4]",
    ],
)
def test_a_page_whose_name_resolves_to_loopback_is_refused(host: str) -> None:
    assert is_refused(LOCAL, host)
    assert not is_refused(ANY_HOST, host)


def test_each_name_of_a_request_counts() -> None:
    assert is_refused(LOCAL, "localhost", "evil.example")
    assert is_refused(LOCAL, "localhost", target="http://evil.example/v2")
    assert is_refused(LOCAL, "localhost", target="http://localhost@evil.example/v2")
    assert not is_refused(LOCAL, "localhost", target="http://localhost:80/v2?a=://b")
    assert not is_refused(LOCAL), "HTTP/1.0 needs none, and a browser always sends it"


def test_a_listener_that_others_reach_answers_to_any_name_unless_some_are_allowed() -> None:
    assert not is_refused(listener_policy("0.0.0.0", "machine", (), is_loopback=False), "any.example")
    named = listener_policy("10.0.0.1", "machine", ("a.example",), is_loopback=False)
    assert [is_refused(named, each) for each in ("a.example", "10.0.0.1", "any.example")] == [False, False, True]
    assert not is_refused(listener_policy("127.0.0.1", "machine", ("*",), is_loopback=True), "any.example")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, ""),
        ({"Content-Type": "application/x-www-form-urlencoded"}, ""),  # as curl -d sends
        ({"Origin": "http://evil.example"}, "forbidden"),
        ({"Origin": "null"}, "forbidden"),
        ({"Origin": "http://localhost:3000", "Content-Type": "application/json"}, ""),
        ({"Origin": "http://localhost:3000", "Content-Type": "text/plain"}, "unsupported_media"),
        ({"Origin": "http://localhost:3000"}, "unsupported_media"),
        ({"Origin": "https://models.example", "Content-Type": "application/json; charset=utf-8"}, ""),
        ({"Sec-Fetch-Site": "cross-site", "Content-Type": "application/json"}, "forbidden"),
        ({"Sec-Fetch-Site": "same-site", "Content-Type": "application/json"}, "forbidden"),
        ({"Sec-Fetch-Site": "same-origin", "Content-Type": "application/json"}, ""),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, "forbidden"),
    ],
)
def test_a_page_of_another_site_changes_nothing(headers: dict[str, str], code: str) -> None:
    if code:
        with pytest.raises(CallerError) as refused:
            check_change(LOCAL, CIMultiDict(headers), has_body=True)
        assert refused.value.code == code
    else:
        check_change(LOCAL, CIMultiDict(headers), has_body=True)
    check_change(ANY_HOST, CIMultiDict(headers), has_body=True)


@pytest.mark.parametrize(
    ("name", "own", "foreign"),
    [("Origin", "http://localhost", "http://evil.example"), ("Sec-Fetch-Site", "same-origin", "cross-site")],
)
def test_each_header_that_tells_the_page_counts(name: str, own: str, foreign: str) -> None:
    json = ("Content-Type", "application/json")
    check_change(LOCAL, CIMultiDict([json, (name, own), (name, own)]), has_body=True)
    for values in ((own, foreign), (foreign, own)):
        with pytest.raises(CallerError, match="web page of"):
            check_change(LOCAL, CIMultiDict([json, *[(name, each) for each in values]]), has_body=True)


def test_an_empty_host_is_told_what_to_send() -> None:
    with pytest.raises(CallerError, match="the Host header is empty"):
        check_host(LOCAL, [""], TARGET)
