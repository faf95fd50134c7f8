from __future__ import annotations

import itertools

import pytest

from mmsup.supervisor.config import model_options
from mmsup.supervisor.config.yaml_file import parse_yaml


def test_every_parsed_option_of_a_model_is_valid_again() -> None:
    given = {
        "memory": "1GiB",
        "recycle_memory": "512MiB",
        "gpu_memory": "2GiB",
        "instances": "2",
        "device": "cuda:1",
        "python": "/usr/bin/python3",
        "start": "exec",
        "preload": "torch",
        "env": {"A": 1, "B": True, "C": "x"},
        "deadline": "1s",
        "hang_limit": 2,
        "load_timeout": "5min",
        "max_queue": 3,
        "sequences": {"strategy": "oldest", "idle": "90s", "delay": "1ms", "preferred": [2]},
        "max_queue_bytes": "1MiB",
        "priority": 1,
        "priority_levels": 3,
        "batching": {"max_size": 4, "delay": "2ms", "preferred": [4, 2], "objective": "50ms"},
        "queue_policies": [{"level": 1, "max_queue": 3, "timeout": "1s", "action": "delay"}, {"max_queue": 9}],
        "load": "on-demand",
        "ttl": "1h",
        "pin": "true",
        "evict": "false",
        "sleep": "host-memory",
        "cold_start_timeout": "2min",
        "retry_on_crash": 0,
        "response_cache": "true",
        "trusted": True,
        "decoupled": True,
        "group": "small",
        "inputs": [{"name": "x", "datatype": "TYPE_STRING", "dims": [-1, 3], "optional": "true"}],
        "outputs": [{"name": "y", "datatype": "FP16", "shape": []}],
        "max_batch_size": 4,
        "parameters": {"k": 1.5},
        "strings": "text",
    }
    assert given.keys() == model_options.MODEL_OPTIONS.keys()
    source = parse_yaml("", "x").source
    once, faults_once = model_options.parse_options(given, source)
    twice, faults_twice = model_options.parse_options(once, source)
    assert faults_once == faults_twice == ()
    assert once == twice
    assert once["inputs"] == [{"name": "x", "datatype": "BYTES", "shape": [-1, 3], "optional": True}]
    assert once["batching"] == {"max_size": 4, "delay": 0.002, "preferred": [2, 4], "objective": 0.05}
    assert [each["level"] for each in once["queue_policies"]] == [1, 0]
    assert once["env"] == {"A": "1", "B": "true", "C": "x"}
    assert (once["ttl"], once["pin"]) == (3600.0, True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *itertools.product(
            model_options.MODEL_OPTIONS, [None, [], float("nan"), "\0", -1, "\ud800", [[1]], {"a": [1]}]
        ),
        *[("device", "gpu"), ("env", {"1A": "x"}), ("python", "python3"), ("instances", 0), ("memory", 1)],
        *[("inputs", [{"name": "x"}]), ("inputs", [{"name": "x", "datatype": "FP32", "shape": [1], "dims": [1]}])],
        *[("inputs", [{"name": "x", "datatype": "FP32", "shape": [1]}] * 2), ("inputs", [7]), ("env", {"A": "\0"})],
        *[("inputs", [{"name": "x", "datatype": "FP32", "shape": [1] * 17}]), ("env", {"CUDA_VISIBLE_DEVICES": "1"})],
        ("ttl", 0),
    ],
)
def test_an_invalid_value_is_an_error_at_its_key(key: str, value: object) -> None:
    found, faults = model_options.parse_options({key: value}, parse_yaml("", "x").source)
    assert found == {}
    assert faults
    assert all(each.place.startswith(f"x: {key}") for each in faults)


def test_layers_of_options_are_merged_and_mappings_by_entry() -> None:
    lower = {"env": {"A": "1", "B": "1"}, "memory": 1}
    upper = {"env": {"B": "2"}, "instances": 2}
    assert model_options.merge(lower, upper) == {"env": {"A": "1", "B": "2"}, "memory": 1, "instances": 2}
    assert lower == {"env": {"A": "1", "B": "1"}, "memory": 1}
