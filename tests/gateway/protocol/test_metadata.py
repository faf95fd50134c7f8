"""Metadata and configuration documents, in the forms that clients parse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fake_router import FakeRouter, metadata
from mmsup.gateway.protocol import metadata as describe
from mmsup.ipc.errors import ModelError, WorkerError
from mmsup.ipc.messages.gateway_control import ConfigureGateway, Route, VersionState
from mmsup.ipc.messages.handshake import WIRE_VERSION


def known(max_batch_size: int = 0, **spec: Any) -> tuple[Route, VersionState]:
    backend = FakeRouter()
    backend.threads.shutdown()
    described = metadata(("X", "FP32", (-1, 2)), ("S", "BYTES", (1,)), max_batch_size=max_batch_size)
    backend.serve("m", described, **spec)
    return backend.routes.model("m"), backend.routes.version("m", "")


def test_metadata_of_a_batching_model_shows_the_batch_first() -> None:
    told = describe.model_metadata(*known(max_batch_size=8))
    assert told["inputs"] == [
        {"name": "X", "datatype": "FP32", "shape": [-1, -1, 2]},
        {"name": "S", "datatype": "BYTES", "shape": [-1, 1]},
    ]
    assert (told["name"], told["versions"], told["platform"]) == ("m", ["1"], "python")


def test_metadata_names_the_ready_versions() -> None:
    route, state = known()
    other = replace(state, version="2", state="loading")
    assert describe.model_metadata(replace(route, versions=(state, other)), other)["versions"] == ["1"]


def test_a_model_whose_tensors_are_unknown_is_loading() -> None:
    route, state = known()
    with pytest.raises(WorkerError, match="model 'm' version 1 is loading") as caught:
        describe.model_metadata(route, replace(state, state="loading", metadata=None))
    assert caught.value.code == "model_loading"


def test_a_model_that_failed_says_why() -> None:
    route, state = known()
    failed = replace(state, state="failed", code="model_failed", reason="no such op", spec=None, metadata=None)
    for describing in (describe.model_metadata, describe.model_config):
        with pytest.raises(ModelError, match="model 'm' version 1 is failed: no such op"):
            describing(route, failed)
    assert describe.readiness_document("m", failed) == (
        False,
        {"name": "m", "ready": False, "state": "failed", "error": "no such op"},
    )


def test_the_configuration_is_complete_without_a_file() -> None:
    told = describe.model_config(*known(max_batch_size=8))
    assert told["max_batch_size"] == 8
    assert told["input"] == [
        {"name": "X", "data_type": "TYPE_FP32", "dims": [-1, 2]},
        {"name": "S", "data_type": "TYPE_STRING", "dims": [1]},
    ]
    assert told["instance_group"] == [{"name": "m_0", "kind": "KIND_CPU", "count": 1}]
    assert told["backend"] == "python"
    assert "dynamic_batching" not in told


def test_the_configuration_has_what_the_code_of_the_model_asked_for() -> None:
    route, state = known(max_batch_size=8)
    assert state.metadata is not None
    asked = replace(state, metadata=replace(state.metadata, dynamic_batching=True))
    assert describe.model_config(route, asked)["dynamic_batching"] == {}


def test_the_configuration_keeps_the_file_and_overrides_it_by_the_values_in_force() -> None:
    said = {
        "name": "m",
        "version_policy": {"all": {}},
        "max_batch_size": 99,
        "output": [{"name": "X_out", "data_type": "TYPE_INT8", "dims": ["9"], "label_filename": "l.txt"}],
        "dynamic_batching": {"max_queue_delay_microseconds": 100},
    }
    told = describe.model_config(*known(config=said))
    assert told["version_policy"] == {"all": {}}
    assert told["dynamic_batching"] == {"max_queue_delay_microseconds": 100}
    assert told["max_batch_size"] == 0
    assert told["output"][0] == {
        "name": "X_out",
        "data_type": "TYPE_FP32",
        "dims": [-1, 2],
        "label_filename": "l.txt",
    }


def test_a_gpu_is_named_by_its_number() -> None:
    assert describe.model_config(*known(device="cuda:3"))["instance_group"][0]["gpus"] == [3]


def test_only_implemented_extensions_are_announced() -> None:
    configure = ConfigureGateway(WIRE_VERSION, 0, 1, "mmsup", "1", 1, 1, 1.0, 1, 1)
    document = describe.server_metadata(configure)
    assert (document["name"], document["version"]) == ("mmsup", "1")
    extensions = document["extensions"]
    assert {"statistics", "logging", "system_shared_memory", "cuda_shared_memory"} <= set(extensions)
    assert len(set(extensions)) == len(extensions)
    assert "trace" not in extensions, "settings are kept, and nothing is traced"


def test_the_configuration_that_clients_get_has_nothing_of_the_environment_of_the_workers() -> None:
    said = {"parameters": {"mmsup_env": {"string_value": "{TOKEN: hunter2}"}, "top_k": {"string_value": "3"}}}
    told = describe.model_config(*known(config=said))
    assert told["parameters"] == {"top_k": {"string_value": "3"}}
    assert "hunter2" not in str(told)
    assert "mmsup_env" in said["parameters"], "what is in force is untouched"
