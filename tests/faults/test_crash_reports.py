"""Crash reports: cause, evidence and affected requests of a worker death, as stored and as `ctl why` explains them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from engines.build import write_fault_model
from engines.hostile_model import write_hostile_model
from harness.bystander import Bystander
from harness.invariants import assert_clean, settled
from harness.server import Http, Json, Server, eventually
from harness.victim import BYSTANDER, Victim, victim
from mmsup.supervisor.cli.ctl.control_client import ServerRefused
from mmsup.supervisor.postmortem.archive import MAX_PER_MODEL

pytestmark = pytest.mark.slow


def why(server: Server, name: str, number: int = 1) -> Json:
    """The result of `ctl why` for the nth death, once its report is on disk."""
    server.await_event("bundle_written", name, number)
    told = server.ctl("why", name=name)
    assert isinstance(told, dict)
    return told


def said(told: Json) -> str:
    return "\n".join(told["sentences"])


def answered_with(reply: Json) -> str:
    """The sentence about a single request that got this error."""
    return f"1 request was in flight: 1 had begun and was answered with {reply['code']}."


def cgroups(server: Server) -> bool:
    return bool(server.status()["isolation"].startswith("cgroup"))


@pytest.mark.parametrize(
    ("mode", "amount", "word", "fatal"),
    [
        ("segv", 0, "signal SIGSEGV", "Segmentation fault"),
        ("abort", 0, "signal SIGABRT", "Aborted"),
        ("exit", 3, "exit 3", ""),
        ("kill", 0, "signal SIGKILL", ""),
    ],
)
def test_a_crash_has_its_stack_its_output_and_its_restart_on_record(
    server: Server, mode: str, amount: int, word: str, fatal: str
) -> None:
    with victim(server, f"why_{mode}") as hurt:
        status, reply = hurt.send(mode, amount)
        assert status == 503
        hurt.assert_serves()
        told = why(server, hurt.name)
        assert answered_with(reply) in said(told)
        bundle = told["bundle"]
        assert bundle["cause"]["word"] == word
        assert bundle["model"] == hurt.name
        if fatal:
            assert bundle["stack"]["fatal"] == fatal
            assert bundle["stack"]["in_model"]["function"] == "harm"
            assert "It stood in" in said(told)
        else:
            assert bundle["stack"] is None
        assert bundle["memory"]["samples"]
        assert len(bundle["artefact"]["sha256"]) == len(bundle["configuration"]["sha256"]) == 64
        assert bundle["artefact"]["files"] >= 1
        assert [each["event"] for each in bundle["story"]][-1] == "worker_exit"
        assert "served again" in said(told), told
        assert len(told["deaths"]) == 1


@pytest.mark.parametrize(("mode", "function"), [("kill", None), ("segv", "harm")])
def test_a_stack_that_somebody_asked_for_earlier_is_none_of_the_death(
    server: Server, mode: str, function: str | None
) -> None:
    with victim(server, f"asked_{mode}") as hurt:
        (pid,) = server.pids(hurt.name)
        for number in (signal.SIGUSR2, signal.SIGQUIT):
            os.kill(pid, number)
        eventually(lambda: " in _run_code" in "\n".join(server.ctl("logs", name=hurt.name)["lines"]), "it has told")
        hurt.assert_serves()
        assert hurt.send(mode)[0] == 503
        told = why(server, hurt.name)
        stack = told["bundle"]["stack"]
        assert (stack and stack["in_model"]["function"]) == function
        assert (stack["threads"] if stack else 1) == 1
        assert "It had printed nothing but stacks of its threads." in told["sentences"]


@pytest.mark.fault("F10")
@pytest.mark.parametrize("mode", ["deadlock", "spin", "hang"])
def test_a_worker_that_hangs_tells_where_before_it_is_killed(server: Server, mode: str) -> None:
    with victim(server, f"where_{mode}", deadline="2s" if mode == "spin" else "60s") as hurt:
        status, reply = hurt.send(mode)
        assert status == 504
        hurt.assert_serves()
        told = why(server, hurt.name)
        if reply["code"] != "deadline_exceeded":  # a loop goes on to the deadline, which may answer first
            assert answered_with(reply) in said(told)
        bundle = told["bundle"]
        assert bundle["cause"]["code"] == "worker_hung"
        assert bundle["evidence"]["activity"] == "busy"
        assert bundle["evidence"]["activity_for_s"] > bundle["evidence"]["hang_limit_s"]
        assert bundle["stack"]["in_model"]["function"] == "harm"
        assert bundle["stack"]["in_model"]["file"].endswith("model.py")
        assert bundle["stack"]["fatal"] == ""
        assert "harm, model.py line" in said(told)


def test_a_worker_that_is_stopped_is_not_waited_for(server: Server) -> None:
    with victim(server, "where_stopped") as hurt:
        assert hurt.send("stop")[0] == 504
        hurt.assert_serves()
        told = why(server, hurt.name)
        assert told["bundle"]["stack"] is None
        assert "It left no stack." in told["sentences"]


def test_a_load_that_hangs_tells_where(server: Server) -> None:
    before = settled(server)
    # Long enough for a busy machine to have come to the load: what still starts Python cannot be asked.
    write_fault_model(server.repository, "where_load", on_load="hang", load_timeout="5s")
    with Bystander(server, BYSTANDER):
        with pytest.raises(ServerRefused):
            server.ctl("load", name="where_load")
        told = why(server, "where_load")
    assert told["bundle"]["cause"]["code"] == "load_timeout"
    assert told["bundle"]["stack"]["in_model"]["function"] == "harm"
    server.ctl("unload", name="where_load")
    assert_clean(before, server)


@pytest.mark.cgroup1
def test_an_out_of_memory_shows_counter_cap_and_the_one_request(server: Server) -> None:
    if not cgroups(server):
        pytest.skip(f"no control groups here: {server.status()['isolation']}")
    with victim(server, "why_oom", memory="192MiB", hang_limit="30s") as hurt:
        status, reply = hurt.send("allocate", 600)
        assert (status, reply["code"]) == (503, "worker_oom"), reply
        hurt.assert_serves()
        told = why(server, hurt.name)
        evidence = told["bundle"]["evidence"]
        assert (evidence["oom_kills_before"], evidence["cap_bytes"]) == (0, 192 << 20)
        assert evidence["oom_kills_after"] >= 1
        assert evidence["peak_bytes"] >= 150 << 20
        assert told["bundle"]["memory"]["of"].startswith("its control group")
        assert told["bundle"]["requests"]["begun"] == 1
        assert answered_with(reply) in said(told)
        assert "oom_kill counter" in said(told)
        assert "raise `memory`" in said(told)


def test_a_load_that_fails_says_what_it_said(server: Server) -> None:
    before = settled(server)
    write_fault_model(server.repository, "why_load", on_load="raise")
    with Bystander(server, BYSTANDER):
        with pytest.raises(ServerRefused):
            server.ctl("load", name="why_load")
        told = why(server, "why_load")
    assert told["bundle"]["cause"]["code"] == "load_failed"
    assert "asked to raise" in said(told)
    assert any("RuntimeError" in line for line in told["bundle"]["output"])
    server.ctl("unload", name="why_load")
    assert_clean(before, server)


def test_requests_in_flight_are_named_and_told_from_those_that_had_not_begun(server: Server) -> None:
    with victim(server, "why_flight", hang_limit="30s") as hurt:
        executing = hurt.in_background("sleep", 20)
        hurt.await_busy(1)
        queued = [hurt.in_background("ok") for _ in range(2)]
        hurt.await_busy(3)
        named(server, hurt)
        os.kill(server.pid(hurt.name), signal.SIGKILL)
        assert executing.result()[1]["code"] == "worker_crashed"
        assert [each.result()[0] for each in queued] == [200, 200]
        hurt.assert_serves()
        told = why(server, hurt.name)
        assert (
            "4 requests were in flight: 1 had begun and was answered with worker_crashed; "
            "2 had not begun and went to the next worker; nobody waited for 1 any more."
        ) in said(told)
        requests = told["bundle"]["requests"]
        assert requests["is_complete"]
        assert (requests["in_flight"], requests["begun"]) == (4, 1)
        assert [each["begun"] for each in requests["named"]] == [True, False, False, False]
        assert [each["id"] for each in requests["named"] if each["id"]] == ["the-named-one"]
        assert [each["abandoned"] for each in requests["named"]].count(True) == 1
        assert all(each["age_s"] > 0 for each in requests["named"])


def test_a_bad_answer_is_told_of_as_its_client_met_it(server: Server) -> None:
    before = settled(server)
    write_hostile_model(server.repository, "why_lies")
    server.ctl("load", name="why_lies")
    http = Http(server.address())
    try:
        status, reply = http.infer("why_lies", x=("FP32", [1], [1.0]), mode=("BYTES", [1], ["datatype"]))
    finally:
        http.close()
    assert status == 502
    told = why(server, "why_lies")
    assert f"The request that it answered so got {reply['code']}; no other was in flight." in said(told)
    server.ctl("unload", name="why_lies")
    assert_clean(before, server)


@pytest.mark.cgroup1
def test_what_took_all_memory_is_not_said_to_have_been_run_once_more(server: Server) -> None:
    if not cgroups(server):
        pytest.skip(f"no control groups here: {server.status()['isolation']}")
    with victim(server, "why_no_rerun", memory="192MiB", hang_limit="30s", retry_on_crash=True) as hurt:
        _, reply = hurt.send("allocate", 600)
        hurt.assert_serves()
        assert answered_with(reply) in said(why(server, hurt.name))


def named(server: Server, hurt: Victim) -> None:
    """One more request, with an id, whose client disconnects once the worker has it."""
    body = hurt.call() | {"id": "the-named-one"}
    http = Http(server.address())
    http.connection.request("POST", f"/v2/models/{hurt.name}/infer", json.dumps(body))
    hurt.await_busy(4)
    http.close()
    eventually(lambda: server.gauge("mmsup_requests_open", model=hurt.name) == 3, "the client has left")


def test_twelve_deaths_leave_the_last_bundles_and_no_more(server: Server) -> None:
    with victim(server, "why_many", instances=4) as hurt:
        for times in range(3):
            pids = eventually(lambda: found if len(found := server.pids(hurt.name)) == 4 else None, "four workers")
            eventually(lambda: all(each["state"] == "ready" for each in server.model(hurt.name)["instances"]), "ready")
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            server.await_event("bundle_written", hurt.name, 4 * (times + 1))
        hurt.assert_serves()
        told = server.ctl("why", name=hurt.name)
        last = told["deaths"][0]["number"]
        assert [each["number"] for each in told["deaths"]] == [last - back for back in range(MAX_PER_MODEL)]
        files = sorted((server.state_dir / "deaths" / hurt.name).iterdir())
        assert [int(each.stem) for each in files] == [last - back for back in reversed(range(MAX_PER_MODEL))]
        assert {each.stat().st_mode & 0o777 for each in files} == {0o600}
        assert server.ctl("why", name=hurt.name, death=2)["bundle"]["number"] == last - 1
        with pytest.raises(ServerRefused, match="5 deaths are on record"):
            server.ctl("why", name=hurt.name, death=6)


def test_a_model_without_a_death_has_none_and_an_unknown_one_is_refused(server: Server) -> None:
    told = server.ctl("why", name=BYSTANDER)
    assert told["bundle"] is None
    assert said(told).startswith(f"No worker of {BYSTANDER} has died")
    with pytest.raises(ServerRefused) as refused:
        server.ctl("why", name="nobody")
    assert refused.value.code == "unknown_model"


def test_values_of_the_environment_and_of_requests_are_in_no_bundle(server: Server) -> None:
    with victim(server, "why_secret", env={"TOKEN": "hunter2hunter2"}) as hurt:
        hurt.send("exit", 3, x=[123456.5, 654321.5, 1.0])
        hurt.assert_serves()
        why(server, hurt.name)
        (path,) = (server.state_dir / "deaths" / hurt.name).iterdir()
        text = path.read_text()
        assert "TOKEN" in text
        assert "hunter2" not in text
        assert "123456.5" not in text


def test_clients_cannot_ask_why(server: Server) -> None:
    http = Http(server.address())
    for path in ("/v2/repository/models/bystander/why", "/v2/models/bystander/why"):
        assert http.send("POST", path, "{}")[0] in (404, 405)
    http.close()


def test_a_controller_killed_right_after_a_death_costs_one_bundle_at_most(server: Server) -> None:
    with victim(server, "why_brain") as hurt:
        hurt.send("exit", 41)
        hurt.assert_serves()
        why(server, hurt.name)
        hurt.send("exit", 42)
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.status()["brain"]["pid"], signal.SIGKILL)
        hurt.assert_serves()
        hurt.send("exit", 43)
        hurt.assert_serves()
        eventually(lambda: server.ctl("why", name=hurt.name)["deaths"][0]["cause"] == "exit 43", "the next bundle")
        causes = [each["cause"] for each in server.ctl("why", name=hurt.name)["deaths"]]
        assert causes in (["exit 43", "exit 42", "exit 41"], ["exit 43", "exit 41"])
        assert not list((server.state_dir / "deaths").rglob("*.tmp"))


def test_a_disk_that_refuses_costs_bundles_and_nothing_else(server: Server) -> None:
    with victim(server, "why_disk") as hurt:
        folder = server.state_dir / "deaths" / hurt.name
        folder.parent.mkdir(exist_ok=True)
        folder.write_text("no folder can be made here")
        hurt.send("exit", 5)
        hurt.assert_serves()
        lost = server.await_event("bundle_lost", hurt.name)
        assert lost["lost"] >= 1
        told = server.ctl("why", name=hurt.name)
        assert told["bundle"]["cause"]["word"] == "exit 5"
        folder.unlink()
        hurt.send("exit", 6)
        hurt.assert_serves()
        assert why(server, hurt.name)["bundle"]["cause"]["word"] == "exit 6"


def test_the_bundle_can_be_exported_by_the_command_line(server: Server, tmp_path: Path) -> None:
    import subprocess
    import sys

    with victim(server, "why_export") as hurt:
        hurt.send("segv")
        hurt.assert_serves()
        why(server, hurt.name)
        command = [sys.executable, "-m", "mmsup.supervisor.cli", "ctl", "why", hurt.name]
        command += ["--runtime-dir", str(server.runtime_dir)]
        plain = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert "Segmentation fault" in plain.stdout
        file = tmp_path / "bundle.json"
        subprocess.run([*command, "--bundle", str(file)], capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(file.read_text())["cause"]["word"] == "signal SIGSEGV"
        assert file.stat().st_mode & 0o777 == 0o600
        out = subprocess.run([*command, "--bundle", "-"], capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(out.stdout) == json.loads(file.read_text())
