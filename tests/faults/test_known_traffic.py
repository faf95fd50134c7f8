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
from engines.hostile_model import fault_value, write_hostile_model
from harness import combination, raw_http
from harness.bystander import Bystander
from harness.invariants import assert_clean, settled
from harness.known_traffic import DIE, FORMS, RAISE, SLEEP, VALUES, KnownClient, KnownTraffic, write_ordered_model
from harness.server import Server, eventually, serving
from harness.victim import BYSTANDER, bystander_repository

pytestmark = pytest.mark.slow
ANSWER_S = 0.1 + 1.0
"""Promised time from a death to the answers, and tolerance for a loaded machine."""


def load(server: Server, name: str, **options: object) -> None:
    write_ordered_model(server.repository, name, **options)  # type: ignore[arg-type] # by the caller
    server.ctl("load", name=name)


def unload(server: Server, name: str) -> None:
    server.ctl("unload", name=name)
    eventually(lambda: not server.model(name)["instances"], f"{name} is gone")


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
    unload(server, name)
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
    # What had run in the same turn as the one that killed is answered with the verdict too: its reply was not sent.
    assert set(clients.errors()) <= {(503, "worker_crashed")}, clients.errors()
    assert sum(clients.errors().values()) <= 3 * 7
    unload(server, name)


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
    unload(server, name)


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
    unload(server, name)


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
    # What had run in the same turn as the one that hung is answered with the verdict too: its reply was not sent.
    assert set(clients.errors()) <= {(504, "worker_hung")}, clients.errors()
    assert sum(clients.errors().values()) <= 3 * 7
    unload(server, name)


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
    unload(server, name)


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
    unload(server, name)


@pytest.mark.fault("F30", "F54")
def test_known_requests_to_a_model_that_is_unloaded_are_refused_until_it_is_back(server: Server) -> None:
    before, name = settled(server), "known_unload"
    load(server, name)
    unloaded: list[tuple[float, float]] = []
    with Bystander(server, BYSTANDER), KnownTraffic(server, name, 8, pace_s=0.002) as clients:
        for edition in (2, 3):
            clients.await_right(32)
            unload(server, name)
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
    unload(server, name)
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
    unload(server, name)
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
        unload(server, name)


# Several kinds.


@pytest.mark.fault("F2", "F13")
def test_known_requests_in_batches_share_a_death_once(server: Server) -> None:
    name = "known_batches"
    load(server, name, batch=8, pause_s=0.003, batching={"delay": "1ms"})
    poison = [DIE, *[7.0] * 7]
    with Bystander(server, BYSTANDER), KnownTraffic(server, name, 12, row=True) as clients:
        killer = KnownClient(server.address(), name, "binary", row=True)
        for _ in range(4):
            assert killer.ask([0.0] * VALUES).status == 200
        clients.await_right(64)
        codes: list[str] = []
        while "request_quarantined" not in codes:
            codes.append(killer.ask(poison).code)
            assert len(codes) < 5, codes
            clients.await_right(24)
        killer.close()
    assert codes[:-1] == ["worker_crashed"] * 2
    assert len(server.events("worker_exit", name)) == 2
    assert set(clients.errors()) <= {(503, "worker_crashed")}, clients.errors()
    assert sum(clients.errors().values()) <= 2 * 11
    assert success(server, name) == clients.right() + 4
    server.ctl("quarantine_clear", model=name)
    unload(server, name)


def test_requests_that_differ_in_their_values_alone_are_served_as_known_ones(server: Server) -> None:
    if combination.is_plain():
        pytest.skip("with --http-front plain there are none")
    for name, options in (("known_single", {}), ("known_rows", {"batch": 4})):
        load(server, name, **options)
        with KnownTraffic(server, name, 4, row=bool(options), forms=("binary", "binary with id")) as clients:
            clients.await_right(400)
        known = server.gauge("mmsup_known_requests_total", model=name)
        assert 0.9 * clients.right() <= known <= clients.right()
        unload(server, name)


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
        unload(server, name)
    assert_clean(before, server)


# Workers that do not reply as they should.

LIES = ("datatype", "datatype longer", "shape", "shape negative", "rank", "twice", "words", "nothing", "places")
MORE_LIES = ("garbage", "nested", "a drop", "undeclared", "time", "negative time", "code", "records", "need")
"""What ends the worker."""


@pytest.mark.fault("F38")
@pytest.mark.parametrize("lies", [LIES, MORE_LIES], ids=["words", "records"])
def test_a_known_reply_that_lies_fails_its_request_and_ends_its_worker(server: Server, lies: tuple[str, ...]) -> None:
    before, name = settled(server), f"known_lies_{lies[0]}"
    write_hostile_model(server.repository, name, has_mode=False)
    server.ctl("load", name=name)
    with Bystander(server, BYSTANDER), KnownTraffic(server, name, 4, pace_s=0.01) as clients:
        liar = KnownClient(server.address(), name, "binary")
        for count, lie in enumerate(lies, 1):
            for _ in range(4):
                assert liar.ask([1.0] * VALUES).status == 200
            answer = liar.ask([fault_value(lie), *[1.0] * (VALUES - 1)])
            # The last reply of a frame is the one that lies: it may be that to another request of the same model.
            told = (answer.status, answer.code)
            assert told in ((502, "bad_worker_reply"), (503, "worker_crashed"), (200, "")), (lie, answer)
            assert not answer.wrong, (lie, answer)
            assert server.await_event("worker_exit", name, count)["cause"] == "bad reply", lie
            server.ctl("load", name=name)  # a new history: it is not the loop of crashes that is looked at here
            clients.await_right(8)
        liar.close()
    assert {code for _, code in clients.errors()} <= {"bad_worker_reply", "worker_crashed"}, clients.errors()
    assert sum(clients.errors().values()) <= len(lies) * 4
    unload(server, name)
    assert_clean(before, server)


@pytest.mark.fault("F41")
def test_known_replies_that_are_lost_doubled_late_or_unknown_meet_no_other_request(server: Server) -> None:
    before, name = settled(server), "known_odd"
    write_hostile_model(server.repository, name, has_mode=False)
    server.ctl("load", name=name)
    pid = server.pid(name)
    with Bystander(server, BYSTANDER), KnownTraffic(server, name, 4, pace_s=0.01, timeout_us=5_000_000) as clients:
        odd = KnownClient(server.address(), name, "binary", timeout_us=300_000)
        for round_ in range(3):
            for _ in range(4):
                assert odd.ask([1.0] * VALUES).status == 200
            for fault in ("doubled", "unknown"):
                answer = odd.ask([fault_value(fault), *[float(round_)] * (VALUES - 1)])
                assert (answer.status, answer.wrong) == (200, ""), fault
        odd.close()
        clients.await_right(20)
    assert not clients.errors()
    odd = KnownClient(server.address(), name, "json", timeout_us=300_000)
    for round_ in range(3):
        for _ in range(4):
            answer = odd.ask([1.0] * VALUES)
            assert (answer.status, answer.wrong) == (200, "")
        for fault in ("late", "lost"):
            answer = odd.ask([fault_value(fault), *[float(round_)] * (VALUES - 1)])
            assert (answer.status, answer.code) == (504, "deadline_exceeded"), fault
    odd.close()
    assert server.pid(name) == pid
    unload(server, name)
    assert_clean(before, server)


# Memory.


@pytest.mark.fault("F51")
def test_ever_new_requests_take_a_bounded_part_of_the_gateways_memory(server: Server) -> None:
    name = "known_bounded"
    load(server, name, dims=-1)
    (gateway,) = [each["pid"] for each in server.status()["gateways"]]
    old = [KnownClient(server.address(), name, form) for form in FORMS]
    for client in old:
        for _ in range(4):
            assert client.ask([0.0] * VALUES).status == 200
    seen: list[int] = []
    with (
        Bystander(server, BYSTANDER),
        raw_http.connected(server.address()) as connection,
        connection.makefile("rb") as replies,
    ):
        for number in range(16):
            for first in range(0, 1500, 25):
                connection.sendall(b"".join(new_request(name, number * 1500 + first + each) for each in range(25)))
                for _ in range(25):
                    head = list(iter(replies.readline, b"\r\n"))
                    assert head[0].startswith(b"HTTP/1.1 200 "), head
                    replies.read(next(int(each.split()[1]) for each in head if each.startswith(b"Content-Length")))
            seen.append(private_bytes(gateway))
            for each in old:
                answer = each.ask([0.0, 0.0, float(number), *[9.0] * 5])
                assert (answer.status, answer.wrong) == (200, "")
    print([each >> 20 for each in seen])
    half = len(seen) // 2
    assert max(seen[half:]) < max(seen[:half]) + (8 << 20), "it grows without end"
    assert max(seen) < seen[0] + (96 << 20), "what is kept of requests takes more than it should"
    for each in old:
        each.close()
    unload(server, name)


def new_request(model: str, number: int) -> bytes:
    """One whose head, words, shape, id or text around the numbers nobody has sent before. Its answer is JSON."""
    lines, size, words = [], VALUES, ""
    match number % 5:
        case 0:
            lines = [f"X-New-{number}: {number}"]
        case 1:
            words = f'"id":"n{number}",'
        case 2:
            words = " " * (number % 199) + "\n" * (number // 199 % 199)
        case 3:
            size = 4 + number % 900
        case _:
            words = f'"parameters":{{"p{number}":{number}}},'
    values = ",".join(["0"] * size)
    body = f'{{{words}"inputs":[{{"name":"x","datatype":"FP32","shape":[{size}],"data":[{values}]}}]}}'.encode()
    return raw_http.head(model, *lines, size=len(body)) + body


def private_bytes(pid: int) -> int:
    """Proportional memory (PSS) of a process."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))
