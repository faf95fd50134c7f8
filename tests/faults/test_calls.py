"""Calls between models on a whole server: what they give, what befalls those who wait, and that no other notices."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import shared_memory

from engines.build import write_fault_model, write_python
from engines.calling_model import write_caller
from engines.ensemble_files import X, write_ensemble
from harness.bystander import Bystander
from harness.rpc_calls import connected, tensor
from harness.server import Server, eventually
from harness.victim import BYSTANDER
from mmsup.ipc.specs import TensorSpec
from mmsup.supervisor.cli.ctl.control_client import ServerRefused

pytestmark = pytest.mark.slow
CALLERS = ("caller", "between", "pair")
LARGE = 50_000
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "composition"


class Call:
    """A request to a model that calls others, in a thread of its own."""

    def __init__(self, server: Server, name: str, x: list[float], job: dict[str, Any]) -> None:  # JSON
        self._server = server
        self._arguments = name, x, job
        self.answer: tuple[int, Any] | None = None  # status, JSON
        self._thread = threading.Thread(target=self._run, name=f"call {name}")
        self._thread.start()

    def _run(self) -> None:
        name, x, job = self._arguments
        try:
            self.answer = ask(self._server, name, x, **job)
        except (OSError, HTTPException) as error:  # its gateway has ended
            self.answer = 0, str(error)

    def result(self) -> tuple[int, Any]:  # JSON
        self._thread.join(60)
        assert self.answer is not None, "no answer"
        return self.answer


def ask(server: Server, name: str, x: list[float], **job: Any) -> tuple[int, Any]:  # JSON
    """Status, and `y` with what the model was told, or the error."""
    http = server.http()
    try:
        status, reply = http.infer(name, x=("FP32", [len(x)], x), job=("BYTES", [1], [json.dumps(job)]))
    finally:
        http.close()
    if status != 200:
        return status, reply
    outputs = {each["name"]: each["data"] for each in reply["outputs"]}
    return status, json.loads(outputs["told"][0]) if outputs["told"][0] else outputs["y"]


@pytest.fixture(scope="module")
def models(server: Server) -> Iterator[Server]:
    """`caller` and `between` of one instance, `pair` of two, and `worker`, which does as it is told."""
    write_caller(server.repository, "caller", hang_limit="500ms")
    write_caller(server.repository, "between")
    write_caller(server.repository, "pair", instances=2)
    write_fault_model(server.repository, "worker", hang_limit="30s")
    for name in (*CALLERS, "worker"):
        server.ctl("load", name=name)
    yield server
    for name in (*CALLERS, "worker"):
        server.ctl("unload", name=name)


@contextlib.contextmanager
def held(server: Server, name: str = "caller", **job: Any) -> Iterator[Call]:  # JSON
    """A request whose model has called `worker`, which runs until the end of the block or a test's harm."""
    go = server.repository / "worker" / "1" / "go"
    go.unlink(missing_ok=True)
    call = Call(server, name, [1.0], {"way": "call", "model": "worker", "mode": "hold", **job})
    eventually(lambda: server.gauge("mmsup_requests_open", model="worker") >= 1, "the call is at its model")
    yield call
    go.touch()
    call.result()
    eventually(lambda: not go.exists() or "busy" not in activities(server, "worker"), "its model goes on")
    go.unlink(missing_ok=True)


def activities(server: Server, name: str) -> list[str]:
    """What its workers do."""
    return [each["activity"] for each in server.model(name)["instances"]]


def test_a_model_calls_another_one_with_small_and_with_large_tensors(models: Server) -> None:
    before = models.gauge("nv_inference_request_success", model=BYSTANDER)
    assert ask(models, "caller", [1.0, 2.0], way="twice", model=BYSTANDER) == (200, [1.0, 2.0])
    assert ask(models, "caller", [1.0] * LARGE, way="call", model=BYSTANDER) == (200, [1.0] * LARGE)
    assert ask(models, "caller", [1.0] * LARGE, way="together", model=BYSTANDER, count=5) == (200, [5.0] * LARGE)
    assert models.gauge("nv_inference_request_success", model=BYSTANDER) == before + 8


def test_calls_go_through_models_that_call_and_a_loop_is_refused_by_name(models: Server) -> None:
    assert ask(models, "caller", [1.0], way="chain", models=["between", "pair", "pair"]) == (200, [5.0])
    for names, shown in ((["caller"], "caller -> caller"), (["between", "caller"], "caller -> between -> caller")):
        status, told = ask(models, "caller", [1.0], way="chain", models=names)
        assert (status, told["code"]) == (200, "call_loop")
        assert shown in told["text"]
    status, told = ask(models, "pair", [1.0], way="chain", models=["pair", "pair"])
    assert told["code"] == "call_loop"
    assert "all its 2 workers wait" in told["text"]


def test_models_that_await_and_that_yield_call_others(models: Server) -> None:
    write_caller(models.repository, "awaiting", "Awaiting", hang_limit="500ms")
    write_caller(models.repository, "yielding", "Yielding")
    for name in ("awaiting", "yielding"):
        models.ctl("load", name=name)
    assert ask(models, "awaiting", [1.0] * LARGE, model=BYSTANDER, count=4) == (200, [4.0] * LARGE)
    assert ask(models, "awaiting", [1.0], model="awaiting", then=BYSTANDER) == (200, [1.0])  # it is not blocked
    http = models.http()
    body = {"x": [1.0], "job": json.dumps({"model": BYSTANDER, "count": 3})}
    status, _, text = http.send("POST", "/v2/models/yielding/generate_stream", json.dumps(body))
    http.close()
    assert (status, text.count(b"data: ")) == (200, 3), text
    for name in ("awaiting", "yielding"):
        models.ctl("unload", name=name)


def test_what_is_wrong_with_a_call_is_told_to_the_code_that_made_it(models: Server) -> None:
    status, told = ask(models, "caller", [1.0], way="call", model="nobody")
    assert (status, told["code"], told["model"]) == (200, "unknown_model", "nobody")
    status, told = ask(models, "caller", [1.0], way="call", model="between")
    assert (status, told["code"]) == (200, "bad_request")  # `job` is missing
    status, reply = ask(models, "caller", [1.0], way="call", model="nobody", catches=False)
    assert (status, reply["code"], reply["model"]) == (500, "inference_failed", "caller")
    assert reply["error"].startswith("model 'caller' called model 'nobody': ")


def test_a_run_that_waits_for_another_model_does_not_hang(models: Server) -> None:
    pid = models.pid("caller")
    with held(models) as call:
        eventually(lambda: activities(models, "caller") == ["calling"], "the worker that calls says so")
        slow = Call(models, "between", [1.0], {"way": "call", "model": BYSTANDER})
        assert slow.result() == (200, [1.0])
        pause_s = 3 * 0.5  # of the hang limit of `caller`
        assert not threading.Event().wait(pause_s)
    assert call.result() == (200, [1.0])
    assert models.pid("caller") == pid


def test_a_call_has_the_time_that_is_left_and_no_more(models: Server) -> None:
    with held(models, timeout_s=0.2) as call:
        status, told = call.result()
        assert (status, told["code"]) == (200, "deadline_exceeded")


def test_a_client_that_leaves_cancels_what_was_called_for_it(models: Server) -> None:
    with held(models, name="between"):
        http = models.http()
        job = json.dumps({"way": "call", "model": "worker"})
        tensors = [
            {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]},
            {"name": "job", "datatype": "BYTES", "shape": [1], "data": [job]},
        ]
        body = json.dumps({"inputs": tensors})
        http.connection.request("POST", "/v2/models/caller/infer", body)
        eventually(lambda: models.gauge("mmsup_requests_open", model="worker") == 2, "the second call is queued")
        http.close()
        eventually(lambda: models.gauge("mmsup_requests_open", model="worker") == 1, "it is cancelled with its client")


def test_a_call_wakes_a_model_that_is_asleep(models: Server) -> None:
    models.ctl("sleep", name="worker")
    models.await_state("worker", "asleep")
    assert ask(models, "caller", [1.0], way="call", model="worker", mode="ok") == (200, [1.0])


@pytest.mark.fault("F74")
def test_the_death_of_the_called_is_an_error_in_the_callers_code_and_nothing_more(models: Server) -> None:
    pid = models.pid("caller")
    with Bystander(models, BYSTANDER), held(models) as call:
        os.kill(models.pid("worker"), signal.SIGKILL)
        status, told = call.result()
        assert (status, told["code"], told["retryable"]) == (200, "worker_crashed", True)
        assert "model 'caller' called model 'worker': " in told["text"]
    assert ask(models, "caller", [1.0], way="call", model="worker", mode="ok") == (200, [1.0])
    assert models.pid("caller") == pid


@pytest.mark.fault("F75")
def test_the_death_of_the_caller_cancels_its_call_and_spares_the_called(models: Server) -> None:
    pid = models.pid("worker")
    with Bystander(models, BYSTANDER), held(models) as call:
        os.kill(models.pid("caller"), signal.SIGKILL)
        status, reply = call.result()
        assert (status, reply["code"], reply["model"]) == (503, "worker_crashed", "caller")
    eventually(lambda: not models.gauge("mmsup_requests_open", model="worker"), "nothing is left of the call")
    models.await_state("caller", "ready")
    assert ask(models, "caller", [1.0], way="call", model="worker", mode="ok") == (200, [1.0])
    assert models.pid("worker") == pid


@pytest.mark.fault("F76")
def test_a_call_outlives_the_controller(models: Server) -> None:
    with Bystander(models, BYSTANDER), held(models) as call:
        generation = models.status()["brain"]["generation"]
        os.kill(models.status()["brain"]["pid"], signal.SIGKILL)
        eventually(lambda: restarted(models, generation), "the next controller")
    assert call.result() == (200, [1.0])


@pytest.mark.fault("F76")
def test_a_gateway_that_ends_takes_its_calls_along_and_the_callers_go_on(models: Server) -> None:
    pids = models.pid("caller"), models.pid("worker")
    with held(models, name="between") as call:
        (gateway,) = [each for each in models.ctl("ps")["processes"] if each["role"] == "gateway"]
        os.kill(gateway["pid"], signal.SIGKILL)
        models.await_event("gateway_exit")
        assert call.result()[0] == 0
    models.await_state("worker", "ready")
    assert eventually(lambda: served(models), "calls through the next gateway") == (200, [1.0])
    assert (models.pid("caller"), models.pid("worker")) == pids


@pytest.fixture(scope="module")
def ensembles(models: Server) -> Iterator[Server]:
    """`two`: `worker` after the bystander; `fork`: two of `two` beside each other, joined by a sum."""
    code = "class Model:\n    def infer(self, inputs):\n        return {'s': inputs['l'] + inputs['r']}\n"
    terms = [TensorSpec(name, "FP32", (-1,)) for name in "lr"]
    write_python(models.repository, "sum", code, terms, [TensorSpec("s", "FP32", (-1,))])
    more = [TensorSpec("mode", "BYTES", (1,)), TensorSpec("amount", "FP64", (1,))]
    obeyed = {"x": "m", "mode": "mode", "amount": "amount"}
    steps = (BYSTANDER, {"x": "x"}, {"y": "m"}), ("worker", obeyed, {"y": "y"})
    write_ensemble(models.repository, "two", *steps, inputs=[X, *more])
    branches = [(BYSTANDER, {"x": "x"}, {"y": name}) for name in "lr"]
    write_ensemble(models.repository, "fork", ("sum", {"l": "l", "r": "r"}, {"s": "y"}), *branches)
    for name in ("two", "fork"):
        models.ctl("load", name=name)
    yield models
    models.ctl("unload", name="two")
    models.ctl("unload", name="fork", parameters={"unload_dependents": True})


def in_shared_memory(server: Server, model: str, x: Any) -> Any:  # arrays
    """`y` of a model whose tensors are in memory of the client."""
    name = f"mmsup_test_{os.getpid()}"
    region = shared_memory.create_shared_memory_region(name, f"/{name}", 2 * x.nbytes)
    try:
        shared_memory.set_shared_memory_region(region, [x])
        with connected(server) as client:
            client.register_system_shared_memory(name, f"/{name}", 2 * x.nbytes)
            given, wanted = triton.InferInput("x", list(x.shape), "FP32"), triton.InferRequestedOutput("y")
            given.set_shared_memory(name, x.nbytes)
            wanted.set_shared_memory(name, x.nbytes, offset=x.nbytes)
            client.infer(model, [given], outputs=[wanted])
            client.unregister_system_shared_memory(name)
        return shared_memory.get_contents_as_numpy(region, np.float32, list(x.shape), offset=x.nbytes).copy()
    finally:
        shared_memory.destroy_shared_memory_region(region)


def run_two(server: Server, mode: str = "ok", amount: float = 0.0) -> tuple[int, Any]:  # JSON
    """Status, and `y` or the error, of the ensemble `two`."""
    http = server.http()
    try:
        given: dict[str, Any] = {
            "x": ("FP32", [1], [1.0]),
            "mode": ("BYTES", [1], [mode]),
            "amount": ("FP64", [1], [amount]),
        }
        status, reply = http.infer("two", **given)
    finally:
        http.close()
    return status, reply["outputs"][0]["data"] if status == 200 else reply


def test_an_ensemble_is_a_model_like_any_other_over_http_and_grpc(ensembles: Server) -> None:
    http = ensembles.http()
    before = ensembles.gauge("nv_inference_request_success", model=BYSTANDER)
    status, reply = http.infer("fork", x=("FP32", [LARGE], [1.0] * LARGE))
    assert (status, reply["outputs"][0]["data"]) == (200, [2.0] * LARGE)
    assert ensembles.gauge("nv_inference_request_success", model=BYSTANDER) == before + 2
    assert ensembles.gauge("nv_inference_request_success", model="fork") == 1
    config = http.json("GET", "/v2/models/fork/config")[1]
    assert (config["platform"], config["backend"], config["instance_group"]) == ("ensemble", "", [])
    assert [each["model_name"] for each in config["ensemble_scheduling"]["step"]] == ["sum", BYSTANDER, BYSTANDER]
    assert ensembles.model("sum")["state"] == "ready"  # loaded with the ensemble
    http.close()
    with connected(ensembles) as client:
        made = client.infer("fork", [tensor("x", "FP32", np.ones(3, np.float32))])
        assert made.as_numpy("y").tolist() == [2.0, 2.0, 2.0]
        assert client.is_model_ready("fork")
    assert ask(ensembles, "caller", [1.0], way="call", model="fork") == (200, [2.0])
    assert in_shared_memory(ensembles, "fork", np.ones(4, np.float32)).tolist() == [2.0] * 4


def test_an_ensemble_is_ready_while_its_steps_are(ensembles: Server) -> None:
    http = ensembles.http()
    ensembles.ctl("sleep", name="worker")
    ensembles.await_state("worker", "asleep")
    assert http.json("GET", "/v2/models/two/ready")[0] == 200
    assert run_two(ensembles) == (200, [1.0])  # it is woken
    ensembles.ctl("unload", name="worker")
    assert http.json("GET", "/v2/models/two/ready")[0] == 503
    shown = ensembles.ctl("show", name="two")
    assert (shown["state"], shown["reason"]) == ("stopped", "step 'worker' is stopped") or shown["state"] == "draining"
    assert [each["model"] for each in shown["steps"]] == [BYSTANDER, "worker"]
    status, reply = run_two(ensembles)
    assert (status, reply["code"]) == (503, "model_failed")
    assert reply["error"].startswith("in ensemble 'two', step 'worker': ")
    ensembles.ctl("load", name="worker")
    assert run_two(ensembles) == (200, [1.0])
    http.close()


def test_an_ensemble_whose_steps_do_not_fit_is_not_loaded(ensembles: Server) -> None:
    write_ensemble(
        ensembles.repository, "loose", (BYSTANDER, {"q": "x"}, {"y": "y"}), ("nobody", {"a": "x"}, {"b": "z"})
    )
    with pytest.raises(ServerRefused, match="model 'nobody' is in no repository"):
        ensembles.ctl("load", name="loose")


def test_the_examples_give_what_the_page_says(ensembles: Server) -> None:
    folders = sorted(each for each in EXAMPLES.iterdir() if each.is_dir())
    for each in folders:
        shutil.copytree(each, ensembles.repository / each.name)
    for name in ("topics", "detect", "classify", "recognise", "read"):
        ensembles.ctl("load", name=name)
    http = ensembles.http()
    status, reply = http.infer("topics", text=("BYTES", [1], ["the match ended in a draw"]))
    assert (status, reply["outputs"][0]["data"]) == (200, ["sport"])
    image = np.zeros((4, 12))
    image[:, 1:5] = image[:, 7:9] = 1
    status, reply = http.infer("read", image=("FP32", [4, 12], image.ravel().tolist()))
    assert (status, reply["outputs"][0]["data"]) == (200, ["square", "bar"])
    http.close()
    for each in folders:
        ensembles.ctl("unload", name=each.name)


@pytest.mark.fault("F77")
def test_the_death_of_a_step_is_named_and_harms_no_other_step(ensembles: Server) -> None:
    with Bystander(ensembles, BYSTANDER):
        status, reply = run_two(ensembles, "exit", 3)
        assert (status, reply["code"], reply["model"]) == (503, "worker_crashed", "two")
        assert reply["error"].startswith("in ensemble 'two', step 'worker': ")
        status, reply = run_two(ensembles, "raise")
        assert (status, reply["code"]) == (500, "inference_failed")
    ensembles.await_state("worker", "ready")
    assert run_two(ensembles) == (200, [1.0])


def restarted(server: Server, generation: int) -> bool:
    with contextlib.suppress(OSError, RuntimeError):
        return bool(server.status()["brain"]["generation"] > generation)
    return False


def served(server: Server) -> tuple[int, Any] | None:  # JSON
    try:
        return ask(server, "caller", [1.0], way="call", model="worker", mode="ok")
    except OSError:
        return None
