"""What befalls workers and gateways, as clients of gRPC see it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from engines.build import write_fault_model
from faults.test_upgrade import assert_followed, processes, upgrade
from harness.bystander import Bystander
from harness.invariants import assert_clean, assert_gone, server_processes, settled
from harness.rpc_calls import Client, Replies, RpcTraffic, connected, fault_inputs, is_right
from harness.server import Server, eventually, serving
from harness.victim import BYSTANDER, bystander_repository

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("models")) as made:
        yield made


@contextlib.contextmanager
def running(repository: Path, *flags: str) -> Iterator[Server]:
    write_fault_model(bystander_repository(repository), "m", hang_limit="20s")
    with serving(repository, *flags) as server:
        http = server.http()
        assert http.infer(BYSTANDER, x=("FP32", [1], [0.0]))[0] == 200
        http.close()
        with connected(server) as client:
            assert is_right(client.infer("m", fault_inputs()))
        yield server


class Held:
    """A call and a stream whose requests execute until `go`."""

    def __init__(self, server: Server, client: Client) -> None:
        self._server = server
        self._go = server.repository / "m" / "1" / "go"
        self.call, self.stream = Replies(), Replies()
        client.start_stream(self.stream)
        client.async_stream_infer("m", fault_inputs("hold"), request_id="s")
        self.await_open(1)
        client.async_infer("m", fault_inputs("hold"), self.call)
        self.await_open(2)

    def await_open(self, count: int) -> None:
        eventually(lambda: self._server.gauge("mmsup_requests_open", model="m") == count, f"{count} requests are open")

    def go_on(self) -> None:
        """Let one of them finish."""
        self._go.touch()
        eventually(lambda: not self._go.exists(), "the model went on")


@pytest.mark.fault("F2", "F53")
def test_a_worker_that_dies_fails_what_it_ran_and_no_stream_ends(server: Server) -> None:
    with connected(server) as client, Bystander(server, BYSTANDER):
        held = Held(server, client)
        os.kill(server.pid("m"), signal.SIGKILL)
        _, in_stream = held.stream.next()
        assert "worker" in in_stream.message()
        held.go_on()
        result, error = held.call.next()
        assert error is None, "it had not begun, and the next worker serves it"
        assert is_right(result)
        client.async_infer("m", fault_inputs("hold", x=[4.0]), held.call)
        held.await_open(1)
        os.kill(server.pid("m"), signal.SIGKILL)
        _, error = held.call.next()
        assert error.status() == "StatusCode.UNAVAILABLE"
        server.await_state("m", "ready")
        client.async_stream_infer("m", fault_inputs(), request_id="after")
        result, error = held.stream.next()
        assert (error, result.get_response().id) == (None, "after")
        client.stop_stream()


@pytest.mark.fault("F26", "F53")
def test_a_gateway_that_dies_ends_its_calls_and_clients_find_another(server: Server) -> None:
    before, pid = settled(server), server.pid("m")
    (gateway,) = server.status()["gateways"]
    with connected(server) as client:
        held = Held(server, client)
        os.kill(gateway["pid"], signal.SIGKILL)
        for replies in (held.call, held.stream):
            _, error = replies.next()
            assert error.status() in ("StatusCode.UNAVAILABLE", "StatusCode.CANCELLED"), error
        client.stop_stream(cancel_requests=True)
        held.go_on()  # the worker finishes what it had begun
        eventually(lambda: answers(client), "the same client is served by another gateway")
    assert server.pid("m") == pid
    (server.repository / "m" / "1" / "go").unlink(missing_ok=True)
    assert_clean(before, server)


def answers(client: Client) -> bool:
    try:
        return is_right(client.infer("m", fault_inputs()))
    except triton.InferenceServerException:
        return False


@pytest.mark.fault("F30", "F53")
def test_an_upgrade_costs_no_call_and_ends_no_stream(server: Server) -> None:
    before, old, exits = settled(server), processes(server), len(server.events("gateway_exit"))
    quiet = Bystander(server, BYSTANDER, stays=False)
    with connected(server) as client, quiet, RpcTraffic(server, "m"), RpcTraffic(server, "m"):
        idle = Replies()
        client.start_stream(idle)
        client.async_stream_infer("m", fault_inputs(), request_id="1")
        assert idle.next()[1] is None
        done = upgrade(server)
        assert done.returncode == 0, done.stderr + server.log()
        client.async_stream_infer("m", fault_inputs(), request_id="2")
        assert idle.next()[1] is None, "its gateway serves it until it is idle for long"
        client.stop_stream()
        assert is_right(client.infer("m", fault_inputs()))
    assert_followed(old, processes(server))
    assert len(server.events("gateway_exit")) == exits
    assert_clean(before, server)


@pytest.mark.fault("F31", "F53")
def test_a_server_that_stops_finishes_what_runs_and_says_that_it_is_not_ready(tmp_path: Path) -> None:
    with running(tmp_path, "--exit-timeout-secs", "20") as server, connected(server) as client:
        everyone = server_processes(server)
        held = Held(server, client)
        stopped = threading.Thread(target=server.stop)
        stopped.start()
        eventually(lambda: not client.is_server_ready(), "not ready while it drains")
        assert client.is_server_live()
        with pytest.raises(triton.InferenceServerException) as caught:
            client.infer("m", fault_inputs())
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        held.go_on()
        held.go_on()
        for replies in (held.call, held.stream):
            result, error = replies.next()
            assert error is None
            assert is_right(result)
        stopped.join(30)
        assert server.process.returncode == 0, server.log()
        assert_gone(server, everyone)
