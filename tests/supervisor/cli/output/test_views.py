from __future__ import annotations

from typing import Any

import pytest

from mmsup.supervisor.cli.output import views

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "ready": False,
    "reason": "'bert' is loading",
    "uptime_s": 75,
    "keeper": {"pid": 10},
    "brain": {"pid": 11, "generation": 2},
    "gateways": [{"pid": 12, "generation": 1, "http": "127.0.0.1:8000"}],
    "spare_gateways": {"wanted": 1, "ready": 0},
    "addresses": {"http": "127.0.0.1:8000"},
    "models": [
        {
            "name": "bert",
            "state": "ready",
            "reason": "",
            "instances": [
                {
                    "id": 1,
                    "version": "1",
                    "pid": 99,
                    "generation": 4,
                    "state": "ready",
                    "restarts": 3,
                    "memory_bytes": 1 << 20,
                }
            ],
        },
        {"name": "gone\x1b[2J", "state": "failed", "reason": "no such file", "instances": []},
    ],
}
EVENT = {
    "time": "2025-01-02T03:04:05.678+00:00",
    "event": "worker_exit",
    "model": "bert",
    "instance": 1,
    "generation": 4,
    "text": "killed by SIGKILL",
    "oom_kill": 0,
    "requests": [1, 2],
    "peak_bytes": 3 << 20,
    "empty": None,
    "tail": [],
}


def test_status_shows_processes_and_a_line_for_each_worker(capsys: pytest.CaptureFixture[str]) -> None:
    views.status(STATUS)
    shown = capsys.readouterr().out
    assert "0.1.0, not ready: 'bert' is loading, up 1m 15s" in shown
    assert "controller  pid 11, generation 2" in shown
    views.status({**STATUS, "controller": {"pid": 13, "generation": 4}})
    assert "controller  pid 13, generation 4" in capsys.readouterr().out
    assert "0 of 1 gateways ready" in shown
    row = next(line for line in shown.splitlines() if line.startswith("bert")).split()
    assert row == ["bert", "1", "ready", "1", "99", "4", "3", "1MiB"]
    assert "no such file" in shown


def test_no_view_lets_a_control_character_through(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2Jevil\n"
    instance = {"id": hostile, "state": hostile}
    views.status(
        {"models": [{"name": hostile, "reason": hostile, "instances": [instance]}], "addresses": {hostile: hostile}}
    )
    views.models({"models": [{"name": hostile, "versions": {hostile: hostile}, "engine": hostile}]})
    views.processes({"processes": [{"role": hostile, "model": hostile, "version": hostile}]})
    views.changed({"name": hostile, "state": hostile})
    views.quarantine({"requests": [{"model": hostile, "version": hostile, "fingerprint": hostile, "state": hostile}]})
    views.cleared({"cleared": hostile})
    views.model(
        {
            "name": hostile,
            "specs": [{"version": hostile, hostile: {hostile: hostile}}],
            "metadata": {"inputs": [{"name": hostile, "shape": [1]}]},
            "instances": [instance],
            "faults": [hostile, {"place": hostile, "text": hostile}],
            "story": [{"event": hostile, "time": hostile, "text": hostile, hostile: hostile}],
        }
    )
    views.why({"sentences": [hostile], "deaths": [{"time": hostile, "cause": hostile}] * 2})
    shown = capsys.readouterr().out
    assert "evil" in shown
    assert all(line.isprintable() for line in shown.split("\n"))


def test_an_event_is_one_line_with_time_name_worker_cause_and_fields() -> None:
    line = views.event(EVENT)
    assert line[:10] in ("2025-01-01", "2025-01-02", "2025-01-03")
    assert "worker_exit" in line
    assert "bert #1.4  killed by SIGKILL" in line
    assert line.endswith("oom_kill=0  requests=[1, 2]  peak_bytes=3MiB")


@pytest.mark.parametrize(("place", "shown"), [("host-memory", True), ("unloaded", False), (None, False)])
def test_where_a_model_is_asleep_is_shown_if_it_is_somewhere(
    place: str | None, shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    views.model({"name": "m", "state": "asleep", "asleep_in": place})
    assert ("asleep in" in capsys.readouterr().out) is shown


def test_an_event_without_a_model_is_printed_too() -> None:
    assert views.event({"time": "?", "event": "brain_exit"}).split() == ["?", "brain_exit"]


@pytest.mark.parametrize(
    "view",
    [
        views.status,
        views.models,
        views.processes,
        views.changed,
        views.model,
        views.quarantine,
        views.cleared,
        views.devices,
        views.released,
        views.why,
    ],
)
def test_a_result_without_its_members_is_printed_empty(view: Any, capsys: pytest.CaptureFixture[str]) -> None:
    view({})
    assert "None" not in capsys.readouterr().out


def test_why_lists_the_other_deaths_if_there_are_any(capsys: pytest.CaptureFixture[str]) -> None:
    views.why({"sentences": ["One."], "deaths": [{"cause": "oom"}]})
    assert capsys.readouterr().out == "One.\n"
    views.why({"sentences": ["One."], "deaths": [{"cause": "oom"}, {"cause": "exit 3", "instance": 7}]})
    assert capsys.readouterr().out.splitlines()[-1].split()[-2:] == ["exit", "3"]


def test_the_quarantine_has_a_row_for_each_request(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"model": "m", "version": "3", "state": "blocked", "deaths": 2, "left_s": 75.2, "fingerprint": "0aff"}
    views.quarantine({"requests": [row]})
    views.cleared({"model": "m", "cleared": 4})
    head, line, cleared = [each.split() for each in capsys.readouterr().out.splitlines()]
    assert head == ["MODEL", "VERSION", "STATE", "DEATHS", "LEFT", "FINGERPRINT"]
    assert line == ["m", "3", "blocked", "2", "1m", "15s", "0aff"]
    assert cleared == ["m:", "4", "blocked,", "now", "free"]


def test_devices_show_which_are_set_aside_or_stale(capsys: pytest.CaptureFixture[str]) -> None:
    rings = ["allocator", "watch"]
    faulty = {
        "device": "cuda:0",
        "set_aside": True,
        "rings": rings,
        "reason": "faulty",
        "memory_used_bytes": 1 << 30,
        "workers": 2,
    }
    views.devices({"devices": [faulty, {"device": "cuda:1", "stale": True}, {"device": "cuda:2"}]})
    views.released({"released": ["GPU-a"]})
    views.released({"released": []})
    head, *lines = [each.split() for each in capsys.readouterr().out.splitlines()]
    assert head == ["DEVICE", "NAME", "STATE", "MEMORY", "TOTAL", "SEEN", "WORKERS", "CAPS", "UUID", "REASON"]
    assert lines[0] == ["cuda:0", "set", "aside", "1GiB", "2", "allocator", "watch", "faulty"]
    assert lines[1:3] == [["cuda:1", "stale"], ["cuda:2", "open"]]
    assert [" ".join(each) for each in lines[3:]] == ["GPU-a: open again", "nothing was set aside there"]


def test_devices_show_who_holds_their_memory_and_the_status_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    holder = {"model": "bert", "version": "2", "pid": 77, "held_bytes": 3 << 30, "source": "nvml", "instance": 1}
    held_by = [{**holder, "gpu_memory_bytes": 4 << 30}, {**holder, "model": "free", "source": "self"}]
    row = {"device": "cuda:0", "held_by": held_by, "held_by_others_bytes": 1 << 30}
    views.devices({"devices": [row]})
    head, *lines = [each.split() for each in capsys.readouterr().out.splitlines()[3:]]
    assert head == ["DEVICE", "MODEL", "PID", "HELD", "AS", "GPU_MEMORY"]
    assert lines == [
        ["cuda:0", "bert/2", "77", "3GiB", "nvml", "4GiB"],
        ["cuda:0", "free/2", "77", "3GiB", "self"],
        ["cuda:0", "(others)", "1GiB"],
    ]
    views.devices({"devices": [row], "models": []})
    assert "bert" not in capsys.readouterr().out


def test_the_status_shows_devices_if_there_are_any(capsys: pytest.CaptureFixture[str]) -> None:
    views.status({"devices": [{"device": "cuda:0", "uuid": "GPU-a"}]})
    assert "GPU-a" in capsys.readouterr().out
    views.status({"devices": []})
    assert "DEVICE" not in capsys.readouterr().out


def test_the_status_names_what_was_kept_aside(capsys: pytest.CaptureFixture[str]) -> None:
    views.status({"state_kept_aside": ["wanted.json.kept-1"]})
    assert "kept aside  could not be read, see `mmsup ctl events`: wanted.json.kept-1" in capsys.readouterr().out
    views.status({"state_kept_aside": []})
    assert "kept aside" not in capsys.readouterr().out


def test_list_and_ps_have_their_columns(capsys: pytest.CaptureFixture[str]) -> None:
    views.models(
        {"models": [{"name": "m", "wanted": "up", "state": "ready", "versions": {"1": "ready"}, "instances": 2}]}
    )
    views.processes(
        {
            "processes": [
                {"role": "brain", "id": 0, "pid": 5, "uptime_s": 3.21, "restarts": 1, "seat": None},
                {
                    "role": "worker",
                    "id": 7,
                    "model": "m",
                    "version": "1",
                    "memory_bytes": 5 << 20,
                    "requests": 12,
                    "restarts": 2,
                    "seat": None,
                },
            ]
        }
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["m", "up", "ready", "1", "ready", "2", "-"]
    assert lines[3] == ["controller", "controller", "5", "1", "3.2s"]
    assert lines[4] == ["m/1", "#7", "worker", "5MiB", "2", "12"]


def test_ps_names_gateways_by_seat_and_leaves_the_restarts_of_a_seat_unknown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gateway = {"role": "gateway", "restarts": 2, "generation": 3}
    rows = [
        {**gateway, "id": 1, "pid": 8, "state": "ready", "seat": 0},
        {**gateway, "id": 0, "pid": 9, "state": "spare", "seat": None},
        {**gateway, "id": 1, "pid": 7, "state": "ready"},  # of an older server
    ]
    views.processes({"processes": rows})
    seated, standby, old = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert seated == ["gateway", "0", "gateway", "ready", "8", "3"]
    assert standby == ["standby", "gateway", "standby", "9", "3"]
    assert old == ["gateway", "1", "gateway", "ready", "7", "3", "2"]


def test_an_unload_ends_with_unloaded_whatever_state_its_worker_is_in(capsys: pytest.CaptureFixture[str]) -> None:
    views.unloaded({"name": "m", "state": "draining", "versions": {}, "seconds": 0.04})
    assert capsys.readouterr().out == "m: unloaded after 0.0s\n"


def test_an_empty_result_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    views.quarantine({"requests": []})
    views.devices({"devices": [], "why": "the NVIDIA driver is not loaded"})
    assert capsys.readouterr().out == "none\nno GPU here: the NVIDIA driver is not loaded\n"


def test_show_has_readable_sizes_and_shapes_with_the_batch_dimension(capsys: pytest.CaptureFixture[str]) -> None:
    views.model(
        {
            "name": "m",
            "specs": [{"name": "m", "version": "1", "memory_bytes": 512 << 20, "env": {}, "config": {"a": 1}}],
            "metadata": {
                "max_batch_size": 8,
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [3, 4]}],
                "outputs": [{"name": "y", "datatype": "INT64", "shape": []}],
            },
        }
    )
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines() if "memory" in line] == [["memory_bytes", "512MiB"]]
    assert "x  FP32  [-1, 3, 4]" in shown
    assert "y  INT64  [-1]" in shown
    assert "config" not in shown


POOL = {"memory": "host memory", "budget_bytes": 2 << 30, "in_use_bytes": 1 << 30, "loading_bytes": 256 << 20}


def test_status_and_list_show_what_workers_hold_against_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    text = "workers hold 1GiB, 256MiB of it loading; the budget is 2GiB by default"
    views.status({**STATUS, "memory": {"pools": [POOL]}})
    assert f"host memory  {text}" in capsys.readouterr().out
    views.models({"models": [], "memory": {"pools": [{**POOL, "configured": True}]}})
    assert f"host memory: {text.removesuffix(' by default')}\n" in capsys.readouterr().out


def test_show_says_of_each_worker_how_it_was_started(capsys: pytest.CaptureFixture[str]) -> None:
    views.model(
        {"name": "bert", "instances": [{"id": 3, "version": "1", "state": "ready", "start": "forked: of zygote 1"}]}
    )
    heads, row = capsys.readouterr().out.splitlines()[-2:]
    assert heads.endswith("  START")
    assert row.endswith("  forked: of zygote 1")


def test_show_has_a_line_for_each_footprint(capsys: pytest.CaptureFixture[str]) -> None:
    measured = {"load_peak_bytes": 3 << 20, "settled_bytes": 2 << 20, "serving_peak_bytes": 4 << 20, "load_s": 1.25}
    on_gpu = {**measured, "device": "cuda", "gpu_settled_bytes": 5 << 20}
    views.model(
        {"name": "bert", "footprints": [{"version": "1", "engine": "ort", "device": "cpu", **measured}, on_gpu]}
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "MiB" in line]
    assert rows == [
        ["1", "ort", "cpu", "3MiB", "2MiB", "4MiB", "1.2s"],
        ["cuda", "3MiB", "2MiB", "4MiB", "5MiB", "1.2s"],
    ]
