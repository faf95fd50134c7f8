from __future__ import annotations

import json

import numpy as np
import pytest

from example_files import example


def test_a_request_is_a_head_and_the_bytes_it_names() -> None:
    x, flags = np.arange(6, dtype=np.float32).reshape(2, 3).T, np.array([True, False])
    with example("client") as client:
        head, body = client.request({"x": x, "flags": flags})
    described = json.loads(head)["inputs"]
    assert [(each["name"], each["datatype"], each["shape"]) for each in described] == [
        ("x", "FP32", [3, 2]),
        ("flags", "BOOL", [2]),
    ]
    sizes = [each["parameters"]["binary_data_size"] for each in described]
    assert sizes == [24, 2]
    assert body == np.ascontiguousarray(x).tobytes() + b"\x01\x00"


def test_a_reply_is_read_wherever_its_tensors_stand() -> None:
    label = np.array([3, 4], dtype=np.int64)
    outputs = [
        {"name": "p", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]},
        {"name": "label", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}},
    ]
    head = json.dumps({"outputs": outputs}).encode()
    with example("client") as client:
        found = client.reply(head + label.tobytes(), len(head))
    assert found["p"].tolist() == [[0.25, 0.75]]
    assert found["label"].tolist() == [3, 4]


def test_a_label_is_the_models_own_or_the_most_probable() -> None:
    with example("client") as client:
        assert client.labels({"label": np.array([[7]])}).tolist() == [7]
        assert client.labels({"probabilities": np.array([[0.1, 0.9], [0.8, 0.2]])}).tolist() == [1, 0]


def test_a_tensor_without_a_datatype_of_the_protocol_is_not_sent() -> None:
    with example("client") as client, pytest.raises(KeyError):
        client.request({"x": np.zeros(2, dtype=np.complex64)})
