"""Pings that come too soon, as the gRPC libraries count them."""

from __future__ import annotations

from mmsup.gateway.http2.ping_strikes import NO_CALLS_INTERVAL_S, PingStrikes
from mmsup.ipc.rpc.keepalive import RpcKeepalive


def test_without_an_interval_no_ping_is_a_strike() -> None:
    strikes = PingStrikes(RpcKeepalive())
    assert not any(strikes.is_too_much(0.0, 0, has_calls=True) for _ in range(1000))


def test_a_client_with_more_strikes_than_allowed_is_told() -> None:
    strikes = PingStrikes(RpcKeepalive(min_ping_interval_ms=1000, max_ping_strikes=2))
    assert [strikes.is_too_much(at, 0, has_calls=True) for at in (0.0, 0.9, 1.8, 2.7)] == [False, False, False, True]


def test_pings_in_time_are_none_and_zero_strikes_is_any_number() -> None:
    strikes = PingStrikes(RpcKeepalive(min_ping_interval_ms=1000))
    assert not any(strikes.is_too_much(float(at), 0, has_calls=True) for at in range(100))
    strikes = PingStrikes(RpcKeepalive(min_ping_interval_ms=1000, max_ping_strikes=0))
    assert not any(strikes.is_too_much(0.0, 0, has_calls=True) for _ in range(100))


def test_data_forgives_the_strikes_before() -> None:
    strikes = PingStrikes(RpcKeepalive(min_ping_interval_ms=1000, max_ping_strikes=1))
    assert not any(strikes.is_too_much(0.0, writes, has_calls=True) for writes in (0, 0, 1, 1, 2, 2))
    assert strikes.is_too_much(0.0, 2, has_calls=True)


def test_without_calls_the_interval_is_two_hours_unless_they_are_allowed() -> None:
    later_s = NO_CALLS_INTERVAL_S - 1
    for allowed in (False, True):
        options = RpcKeepalive(min_ping_interval_ms=1000, max_ping_strikes=1, without_calls=allowed)
        strikes = PingStrikes(options)
        found = [strikes.is_too_much(at * later_s, 0, has_calls=False) for at in range(3)]
        assert found == [False, False, not allowed]
