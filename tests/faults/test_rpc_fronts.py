"""What befalls the gRPC front process, and a gateway whose own front does not work, as clients see it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.build import write_fault_model
from faults.test_rpc_deaths import Held, answers, running
from harness.bystander import Bystander
from harness.installation import Installation
from harness.invariants import assert_gone, server_processes
from harness.rpc_calls import connected, fault_inputs, is_right
from harness.server import Server, eventually, serving
from harness.victim import BYSTANDER, bystander_repository
from http2_client import START, headers
from mmsup.gateway.http2 import frames

pytestmark = pytest.mark.slow


def front(server: Server) -> int:
    """The process id of the gRPC front once it serves."""

    def pid() -> int:
        status = server.status()["grpc_front"]
        return int(status["pid"] or 0) if status["serves"] else 0

    return eventually(pid, "the gRPC front serves")


def floods() -> Iterator[bytes]:
    yield b"".join(headers(number) + frames.rst_stream(number, frames.CANCEL) for number in range(1, 10_000, 2))
    yield frames.settings({}) * 10_000
    yield frames.ping(b"12345678") * 10_000
    yield random.Random(1).randbytes(100_000)


def send_floods(server: Server) -> None:
    """Each on a connection of its own, whose client reads nothing but the first answer."""
    for flood in floods():
        with socket.create_connection(server.address("grpc"), 20) as client, contextlib.suppress(OSError):
            client.sendall(START + flood)
            client.recv(1 << 16)


@pytest.mark.fault("F53", "F81", "F82")
def test_a_front_or_a_gateway_that_dies_under_calls_ends_them_and_http_goes_on(tmp_path: Path) -> None:
    with running(tmp_path, "--grpc-front", "grpcio") as server:
        first = front(server)
        worker, (gateway,) = server.pid("m"), server.status()["gateways"]
        with connected(server) as client, Bystander(server, BYSTANDER):
            send_floods(server)
            assert is_right(client.infer("m", fault_inputs()))
            assert front(server) == first, "no flood ends it"
            held = Held(server, client)
            os.kill(first, signal.SIGKILL)
            for replies in (held.call, held.stream):
                _, error = replies.next()
                assert error.status() in ("StatusCode.UNAVAILABLE", "StatusCode.CANCELLED"), error
            client.stop_stream(cancel_requests=True)
            held.go_on()
            (server.repository / "m" / "1" / "go").unlink(missing_ok=True)
            eventually(lambda: server.gauge("mmsup_requests_open", model="m") == 0, "nothing is left open")
            eventually(lambda: answers(client), "the same client is served by another front")
            assert front(server) != first
            assert (server.pid("m"), server.status()["gateways"]) == (worker, [gateway])
            assert "SIGKILL" in server.events("grpc_front_exit")[0]["text"]
        with connected(server) as client:
            held = Held(server, client)
            os.kill(gateway["pid"], signal.SIGKILL)
            for replies in (held.call, held.stream):
                _, error = replies.next()
                assert error.status() == "StatusCode.UNAVAILABLE", error
                assert "the process that served this call has ended" in error.message()
            client.stop_stream(cancel_requests=True)
            held.go_on()
            eventually(lambda: answers(client), "another gateway serves")
        everyone = server_processes(server)
        assert server.stop() == 0, server.log()
        assert_gone(server, everyone)


@pytest.mark.fault("F83")
def test_a_gateway_whose_own_front_does_not_work_leaves_grpc_to_the_other_one(tmp_path: Path) -> None:
    installed = Installation(tmp_path / "installed")
    installed.change(
        "gateway/http2/header_blocks.py", "known = self._known.get(block)", "known = self._known[block + b'?']"
    )
    write_fault_model(bystander_repository(tmp_path / "models"), "m")
    with serving(tmp_path / "models", python=installed.python) as server:
        assert front(server)
        with connected(server) as client:
            assert is_right(client.infer("m", fault_inputs()))
        (event,) = server.events("grpc_front_fallback")
        assert "the self-test of the gRPC front failed" in event["text"]
