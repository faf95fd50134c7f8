"""Overload: floods of requests and connections, and exhausted memory, are refused at once and fairly."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import combination, raw_http
from harness.bystander import Bystander
from harness.gateway_watch import GatewayWatch
from harness.invariants import assert_gone, server_processes
from harness.server import Http, Server, eventually, serving
from harness.victim import BYSTANDER, Victim, bystander_repository, victim

pytestmark = pytest.mark.slow
MIB = 1 << 20
REFUSAL_CPU_S = 0.05
MAX_REQUESTS = 40
BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = bystander_repository(tmp_path_factory.mktemp("repository"))
    flags = ("--model-control-mode", "explicit", "--load-model", BYSTANDER, "--arena-size", "16MiB")
    with serving(repository, *flags, "--max-requests", str(MAX_REQUESTS)) as running:
        http = Http(running.address())
        http.infer(BYSTANDER, x=("FP32", [20_000], [0.0] * 20_000))  # large enough for memory and the thread for texts
        http.close()
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)


def flood(hurt: Victim, count: int) -> Counter[str]:
    """Send `count` concurrent calls; the number of each outcome."""
    with ThreadPoolExecutor(count) as threads:
        outcomes = threads.map(lambda _: hurt.send(), range(count))
        return Counter("served" if status == 200 else str(reply.get("code")) for status, reply in outcomes)


@pytest.mark.fault("F36")
def test_arena_memory_used_up_refuses_the_large_and_serves_the_small(server: Server) -> None:
    with (
        victim(server, "large", hang_limit="30s") as hurt,
        GatewayWatch(server) as watch,
        ThreadPoolExecutor(4) as threads,
    ):
        body = json.dumps(hurt.call(x=[1.0] * MIB)).encode()
        sent = [raw_http.head(hurt.name, size=len(body)), body]
        with hurt.held():
            calls = [threads.submit(raw_http.ask, server.address(), sent) for _ in range(4)]
            refused = eventually(lambda: [each.result() for each in calls if each.done()], "one is refused")
            assert {(status, told["code"]) for status, told in refused} == {(503, "no_buffer")}, refused
        assert {each.result()[0] for each in calls} <= {200, 503}
    assert watch.growth_bytes < 128 * MIB, str(watch)


@pytest.mark.fault("F40")
def test_a_worker_that_stops_reading_has_a_bounded_queue_and_costs_nobody_else(server: Server) -> None:
    with victim(server, "stopped", hang_limit="60s", max_queue=8) as hurt:
        pid = server.pid(hurt.name)
        os.kill(pid, signal.SIGSTOP)
        try:
            waiting = [hurt.in_background() for _ in range(8)]
            hurt.await_busy(8)
            began = server.gauge("mmsup_requests_open", model=hurt.name)
            with GatewayWatch(server) as watch:
                assert flood(hurt, 64) == {"queue_full": 64}
            assert server.gauge("mmsup_requests_open", model=hurt.name) == began == 8
            assert watch.growth_bytes < 16 * MIB, str(watch)
            assert watch.wait_s(0.99) < REFUSAL_CPU_S, str(watch)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert [each.result()[0] for each in waiting] == [200] * 8
        assert server.pid(hurt.name) == pid


@pytest.mark.fault("F51")
def test_one_flooded_model_gets_half_of_the_bound_over_all_and_two_a_third_each(server: Server) -> None:
    with (
        victim(server, "first", hang_limit="60s") as first,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(160) as threads,
    ):
        with first.held():
            calls = [threads.submit(first.send) for _ in range(80)]
            eventually(lambda: sum(each.done() for each in calls) >= 80 - MAX_REQUESTS // 2, "the rest is refused")
            assert server.gauge("mmsup_requests_open", model="first") <= MAX_REQUESTS // 2 + 1
            refused = [each.result() for each in calls if each.done()]
            assert {(status, reply["code"]) for status, reply in refused} == {(503, "queue_full")}
            assert "shared among all models" in refused[0][1]["error"]
            http = Http(server.address())
            stack.callback(http.close)
            assert http.infer(BYSTANDER, x=("FP32", [1], [1.0]))[0] == 200, "there is room for others"
        assert {each.result()[0] for each in calls} == {200, 503}


# Connections.


@contextlib.contextmanager
def many_files(count: int) -> Iterator[None]:
    """Raise the descriptor limit of the test process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        pytest.skip(f"{count} descriptors are needed, {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.fault("F51")
def test_ten_thousand_connections_keep_nobody_out(server: Server) -> None:
    if combination.is_plain():
        pytest.skip("with --http-front plain idle connections do not give way: the next test shows what holds there")
    with many_files(12_000), Bystander(server, BYSTANDER) as bystander, GatewayWatch(server) as watch:
        for _ in range(2):  # the second time nothing is new
            before = watch.own_bytes()
            with contextlib.ExitStack() as stack:
                for number in range(10):
                    stack.enter_context(raw_http.crowd(server.address(), 1000, f"127.0.1.{number + 1}"))
                bystander.await_more(5)
                with raw_http.connected(server.address()) as client:
                    client.sendall(raw_http.head(BYSTANDER, size=len(BODY)) + BODY)
                    assert raw_http.reply(client)[0] == 200
            bystander.await_more(5)
    assert watch.growth_bytes < 160 * MIB, str(watch)
    eventually(lambda: watch.own_bytes() < before + 16 * MIB, "what they took is free again")


@pytest.mark.fault("F51")
def test_ten_thousand_connections_to_a_plain_front_leave_those_that_were_there_alone(server: Server) -> None:
    if not combination.is_plain():
        pytest.skip("only with --http-front plain new connections are refused while others are idle")
    with many_files(12_000), Bystander(server, BYSTANDER) as bystander, GatewayWatch(server) as watch:
        for _ in range(2):  # the second time nothing is new
            before = watch.own_bytes()
            with contextlib.ExitStack() as stack:
                for number in range(10):
                    stack.enter_context(raw_http.crowd(server.address(), 1000, f"127.0.1.{number + 1}"))
                bystander.await_more(5)
                with raw_http.connected(server.address()) as client:
                    status, told = raw_http.reply(client)
                    assert (status, told["code"], told["retryable"]) == (503, "unavailable", True)
                    assert raw_http.is_closed(client)
            bystander.await_more(5)
            eventually(lambda: is_served(server), "new connections are served again")
    assert watch.growth_bytes < 160 * MIB, str(watch)
    eventually(lambda: watch.own_bytes() < before + 16 * MIB, "what they took is free again")


def is_served(server: Server) -> bool:
    with raw_http.connected(server.address()) as client:
        client.sendall(raw_http.head(BYSTANDER, size=len(BODY)) + BODY)
        return raw_http.reply(client)[0] == 200


@pytest.mark.fault("F51")
def test_a_gateway_without_descriptors_turns_new_ones_away_and_recovers(server: Server) -> None:
    (gateway,) = server.status()["gateways"]
    pid = gateway["pid"]
    used = len(os.listdir(f"/proc/{pid}/fd"))
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    clock = ((~pid) << 3) | 2
    with Bystander(server, BYSTANDER) as bystander:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 20, usual[1]))
        try:
            with raw_http.crowd(server.address(), 60):
                bystander.await_more(5)
                began, wall = time.clock_gettime(clock), time.monotonic()
                bystander.await_more(20)
                busy = (time.clock_gettime(clock) - began) / (time.monotonic() - wall)
                print(f"the gateway was busy for {busy:.0%} of the time")
                assert busy < 0.8, "it runs in a circle"
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
        with raw_http.connected(server.address()) as client:
            client.sendall(raw_http.head(BYSTANDER, size=len(BODY)) + BODY)
            assert raw_http.reply(client)[0] == 200
    assert server.status()["gateways"][0]["pid"] == pid


# Fair shares.

FLOOD = """
import select, socket, sys, time
host, port, count, model, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], float(sys.argv[5])
body = b'{"inputs":[{"name":"wrong","datatype":"FP32","shape":[1],"data":[1]}]}'
head = b"POST /v2/models/%b/infer HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: %d\\r\\n\\r\\n"
sent = head % (model.encode(), len(body)) + body
clients, poll = {}, select.epoll()
for _ in range(count):
    each = socket.create_connection((host, port))
    clients[each.fileno()] = each
    poll.register(each, select.EPOLLIN)
    each.sendall(sent)
print("begun", flush=True)
answered, end = 0, time.monotonic() + seconds
while time.monotonic() < end:
    for fd, _ in poll.poll(0.1):
        if not clients[fd].recv(65536):
            sys.exit("closed")
        answered += 1
        clients[fd].sendall(sent)
print(answered, flush=True)
"""


def waits(server: Server, connections: int) -> tuple[GatewayWatch, int]:
    """Waits of a small request beside `connections` clients that never pause, and the number of their answers."""
    command = [sys.executable, "-c", FLOOD, *map(str, (*server.address(), connections, BYSTANDER, 2.5))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        with GatewayWatch(server) as watch:
            answered = int(child.stdout.readline())
    return watch, answered


@pytest.mark.fault("F51")
@pytest.mark.alone
def test_a_flood_by_256_clients_costs_others_little_more_than_one_by_32(server: Server) -> None:
    moderate, _ = waits(server, 32)
    flooded, answered = waits(server, 256)
    assert answered > 1000
    ratio = flooded.wait_s(0.99) / moderate.wait_s(0.99)
    print(f"p99 beside 256 clients is {ratio:.2f} of that beside 32")
    assert flooded.wait_s(0.99) < max(4 * moderate.wait_s(0.99), 0.02), f"{moderate}; {flooded}"
    assert flooded.wait_s(1) < 0.06, f"who connects behind the crowd waits for all of it: {flooded}"
