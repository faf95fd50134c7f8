from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

import mmsup
from mmsup.ipc.environment import HUGE_PAGES
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.processes.launch_spec import (
    LaunchEnvironment,
    gateway_spawn,
    gateway_token,
    parse_token,
    scratch_dir,
    worker_spawn,
    worker_token,
)

SECRETS = {"AWS_SECRET_ACCESS_KEY": "x", "PYTHONPATH": "/evil", "LD_PRELOAD": "/evil.so", "HOME": "/root"}


def spec(**fields: object) -> ModelSpec:
    return ModelSpec("bert", "2", "/m/bert/2", "model.onnx", "ort", "onnxruntime_onnx", **fields)  # type: ignore[arg-type]  # fields by name


def environment(tmp_path: Path) -> LaunchEnvironment:
    return LaunchEnvironment(
        {"PATH": "/bin", "LANG": "C.UTF-8", **SECRETS}, str(tmp_path / "scratch"), str(tmp_path), 4
    )


def test_tokens_name_role_number_and_generation() -> None:
    assert parse_token(worker_token(7, 3)) == ("worker", 7, 3)
    assert parse_token(gateway_token(0, 12)) == ("gateway", 0, 12)


@pytest.mark.parametrize("token", ["", "worker", "worker.1", "worker.1.x", "worker.-1.2", "brain.1.2", "worker.1.2.3"])
def test_other_tokens_are_not_parsed(token: str) -> None:
    assert parse_token(token) is None


def test_only_listed_variables_of_the_server_reach_a_worker(tmp_path: Path) -> None:
    env = worker_spawn(spec(), (7, 3), environment(tmp_path), (), "").env
    assert not set(SECRETS) - {"HOME"} & set(env)
    assert env["HOME"] == env["TMPDIR"] == scratch_dir(environment(tmp_path), (7, 3))
    assert (env["PATH"], env["LANG"], env["OMP_NUM_THREADS"]) == ("/bin", "C.UTF-8", "4")


def test_a_worker_without_a_gpu_sees_none(tmp_path: Path) -> None:
    assert worker_spawn(spec(), (7, 3), environment(tmp_path), (), "").env["CUDA_VISIBLE_DEVICES"] == ""
    assert worker_spawn(spec(), (7, 3), environment(tmp_path), (), "GPU-1").env["CUDA_VISIBLE_DEVICES"] == "GPU-1"


def test_the_environment_of_a_model_wins(tmp_path: Path) -> None:
    env = worker_spawn(spec(env={"OMP_NUM_THREADS": "1", "X": "y"}), (7, 3), environment(tmp_path), (), "").env
    assert (env["OMP_NUM_THREADS"], env["X"]) == ("1", "y")


def test_only_onnx_workers_have_their_heap_in_huge_pages_unless_the_model_has_it_otherwise(tmp_path: Path) -> None:
    name, value = HUGE_PAGES
    assert worker_spawn(spec(), (7, 3), environment(tmp_path), (), "").env[name] == value
    assert worker_spawn(spec(env={name: ""}), (7, 3), environment(tmp_path), (), "").env[name] == ""
    python = replace(spec(), engine="custom")
    assert name not in worker_spawn(python, (7, 3), environment(tmp_path), (), "").env, "they would take more memory"
    assert name not in gateway_spawn(1, 2, environment(tmp_path), ()).env


def test_an_interpreter_of_the_model_finds_this_package_and_no_other(tmp_path: Path) -> None:
    for _ in range(2):
        spawn = worker_spawn(spec(python="/opt/env/bin/python"), (7, 3), environment(tmp_path), (), "")
    library = Path(spawn.env["PYTHONPATH"])
    assert spawn.argv[:3] == ("/opt/env/bin/python", "-m", "mmsup.worker")
    assert spawn.env["PYTHONSAFEPATH"] == "1"  # the model's files shadow no module
    assert os.listdir(library) == ["mmsup"]
    assert (library / "mmsup").resolve() == Path(next(iter(mmsup.__path__))).resolve()


def test_a_worker_runs_in_the_folder_of_its_version_and_joins_its_group_first(tmp_path: Path) -> None:
    spawn = worker_spawn(spec(), (7, 3), environment(tmp_path), ("/sys/fs/cgroup/x/cgroup.procs",), "")
    assert (spawn.token, spawn.cwd) == ("worker.7.3", "/m/bert/2")
    assert spawn.procs_files == ("/sys/fs/cgroup/x/cgroup.procs",)
    assert spawn.listeners == ()
    assert spawn.argv[-1] == "bert/2#7"


def test_the_kernel_kills_workers_before_gateways(tmp_path: Path) -> None:
    gateway = gateway_spawn(1, 4, environment(tmp_path), ("http",))
    assert gateway.oom_score_adj < 0 < worker_spawn(spec(), (7, 3), environment(tmp_path), (), "").oom_score_adj
    assert (gateway.token, gateway.listeners, gateway.counter_tables) == ("gateway.1.4", ("http",), True)
