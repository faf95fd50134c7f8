"""The response cache of a model that asks for it, as clients and operators see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from engines.build import write_python
from harness.bystander import Bystander
from harness.rpc_calls import connected, tensor
from harness.server import Http, Json, Server, serving
from harness.victim import BYSTANDER, bystander_repository
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow

CODE = """
import numpy as np

class Model:
    runs = 0

    def infer(self, inputs):
        if inputs["x"][0] < 0:
            raise ValueError("negative")
        Model.runs += 1
        return {"y": inputs["x"] + OFFSET, "runs": np.array([Model.runs], np.int64)}
"""
X, Y, RUNS = TensorSpec("x", "FP32", (-1,)), TensorSpec("y", "FP32", (-1,)), TensorSpec("runs", "INT64", (1,))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = bystander_repository(tmp_path_factory.mktemp("models"))
    write_python(home, "kept", CODE.replace("OFFSET", "1"), (X,), (Y, RUNS))
    with (home / "kept" / "config.pbtxt").open("a") as config:
        config.write("response_cache { enable: true }\n")
    with serving(home, "--gateways", "1", "--cache-config", "local,size=3MiB") as made:
        yield made


@pytest.fixture
def http(server: Server) -> Iterator[Http]:
    made = server.http()
    yield made
    made.close()


def infer(http: Http, x: list[float], **more: Any) -> tuple[int, Json]:  # members of the request
    given = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(x)], "data": x}], **more}
    status, reply = http.json("POST", "/v2/models/kept/infer", given)
    return status, reply if status != 200 else {each["name"]: each["data"] for each in reply["outputs"]}


def statistics(http: Http) -> Json:
    status, found = http.json("GET", "/v2/models/kept/stats")
    assert status == 200
    stats: Json = found["model_stats"][0]
    return stats


def test_an_equal_request_is_answered_without_a_run_and_counts_as_success_and_queue_alone(
    server: Server, http: Http
) -> None:
    with Bystander(server, BYSTANDER):
        first = infer(http, [1.0, 2.0])
        assert first == (200, {"y": [2.0, 3.0], "runs": first[1]["runs"]})
        before = statistics(http)
        assert infer(http, [1.0, 2.0]) == infer(http, [1.0, 2.0], id="other") == first
        with connected(server) as client:
            found = client.infer("kept", [tensor("x", "FP32", np.array([1, 2], np.float32))])
            assert found.as_numpy("runs").tolist() == first[1]["runs"], "over gRPC it is the same request"
    after = statistics(http)
    assert (after["inference_count"], after["execution_count"]) == (
        before["inference_count"],
        before["execution_count"],
    )
    grown = {
        name: part["count"] - before["inference_stats"][name]["count"]
        for name, part in after["inference_stats"].items()
    }
    assert grown == {
        "success": 3, "fail": 0, "queue": 3, "compute_input": 0, "compute_infer": 0, "compute_output": 0,
        "cache_hit": 3, "cache_miss": 0,
    }  # fmt: skip
    assert after["inference_stats"]["cache_hit"]["ns"] > 0
    assert server.gauge("nv_cache_num_hits_per_model", model="kept") == after["inference_stats"]["cache_hit"]["count"]
    misses = server.gauge("nv_cache_num_misses_per_model", model="kept")
    assert misses == after["inference_stats"]["cache_miss"]["count"] > 0
    assert server.gauge("nv_cache_num_hits_per_model", model=BYSTANDER) == 0


def test_another_content_is_another_request_and_an_error_is_not_kept(http: Http) -> None:
    runs = [
        infer(http, [5.0])[1]["runs"],
        infer(http, [6.0])[1]["runs"],
        infer(http, [5.0], parameters={"mine": 1})[1]["runs"],
    ]
    assert len({each[0] for each in runs}) == 3
    assert list(infer(http, [5.0], outputs=[{"name": "y"}])[1]) == ["y"]
    assert infer(http, [5.0])[1]["runs"] == runs[0]
    failed = statistics(http)["inference_stats"]["fail"]["count"]
    assert [infer(http, [-1.0])[0] for _ in range(2)] == [500, 500]
    assert statistics(http)["inference_stats"]["fail"]["count"] == failed + 2


def test_it_is_bounded_in_bytes_of_all_gateways_together(http: Http) -> None:
    """3 MiB for three places of gateways: 1 MiB each."""
    large = [[float(number)] * 100_000 for number in range(3)]
    runs = [infer(http, each, outputs=[{"name": "runs"}, {"name": "y"}])[1]["runs"] for each in large]
    again = [infer(http, each, outputs=[{"name": "runs"}, {"name": "y"}])[1]["runs"] for each in (large[2], large[0])]
    assert again[0] == runs[2]
    assert again[1] != runs[0], "it made room for the others"


def test_another_revision_is_never_answered_from_what_the_one_before_has_made(server: Server, http: Http) -> None:
    assert infer(http, [9.0])[1]["y"] == [10.0]
    (server.repository / "kept" / "1" / "model.py").write_text(CODE.replace("OFFSET", "2"))
    server.ctl("load", name="kept")
    assert infer(http, [9.0])[1]["y"] == [11.0]
    assert infer(http, [9.0])[1]["runs"] == [1]
