"""Start of a server with good and bad models, loading and unloading, and what it reports about them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engines.build import write_exported, write_fault_model, write_identity_onnx, write_safetensors
from harness.bystander import Bystander
from harness.invariants import assert_clean, assert_gone, server_processes, settled
from harness.server import Http, Server, eventually, serving
from mmsup.supervisor.cli.ctl import control_client
from mmsup.supervisor.cli.main import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With models of every engine, and such as cannot be loaded."""
    repository, secret = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("secret") / "secret"
    secret.write_text("hunter2: 1\n")
    for name in ("good", "misspelt", "linked", "typed", "onnx", "m", "spoilt"):
        write_identity_onnx(repository, name)
    write_exported(repository, "exported")
    write_safetensors(repository, "safetensors", scale=2.0)
    (repository / "safetensors" / "mmsup.yaml").write_text("trusted: true\n")
    write_fault_model(repository, "python")
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"this is no ONNX")
    (repository / "empty").mkdir()
    (repository / "misspelt" / "mmsup.yaml").write_text("memroy: 1GiB\n")
    (repository / "linked" / "mmsup.yaml").symlink_to(secret)
    (repository / "typed" / "mmsup.yaml").write_text("memory: hunter2\nhunter2: 1\n")
    with serving(repository) as running:
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0
        assert_gone(running, everyone)


def test_one_bad_model_stops_neither_the_start_nor_the_others(server: Server) -> None:
    http = Http(server.address())
    assert http.infer("good", x=("FP32", [1], [1.0]))[0] == 200
    assert http.json("GET", "/v2/health/ready")[0] == 200
    states = {each["name"]: each for each in server.ctl("list")["models"]}
    assert states["good"]["state"] == "ready"
    server.await_state("broken", "failed")
    assert states["misspelt"]["state"] == "failed"
    assert "memroy" in states["misspelt"]["reason"]
    status, reply = http.infer("broken", x=("FP32", [1], [1.0]))
    assert status == 503
    assert "broken" in reply["error"]
    assert str(server.repository) not in reply["error"]
    http.close()


def test_a_model_that_is_copied_slowly_into_a_polled_repository_is_served(tmp_path: Path) -> None:
    repository, source = tmp_path / "repository", tmp_path / "source"
    write_identity_onnx(repository, "good")
    write_identity_onnx(source, "late")
    file = (source / "late" / "1" / "model.onnx").read_bytes()
    folder = repository / "late"
    with serving(repository, "--model-control-mode", "poll", "--repository-poll-secs", "0.3") as server:
        http = Http(server.address())

        def await_reason(words: str) -> None:
            def is_told() -> bool:
                listed = {each["name"]: each for each in server.ctl("list")["models"]}.get("late", {"reason": ""})
                rows = [each for each in http.json("POST", "/v2/repository/index")[1] if each["name"] == "late"]
                answer = http.infer("late", x=("FP32", [1], [1.0]))[1]["error"] if rows else ""
                return all(words in text for text in (listed["reason"], *(each["reason"] for each in rows), answer))

            eventually(is_told, f"{words!r} as the reason everywhere")

        folder.mkdir()
        await_reason("has no version")
        if (source / "late" / "config.pbtxt").exists():
            shutil.copy(source / "late" / "config.pbtxt", folder)
        (folder / "1").mkdir()
        await_reason("holds no model.onnx")
        for at in range(0, len(file), max(len(file) // 8, 1)):
            with (folder / "1" / "model.onnx").open("ab") as written:
                written.write(file[at : at + max(len(file) // 8, 1)])
        server.await_state("late", "ready")
        assert not server.events("load_failed", "late")[2:], (
            "only what was missing was a failure, not what was half there"
        )
        assert http.infer("late", x=("FP32", [1], [3.0]))[1]["outputs"][0]["data"] == [3.0]
        http.close()


def test_clients_get_no_line_of_a_file_that_a_link_leads_to(server: Server) -> None:
    http = Http(server.address())
    answers = [http.json("POST", "/v2/repository/index")[1]]
    for name in ("linked", "typed"):
        answers += [
            http.json("POST", f"/v2/repository/models/{name}/load")[1],
            http.infer(name, x=("FP32", [1], [1.0]))[1],
            *(http.json("GET", f"/v2/models/{name}{path}")[1] for path in ("", "/config", "/ready", "/stats")),
        ]
    told = json.dumps(answers)
    assert "hunter2" not in told
    secret = str((server.repository / "linked" / "mmsup.yaml").readlink())
    assert str(server.repository) not in told
    assert secret not in told
    assert "typed/mmsup.yaml:1: memory: is not valid" in told
    assert "is a link that leads out of the repository" in told
    listed = {each["name"]: each["reason"] for each in server.ctl("list")["models"]}
    assert '"hunter2" is not a size' in listed["typed"]
    assert secret in listed["linked"]
    with pytest.raises(control_client.ServerRefused, match="hunter2"):
        server.ctl("load", name="typed")
    http.close()


def test_every_engine_serves(server: Server) -> None:
    http = Http(server.address())
    row = ("FP32", [1, 4], [1.0, 2.0, 3.0, 4.0])
    status, reply = http.infer("exported", x=row, y=row)
    assert status == 200, reply
    outputs = {each["name"]: each["data"] for each in reply["outputs"]}
    assert outputs == {"total": [2.0, 4.0, 6.0, 8.0], "difference": [0.0, 0.0, 0.0, 0.0]}
    status, reply = http.infer("safetensors", x=("FP32", [2], [1.0, 2.0]))
    assert (status, reply["outputs"][0]["data"]) == (200, [2.0, 4.0])
    for name in ("onnx", "python"):
        assert http.infer(name, x=("FP32", [1], [5.0]))[1]["outputs"][0]["data"] == [5.0]
    http.close()


def test_a_model_on_the_device_auto_loads_on_the_cpu_where_there_is_no_gpu(tmp_path: Path) -> None:
    write_identity_onnx(tmp_path, "own_key")
    (tmp_path / "own_key" / "mmsup.yaml").write_text("device: auto\n")
    write_safetensors(tmp_path, "torch", scale=2.0)
    (tmp_path / "torch" / "mmsup.yaml").write_text("device: auto\ntrusted: true\n")
    for kind in ("KIND_AUTO", "KIND_MODEL"):
        write_identity_onnx(tmp_path, kind)
        (tmp_path / kind / "config.pbtxt").write_text(f"instance_group {{ kind: {kind} }}\n")
    with serving(tmp_path, env={"MMSUP_GPU_DRIVER": str(tmp_path / "no_driver")}) as server:
        http = Http(server.address())
        for name in ("own_key", "KIND_AUTO", "KIND_MODEL"):
            server.await_state(name, "ready")
            assert http.infer(name, x=("FP32", [1], [5.0]))[1]["outputs"][0]["data"] == [5.0]
        server.await_state("torch", "ready")
        assert http.infer("torch", x=("FP32", [1], [5.0]))[1]["outputs"][0]["data"] == [10.0]
        http.close()


def test_explicit_mode_loads_what_is_named_and_what_is_asked_for(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_identity_onnx(tmp_path, name)
    with serving(tmp_path, "--model-control-mode", "explicit", "--load-model", "a") as server:
        states = {each["name"]: each["state"] for each in server.ctl("list")["models"]}
        assert states["a"] == "ready"
        assert states["b"] != "ready"
        before = settled(server)
        http = Http(server.address())
        assert http.infer("b", x=("FP32", [1], [1.0]))[0] == 404
        assert http.json("POST", "/v2/repository/models/b/load", {})[0] == 200
        assert http.infer("b", x=("FP32", [1], [1.0]))[0] == 200
        assert http.json("POST", "/v2/repository/models/b/unload", {})[0] == 200
        assert http.infer("b", x=("FP32", [1], [1.0]))[0] == 404
        http.close()
        assert_clean(before, server)


def test_a_reload_serves_on_without_a_gap(server: Server) -> None:
    pid = server.pid("m")
    with Bystander(server, "m") as calls:
        server.ctl("load", name="m")
        calls.await_more(20)
        server.await_event("worker_stopped", "m")
        calls.pids = server.pids("m")
    assert calls.pids != [pid]
    assert not server.events("worker_exit", "m")


def test_a_reload_that_fails_leaves_the_old_one_serving(server: Server) -> None:
    with Bystander(server, "spoilt"):
        (server.repository / "spoilt" / "1" / "model.onnx").write_bytes(b"no ONNX any more")
        http = Http(server.address())
        status, reply = http.json("POST", "/v2/repository/models/spoilt/load", {})
        http.close()
        assert status == 500
        assert reply["error"].startswith("failed to load 'spoilt'")


def test_the_port_in_use_is_said_in_one_sentence(server: Server, tmp_path: Path) -> None:
    port = server.address()[1]
    command = [
        *(sys.executable, "-m", "mmsup.supervisor.cli", "serve", "--model-repository", str(server.repository)),
        *("--http-port", str(port), "--grpc-port", "0", "--metrics-port", "0"),
        *("--runtime-dir", str(tmp_path / "run"), "--state-dir", str(tmp_path / "state")),
    ]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert str(port) in second.stderr
    assert "Traceback" not in second.stderr


def test_ctl_speaks_to_people_and_to_programs(server: Server, tmp_path: Path) -> None:
    arguments = ["ctl", "--runtime-dir", str(server.runtime_dir)]

    def ctl(*words: str) -> Result:
        return CliRunner().invoke(main, [*arguments, *words])

    command = [sys.executable, "-m", "mmsup.supervisor.cli", *arguments, "list"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nm " in done.stdout
    for words in (["list"], ["ps"], ["status"], ["show", "m"], ["events"], ["logs", "m"]):
        assert ctl(*words).exit_code == 0, ctl(*words).stderr
    status = json.loads(ctl("status", "--json").stdout)
    assert "m" in {each["name"] for each in status["models"]}
    infer = ctl("infer", "m", "--data", '{"x": [1.0, 2.0]}')
    assert infer.exit_code == 0, infer.stderr
    assert "2" in infer.stdout
    assert ctl("unload", "m").exit_code == 0
    assert ctl("load", "m").exit_code == 0
    refused = ctl("load", "nobody")
    assert refused.exit_code == 1
    assert "nobody" in refused.stderr
    assert ctl("nonsense").exit_code == 2
    nobody = CliRunner().invoke(main, ["ctl", "--runtime-dir", str(tmp_path), "list"])
    assert nobody.exit_code == 4


def test_requests_go_over_zeromq_where_the_server_is_told_so_and_a_killed_worker_is_followed_there(
    tmp_path: Path,
) -> None:
    write_identity_onnx(tmp_path, "victim")
    write_identity_onnx(tmp_path, "m")
    with serving(tmp_path, "--worker-link", "zeromq") as server, Bystander(server, "m"):
        pid = server.pid("victim")
        assert "zmq" in Path(f"/proc/{pid}/maps").read_text()
        assert len(list(server.runtime_dir.glob("w*.*"))) == 2
        os.kill(pid, signal.SIGKILL)
        http = Http(server.address())
        status, reply = http.infer("victim", x=("FP32", [4], [1.0, 2.0, 3.0, 4.0]))
        http.close()
        assert (status, reply["outputs"][0]["data"]) == (200, [1.0, 2.0, 3.0, 4.0])
        assert server.pid("victim") != pid


def test_a_wanted_file_of_a_newer_version_is_kept_and_said_in_log_events_and_status(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        server.await_ready()
        server.process.kill()
        server.process.wait()
        (server.state_dir / "wanted.json").write_text('{"format": 99}')
        server.start_again()
        server.await_ready()
        event = server.await_event("state_unreadable")
        assert event["text"].startswith("wanted.json has format 99, this version reads 1: it is kept as")
        assert "state_unreadable" in server.log()
        assert server.status()["state_kept_aside"] == ["wanted.json.kept-1"]
        assert server.stop() == 0
        assert (server.state_dir / "wanted.json.kept-1").read_text() == '{"format": 99}'
    finally:
        server.remove()
