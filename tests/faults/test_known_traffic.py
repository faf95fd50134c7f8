"""Requests that the server has learned to know, when faults befall their model, their gateway or the machine.

The clients send small requests that differ in their values alone, in binary and JSON, with and without ids, and check
every answer. What they may see is what clients of unknown requests see.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter

import pytest

from engines.build import write_identity_onnx
from harness.bystander import Bystander
from harness.invariants import assert_clean, settled
from harness.known_traffic import DIE, FORMS, RAISE, SLEEP, KnownClient, KnownTraffic, write_ordered_model
from harness.server import Server, eventually, serving
from harness.victim import BYSTANDER, bystander_repository

pytestmark = pytest.mark.slow
ANSWER_S = 0.1 + 1.0
"""Promised time from a death to the answers, and tolerance for a loaded machine."""


def load(server: Server, name: str, **options: object) -> None:
    write_ordered_model(server.repository, name, **options)  # type: ignore[arg-type] # by the caller
    server.ctl("load", name=name)


def success(server: Server, name: str) -> float:
    return server.gauge("nv_inference_request_success", model=name)


@pytest.mark.fault("F2")
@pytest.mark.parametrize("instances", [1, 2])
def test_a_worker_killed_with_known_requests_in_flight_answers_each_once(server: Server, instances: int) -> None:
    before, name = settled(server), f"known_killed_{instances}"
    load(server, name, pause_s=0.003, instances=instances)
    kills = 4
    with Bystander(server, BYSTANDER), KnownTraffic(server, name, 16) as clients:
        for number in range(1, kills + 1):
            clients.await_right(64)
            os.kill(server.pids(name)[0], signal.SIGKILL)
            assert server.await_event("worker_exit", name, number)["sig"] == signal.SIGKILL
            eventually(lambda: len(server.pids(name)) == instances, "it is back")
        clients.await_right(64)
    errors = clients.errors()
    assert set(errors) <= {(503, "worker_crashed")}, errors
    assert sum(errors.values()) <= kills, f"only what ran is answered with an error: {errors}"
    assert success(server, name) == clients.right()
    server.ctl("unload", name=name)
    assert_clean(before, server)


@pytest.mark.fault("F2", "F3")
def test_what_a_known_request_does_to_its_worker_befalls_no_other(server: Server) -> None:
    name = "known_dies"
    load(server, name)
    with Bystander(server, BYSTANDER), KnownTraffic(server, name, 8, pace_s=0.002) as clients:
        killer = KnownClient(server.address(), name, "binary")
        for number in range(3):
            assert killer.ask([0.0] * 8).status == 200
            began = time.monotonic()
            answer = killer.ask([DIE, 0.0, float(number), *[5.0] * 5])  # other values every time: it is no repetition
            assert (answer.status, answer.code) == (503, "worker_crashed")
            assert time.monotonic() - began < ANSWER_S
            server.await_event("worker_exit", name, number + 1)
            clients.await_right(16)
        killer.close()
    assert not clients.errors(), "they had not begun, or their replies had been sent"
    server.ctl("unload", name=name)


@pytest.mark.fault("F13")
def test_a_known_request_that_kills_its_worker_each_time_is_refused_and_its_like_are_served(server: Server) -> None:
    name = "known_poison"
    load(server, name)
    poison = [DIE, *[7.0] * 7]
    with Bystander(server, BYSTANDER), KnownTraffic(server, name, 6, pace_s=0.005) as clients:
        for form in FORMS:
            client = KnownClient(server.address(), name, form)
            for _ in range(4):
                assert client.ask([0.0] * 8).status == 200
            answers = [client.ask(poison) for _ in range(3)]
            codes = [each.code for each in answers]
            if form == FORMS[0]:
                assert codes == ["worker_crashed", "worker_crashed", "request_quarantined"]
            else:
                assert codes == ["request_quarantined"] * 3, "it is the same input, however it is written"
            assert client.ask([0.0] * 8).status == 200
            client.close()
            clients.await_right(12)
    assert len(server.events("worker_exit", name)) == 2
    assert set(clients.errors()) <= {(503, "worker_crashed")}, clients.errors()
    server.ctl("quarantine_clear", model=name)
    server.ctl("unload", name=name)


@pytest.mark.fault("F4")
def test_an_exception_fails_its_known_request_alone(server: Server) -> None:
    name = "known_raises"
    load(server, name)

    def orders(rng: random.Random) -> tuple[float, float]:
        return (RAISE if rng.random() < 0.1 else 0.0), 0.0

    with Bystander(server, BYSTANDER), KnownTraffic(server, name, 8, orders=orders) as clients:
        clients.await_right(600)
    assert set(clients.errors()) == {(500, "inference_failed")}
    assert success(server, name) == clients.right()
    assert server.gauge("nv_inference_request_failure", model=name) == sum(clients.errors().values())
    assert not server.events("worker_exit", name)
    server.ctl("unload", name=name)


@pytest.mark.fault("F10")
def test_a_worker_that_hangs_in_a_known_request_is_found_out_and_replaced(server: Server) -> None:
    name = "known_hangs"
    load(server, name, hang_limit="0.5s")
    with Bystander(server, BYSTANDER), KnownTraffic(server, name, 8, pace_s=0.002) as clients:
        for number in range(1, 3):
            client = KnownClient(server.address(), name, FORMS[number])
            for _ in range(4):
                assert client.ask([0.0] * 8).status == 200
            answer = client.ask([SLEEP, 30.0, float(number), *[5.0] * 5])
            assert (answer.status, answer.code) == (504, "worker_hung")
            assert answer.took_s < 0.5 + 2.0 + ANSWER_S
            assert "hung" in server.await_event("worker_exit", name, number)["cause"]
            client.close()
            clients.await_right(32)
        os.kill(server.pid(name), signal.SIGSTOP)
        assert "hung" in server.await_event("worker_exit", name, 3)["cause"]
        clients.await_right(32)
    assert set(clients.errors()) <= {(504, "worker_hung")}, "at most what ran when it was stopped"
    assert sum(clients.errors().values()) <= 1
    server.ctl("unload", name=name)


@pytest.mark.fault("F11")
@pytest.mark.parametrize("by", ["request", "model"])
def test_a_known_request_slower_than_its_deadline_is_a_504_and_the_worker_goes_on(server: Server, by: str) -> None:
    name = f"known_late_{by}"
    load(server, name, hang_limit="30s", **({"deadline": "0.2s"} if by == "model" else {}))
    pid = server.pid(name)
    timeout_us = 200_000 if by == "request" else 0
    with Bystander(server, BYSTANDER):
        for form in FORMS:
            client = KnownClient(server.address(), name, form, timeout_us=timeout_us)
            behind = KnownClient(server.address(), name, form, timeout_us=timeout_us)
            for _ in range(4):
                assert client.ask([0.0] * 8).status == behind.ask([0.0] * 8).status == 200
            waiting: list[int] = []
            thread = threading.Thread(target=lambda: waiting.append(behind.ask([0.0] * 8).status))  # noqa: B023
            answers = []
            for _ in range(2):
                answers.append(client.ask([SLEEP, 0.5, *[5.0] * 6]))
                if not thread.ident:
                    thread.start()  # behind a run that goes on
            thread.join(30)
            assert [(each.status, each.code) for each in answers] == [(504, "deadline_exceeded")] * 2, form
            assert all(0.2 <= each.took_s < 0.2 + ANSWER_S for each in answers)
            assert waiting[0] in (200, 504)
            eventually(lambda: client.ask([0.0] * 8).status == 200, "it serves again")  # noqa: B023 - called at once
            client.close()
            behind.close()
    assert server.pid(name) == pid
    server.ctl("unload", name=name)


# Changes of the model.


@pytest.mark.fault("F30")
@pytest.mark.parametrize("dims", [8, -1], ids=["declared", "undeclared"])
def test_a_reload_under_known_requests_fails_none_and_answers_by_the_new_edition_afterwards(
    server: Server, dims: int
) -> None:
    name = f"known_reload_{dims}".replace("-", "n")
    load(server, name, dims=dims)
    switched: list[tuple[float, int]] = []
    with Bystander(server, BYSTANDER), KnownTraffic(server, name, 8, pace_s=0.001) as clients:
        for edition in range(2, 6):
            clients.await_right(32)
            load(server, name, edition=edition, dims=dims)
            switched.append((time.monotonic(), edition))
        clients.await_right(64)
    assert not clients.errors(), clients.errors()
    for at_s, edition in switched:
        late = [each for each in clients.answers if each.sent_s > at_s and each.edition < edition]
        assert not late, (
            f"{len(late)} answers of an edition before {edition}, the first {late[0].sent_s - at_s:.3f} s late"
        )
    assert {each.edition for each in clients.answers} == {1, 2, 3, 4, 5}
    server.ctl("unload", name=name)


@pytest.mark.fault("F30", "F54")
def test_known_requests_to_a_model_that_is_unloaded_are_refused_until_it_is_back(server: Server) -> None:
    before, name = settled(server), "known_unload"
    load(server, name)
    unloaded: list[tuple[float, float]] = []
    with Bystander(server, BYSTANDER), KnownTraffic(server, name, 8, pace_s=0.002) as clients:
        for edition in (2, 3):
            clients.await_right(32)
            server.ctl("unload", name=name)
            gone_s = time.monotonic()
            eventually(lambda: clients.answers[-1].status != 200, "it is gone")
            back_s = time.monotonic()
            load(server, name, edition=edition)
            unloaded.append((gone_s, back_s))
        clients.await_right(64)
    codes = {code for _, code in clients.errors()}
    assert codes <= {"unknown_model", "model_loading", "unavailable"}, clients.errors()
    for gone_s, back_s in unloaded:
        served = [each for each in clients.answers if gone_s < each.sent_s < back_s and each.status == 200]
        assert not served, f"{len(served)} requests were served after the unload"
    server.ctl("unload", name=name)
    assert_clean(before, server)


@pytest.mark.fault("F30")
def test_an_upgrade_under_known_requests_costs_none(tmp_path_factory: pytest.TempPathFactory) -> None:
    repository = bystander_repository(tmp_path_factory.mktemp("repository"))
    write_ordered_model(repository, "known")
    with serving(repository, "--gateways", "2") as server, KnownTraffic(server, "known", 12, pace_s=0.002) as clients:
        old = {each["pid"] for each in server.status()["gateways"]}
        clients.await_right(100)
        server.ctl("upgrade", ticket="0123456789abcdef", force=True)
        clients.await_right(400)
        now = {each["pid"] for each in server.status()["gateways"]}
        assert not old & now
    assert not clients.errors(), clients.errors()


@pytest.mark.fault("F26")
def test_a_gateway_killed_under_known_requests_cuts_connections_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    repository = bystander_repository(tmp_path_factory.mktemp("repository"))
    write_ordered_model(repository, "known", pause_s=0.002)
    with serving(repository) as server:
        pid = server.pid("known")
        with KnownTraffic(server, "known", 12) as clients:
            for _ in range(3):
                clients.await_right(100)
                (old,) = [each["pid"] for each in server.status()["gateways"]]
                os.kill(old, signal.SIGKILL)
                eventually(
                    lambda: [each["pid"] for each in server.status()["gateways"]] not in ([old], [None]),  # noqa: B023
                    "another gateway",
                )
            clients.await_right(200)
        errors = clients.errors()
        assert set(errors) <= {(0, "")}, errors
        assert server.pid("known") == pid
        eventually(lambda: server.gauge("mmsup_requests_open", model="known") == 0, "nothing is counted as open")


# Overload.


@pytest.mark.fault("F51")
def test_a_flood_of_known_requests_is_refused_and_one_by_one_served(server: Server) -> None:
    before, name = settled(server), "known_flood"
    load(server, name, pause_s=0.01, max_queue=8)
    with Bystander(server, BYSTANDER), KnownTraffic(server, name, 32, pace_s=0.001) as clients:
        clients.await_right(100)
    assert set(clients.errors()) == {(503, "queue_full")}
    assert success(server, name) == clients.right()
    eventually(lambda: server.gauge("mmsup_requests_open", model=name) == 0, "nothing is counted as open")
    server.ctl("unload", name=name)
    assert_clean(before, server)


@pytest.mark.fault("F51")
@pytest.mark.alone
def test_a_flood_of_known_requests_of_one_model_costs_those_of_another_little(server: Server) -> None:
    load(server, "known_flooded")
    load(server, "known_beside")
    with KnownTraffic(server, "known_beside", 2, pace_s=0.005) as beside:
        alone_s = beside.p99_s(200)
        with KnownTraffic(server, "known_flooded", 48):
            flooded_s = beside.p99_s(200)
        assert not beside.errors()
    print(f"p99 alone {alone_s * 1e3:.1f} ms, beside a flood {flooded_s * 1e3:.1f} ms")
    assert flooded_s < max(8 * alone_s, 0.15), "its clients run in the same process as those of the flood"
    for name in ("known_flooded", "known_beside"):
        server.ctl("unload", name=name)


# Several kinds.


def test_many_kinds_of_known_requests_get_each_its_own_answer(server: Server) -> None:
    before = settled(server)
    names = [f"known_{number}" for number in range(4)]
    for number, name in enumerate(names):
        write_ordered_model(server.repository, name, edition=10 + number, dims=-1 if number % 2 else 8)
        server.ctl("load", name=name)
    write_identity_onnx(server.repository, "known_onnx")
    server.ctl("load", name="known_onnx")
    counts: Counter[str] = Counter()
    clients = [KnownClient(server.address(), name, form) for name in [*names, "known_onnx"] for form in FORMS]
    for round_ in range(40):
        for number, client in enumerate(clients):
            values = [0.0, 0.0, float(1000 + number), float(1000 + round_), 1.0, 2.0, 3.0, 4.0]
            answer = client.ask(values)
            assert (answer.status, answer.wrong) == (200, ""), answer
            assert answer.edition == (10 + number // 4 if number < 16 else 4)
            counts[str(number // 4)] += 1
    for client in clients:
        client.close()
    assert [success(server, name) for name in names] == [160] * 4
    for name in [*names, "known_onnx"]:
        server.ctl("unload", name=name)
    assert_clean(before, server)
