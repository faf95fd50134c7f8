"""Co-location groups: models that share one process, and its fate; models of other groups never notice."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from engines.build import write_fault_model
from harness.bystander import Bystander
from harness.invariants import assert_clean, assert_gone, server_processes, settled
from harness.server import Server, eventually, serving
from harness.victim import BYSTANDER, Victim, bystander_repository
from mmsup.supervisor.cli.ctl import control_client

pytestmark = pytest.mark.slow
OPTIONS: dict[str, Any] = {"group": "shared", "hang_limit": "500ms"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = bystander_repository(tmp_path_factory.mktemp("repository"))
    flags = ("--model-control-mode", "explicit", "--load-model", BYSTANDER, "--zygotes", "eager")
    with serving(repository, *flags) as running:
        running.await_zygote()
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)


@contextlib.contextmanager
def pair(server: Server, *names: str, **options: Any) -> Iterator[list[Victim]]:
    """Models of one group in one process, and afterwards what there was before. The bystander notices nothing."""
    before = settled(server)
    made = []
    for name in names:
        write_fault_model(server.repository, name, **(OPTIONS | options))
        server.ctl("load", name=name)
        made.append(Victim(server, name))
        made[-1].assert_serves()
    assert len({server.pid(name) for name in names}) == 1
    with Bystander(server, BYSTANDER):
        try:
            yield made
        finally:
            for name in names:
                server.ctl("unload", name=name)
                shutil.rmtree(server.repository / name)
    assert_clean(before, server)


def await_both(server: Server, pid: int, *names: str) -> int:
    """Wait until all of them serve in one other process than that; its pid."""

    def look() -> int | None:
        if any(server.model(name)["state"] != "ready" for name in names):
            return None
        now = {each for name in names for each in server.pids(name)}
        return now.pop() if len(now) == 1 and pid not in now else None

    return eventually(look, f"{names} in another process than {pid}: {server.status()['models']}")


def test_models_of_a_group_are_one_process_and_say_so(server: Server) -> None:
    with pair(server, "one", "two") as (one, two):
        rows = {each["model"]: each for each in server.ctl("ps")["processes"] if each["model"] in ("one", "two")}
        assert rows["one"]["pid"] == rows["two"]["pid"]
        assert (rows["one"]["shares_with"], rows["two"]["shares_with"]) == (["two/1"], ["one/1"])
        assert server.ctl("show", name="one")["group"] == "shared"
        with one.held():
            said = {name: server.model(name)["instances"][0]["running"] for name in ("one", "two")}
            waiting = two.in_background()
            two.await_busy()
        assert said == {"one": True, "two": False}
        assert waiting.result()[0] == 200
        for each in (one, two) * 20:
            each.assert_serves()


@pytest.mark.fault("F64")
def test_a_crash_is_that_of_the_model_that_ran_and_what_the_others_were_sent_is_answered(server: Server) -> None:
    with pair(server, "crashes", "beside", hang_limit="30s") as (crashes, beside):
        pid = server.pid("crashes")
        (running,) = crashes.queued({"mode": "sleep", "amount": 30.0})
        waiting = [beside.in_background() for _ in range(3)]
        beside.await_busy(3)
        os.kill(pid, signal.SIGSEGV)
        status, reply = running.result()
        assert (status, reply["code"]) == (503, "worker_crashed")
        assert [each.result()[0] for each in waiting] == [200] * 3
        await_both(server, pid, "crashes", "beside")
        assert crashes.death()["cause"] == "signal SIGSEGV"
        shared = beside.death()
        assert (shared["cause"], shared["next_delay_s"]) == ("shared", 0.0)
        assert "shares its process with crashes/1, which " in shared["text"]
        assert not server.ctl("why", name="beside")["deaths"]
        assert {each["model"] for each in server.ctl("quarantine")["requests"]} <= {"crashes"}
        for each in (crashes, beside):
            each.assert_serves()


@pytest.mark.fault("F64")
def test_a_hang_is_found_while_the_others_wait_and_ends_it_for_all(server: Server) -> None:
    with pair(server, "hangs", "waits") as (hangs, waits):
        pid, waiting = server.pid("hangs"), []
        hanging = hangs.in_background("hang")
        hangs.await_busy()
        waiting = [waits.in_background() for _ in range(3)]
        status, reply = hanging.result()
        assert (status, reply["code"]) == (504, "worker_hung")
        assert [each.result()[0] for each in waiting] == [200] * 3
        await_both(server, pid, "hangs", "waits")
        assert (hangs.death()["cause"], waits.death()["cause"]) == ("hung", "shared")


@pytest.mark.fault("F64")
def test_memory_beyond_the_cap_of_the_group_is_said_of_the_model_that_ran(server: Server) -> None:
    with pair(server, "eats", "starves", memory="256MiB") as (eats, starves):
        pid = server.pid("eats")
        status, reply = eats.send("allocate", 600)
        assert status == 503, reply
        await_both(server, pid, "eats", "starves")
        assert (eats.death()["cause"], starves.death()["cause"]) == ("oom", "shared")
        starves.assert_serves()


@pytest.mark.fault("F64")
def test_a_load_that_raises_fails_alone_and_one_that_ends_the_process_is_set_aside(server: Server) -> None:
    with pair(server, "good", "well") as (good, well):
        pid = server.pid("good")
        write_fault_model(server.repository, "raises", **OPTIONS, on_load="raise")
        with pytest.raises(control_client.ServerRefused) as refused:
            server.ctl("load", name="raises")
        assert refused.value.code == "load_failed"
        server.ctl("unload", name="raises")
        assert {server.pid("good"), server.pid("well")} == {pid}
        write_fault_model(server.repository, "ends", **OPTIONS, on_load="exit", on_load_amount=3)
        with pytest.raises(control_client.ServerRefused) as refused:
            server.ctl("load", name="ends")
        assert "was loaded" in well.death()["text"]
        await_both(server, pid, "good", "well")
        failed = server.await_state("ends", "failed")
        assert "its load ended the process that it shares" in failed["reason"]
        for each in (good, well):
            each.assert_serves()
        for name in ("raises", "ends"):
            server.ctl("unload", name=name)
            shutil.rmtree(server.repository / name)


def test_the_unload_of_one_leaves_the_others_where_they_are_and_a_load_joins_them(server: Server) -> None:
    with pair(server, "stays", "goes") as (stays, goes):
        pid, stop, failures = server.pid("stays"), threading.Event(), list[object]()

        def call() -> None:
            while not stop.is_set():
                status, reply = stays.send()
                if status != 200:
                    failures.append(reply)

        thread = threading.Thread(target=call)
        thread.start()
        try:
            for _ in range(3):
                server.ctl("unload", name="goes")
                assert goes.send()[0] == 404
                server.ctl("load", name="goes")
                goes.assert_serves()
        finally:
            stop.set()
            thread.join()
        assert not failures
        assert {server.pid("stays"), server.pid("goes")} == {pid}
        (instance,) = server.model("stays")["instances"]
        assert instance["shares_with"] == ["goes/1"]


def test_the_next_controller_goes_on_with_the_process_and_its_members(server: Server) -> None:
    with pair(server, "first", "second") as (first, second):
        pid, generation = server.pid("first"), server.status()["controller"]["generation"]
        os.kill(server.status()["controller"]["pid"], signal.SIGKILL)
        first.assert_serves()
        eventually(lambda: server.status()["controller"]["generation"] > generation, "the next controller")
        eventually(lambda: server.model("second")["state"] == "ready", "second is ready")
        assert {server.pid("first"), server.pid("second")} == {pid}
        os.kill(pid, signal.SIGKILL)
        await_both(server, pid, "first", "second")
        for each in (first, second):
            each.assert_serves()


def test_a_group_that_cannot_share_is_an_error_that_names_the_key(server: Server) -> None:
    with pair(server, "capped", "also_capped", memory="256MiB"):
        write_fault_model(server.repository, "more", **OPTIONS, memory="512MiB")
        with pytest.raises(control_client.ServerRefused) as refused:
            server.ctl("load", name="more")
        assert "more: memory: differs from that of model" in str(refused.value)
        shutil.rmtree(server.repository / "more")


def test_a_leak_moves_all_of_them_to_another_process_and_nobody_waits(server: Server) -> None:
    with pair(server, "leaks", "moves", recycle_memory="90MiB", memory="512MiB") as (leaks, moves):
        pid = server.pid("leaks")
        with Bystander(server, BYSTANDER):
            assert leaks.send("leak", 120)[0] == 200
            await_both(server, pid, "leaks", "moves")
        assert not server.events("worker_exit", "moves")
        moves.assert_serves()


def test_two_instances_are_two_processes_with_all_models_of_the_group(server: Server) -> None:
    before = settled(server)
    for name in ("left", "right"):
        write_fault_model(server.repository, name, **OPTIONS, instances=2)
        server.ctl("load", name=name)
    assert len(set(server.pids("left"))) == 2
    assert sorted(server.pids("left")) == sorted(server.pids("right"))
    os.kill(server.pids("left")[0], signal.SIGKILL)
    for name in ("left", "right") * 10:
        Victim(server, name).assert_serves()
    server.await_event("worker_ready", "right", 3)
    eventually(lambda: {len(set(server.pids(name))) for name in ("left", "right")} == {2}, "two of each")
    for name in ("left", "right"):
        server.ctl("unload", name=name)
        shutil.rmtree(server.repository / name)
    assert_clean(before, server)


def test_an_unload_while_it_loads_lets_the_others_live(server: Server) -> None:
    with pair(server, "lives", "too") as (lives, _):
        pid = server.pid("lives")
        write_fault_model(server.repository, "unwanted", **OPTIONS, on_load="sleep", on_load_amount=0.7)
        loading = threading.Thread(target=_load_in_vain, args=(server, "unwanted"))
        loading.start()
        server.await_event("worker_spawn", "unwanted")
        eventually(lambda: server.model("unwanted")["state"] == "loading", "it is being loaded")
        server.ctl("unload", name="unwanted")
        loading.join()
        lives.assert_serves()
        server.await_event("worker_stopped", "unwanted")
        assert {server.pid("lives"), server.pid("too")} == {pid}
        shutil.rmtree(server.repository / "unwanted")


def _load_in_vain(server: Server, name: str) -> None:
    with contextlib.suppress(control_client.ServerRefused):
        server.ctl("load", name=name)
