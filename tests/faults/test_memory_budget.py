"""Models that do not fit into the memory budget: refused with figures, the others go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.build import write_python
from harness.server import eventually, serving
from mmsup.ipc.specs import TensorSpec
from mmsup.supervisor.cli.ctl import control_client

pytestmark = pytest.mark.slow
INFER = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]})
CODE = """
import numpy as np

class Model:
    def load(self, context):
        self.held = np.ones({mib} << 17)

    def infer(self, inputs):
        return {{"y": inputs["x"]}}
"""


def write_model(repository: Path, name: str, mib: int) -> None:
    tensors = (TensorSpec("x", "FP32", (1,)),)
    write_python(repository, name, CODE.format(mib=mib), tensors, (TensorSpec("y", "FP32", (1,)),))


@pytest.mark.fault("F59")
def test_a_load_that_is_known_not_to_fit_gets_507_with_figures_and_the_bystander_goes_on(tmp_path: Path) -> None:
    write_model(tmp_path, "bystander", 1)
    write_model(tmp_path, "big", 64)
    write_model(tmp_path, "bigger", 96)
    write_model(tmp_path, "huge", 200)
    flags = ("--model-control-mode", "explicit", "--load-model", "bystander", "--memory-budget", "180MiB")
    with serving(tmp_path, *flags) as server:
        http = server.http()
        for name in ("big", "bigger"):  # unknown, so it is tried, and measured
            assert http.json("POST", f"/v2/repository/models/{name}/load", {})[0] == 200
            if name == "big":
                http.json("POST", f"/v2/repository/models/{name}/unload", {})
        footprint = server.ctl("show", name="bigger")["footprints"][0]
        assert footprint["settled_bytes"] > 96 << 20
        before = server.pids("bystander")
        status, reply = http.json("POST", "/v2/repository/models/big/load", {})
        assert (status, reply["code"]) == (507, "insufficient_memory"), reply
        assert "of the budget of 180MiB are in use" in reply["error"], reply
        (refused,) = server.events("load_refused")
        assert refused["budget_bytes"] == 180 << 20
        assert refused["needed_bytes"] > 64 << 20
        assert refused["in_use_bytes"] + refused["needed_bytes"] > 180 << 20
        assert set(refused["held_by"]) - {"the zygote of numpy"} == {"bigger/1", "bystander/1"}
        assert "--memory-budget" in refused["text"]
        assert http.infer("bystander", x=("FP32", [1], [1.0]))[0] == 200
        assert server.pids("bystander") == before
        assert server.gauge("mmsup_memory_budget_bytes", memory="host memory") == 180 << 20
        labels = {"model": "bigger", "version": "1", "device": "cpu", "memory": "host", "when": "settled"}
        assert server.gauge("mmsup_model_footprint_bytes", **labels) == footprint["settled_bytes"]
        assert "--memory-budget" in server.ctl("why", name="big")["sentences"][-1]
        assert http.json("POST", "/v2/repository/models/bigger/unload", {})[0] == 200
        eventually(lambda: http.infer("big", x=("FP32", [1], [1.0]))[0] == 200, "what was refused comes when it fits")
        server.ctl("sleep", name="big")
        assert http.json("POST", "/v2/repository/models/bigger/load", {})[0] == 200
        status, reply = http.infer("big", x=("FP32", [1], [1.0]))
        assert (status, reply["code"]) == (507, "insufficient_memory"), reply
        assert reply["error"].startswith("failed to load 'big'"), reply
        assert "of the budget of 180MiB are in use" in server.await_state("big", "asleep")["reason"]
        assert http.json("POST", "/v2/repository/models/bigger/unload", {})[0] == 200
        eventually(lambda: http.infer("big", x=("FP32", [1], [1.0]))[0] == 200, "it was asleep, and is loaded again")
        assert http.json("POST", "/v2/repository/models/huge/load", {})[0] == 200  # unknown, so it is tried
        server.ctl("sleep", name="huge")
        status, headers, body = http.send("POST", "/v2/models/huge/infer", INFER)
        reply = json.loads(body)
        assert (status, reply["code"], reply["retryable"]) == (507, "does_not_fit", False), reply
        assert "more than the whole budget of 180MiB" in reply["error"]
        assert "Retry-After" not in headers
        with pytest.raises(control_client.ServerRefused, match=r"180MiB.*raise --memory-budget") as caught:
            server.ctl("wake", name="huge")
        assert (caught.value.code, caught.value.retryable) == ("does_not_fit", False)
        assert server.model("huge")["state"] == "asleep"
        assert server.pids("bystander") == before
        http.close()
