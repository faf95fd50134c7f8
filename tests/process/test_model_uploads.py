"""Models whose files clients send: over HTTP and gRPC, across restarts, until they are unloaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from engines.build import write_identity_onnx
from harness.server import Server, serving

pytestmark = pytest.mark.slow
CONFIG = json.dumps({"max_batch_size": "4"})


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("sent")
    write_identity_onnx(root, "sent", "FP32", dims=[-1], max_batch=4)
    return (root / "sent" / "1" / "model.onnx").read_bytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    write_identity_onnx(repository, "steady", "FP32", dims=[-1], max_batch=4)
    with serving(repository, "--allow-model-uploads", "--max-upload-bytes", "1MiB") as running:
        yield running


def http(server: Server) -> Any:
    return triton_http.InferenceServerClient("{}:{}".format(*server.address()))


def infer(server: Server, model: str) -> list[Any]:
    value = np.array([[1, 2]], np.float32)
    given = triton_http.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(value)
    with http(server) as client:
        found = client.infer(model, [given]).as_numpy("y")
    return list(found.reshape(-1).tolist())


def refusal(call: Callable[..., Any], *arguments: Any, **more: Any) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each client has an error of its own
        call(*arguments, **more)
    return str(caught.value)


def test_a_model_that_was_sent_serves_survives_a_restart_and_is_gone_when_unloaded(server: Server, onnx: bytes) -> None:
    steady = server.pid("steady")
    files = {"file:1/model.onnx": onnx}
    with http(server) as client:
        client.load_model("one", config=CONFIG, files=files)
        assert infer(server, "one") == [1, 2]
        assert client.get_model_config("one")["max_batch_size"] == 4
        assert "a model repository has a model" in refusal(client.load_model, "steady", config=CONFIG, files=files)
        broken = {"file:1/model.onnx": b"no model"}
        assert "failed to load 'one'" in refusal(client.load_model, "one", config=CONFIG, files=broken)
        assert "failed to load 'two'" in refusal(client.load_model, "two", config=CONFIG, files=broken)
        assert "is no model configuration" in refusal(client.load_model, "two", config='{"nope": 1}', files=files)
        assert "--allow-code-uploads" in refusal(
            client.load_model, "two", config=CONFIG, files={"file:1/model.py": b"raise SystemExit"}
        )
        large = {"file:1/model.onnx": bytes(1 << 20)}
        assert "exceed what uploaded models may take" in refusal(client.load_model, "two", config=CONFIG, files=large)
        assert not client.is_model_ready("two")
        assert "two" not in [each["name"] for each in client.get_model_repository_index()]
    assert infer(server, "one") == [1, 2]
    with triton_grpc.InferenceServerClient("{}:{}".format(*server.address("grpc"))) as client:
        client.load_model("three", config=CONFIG, files=files)
        long = {f"file:1/{'x' * 256}.onnx": onnx}
        text = refusal(client.load_model, "four", config=CONFIG, files=long)
        assert "INTERNAL" in text
        assert "failed to load 'four', failed to poll from model repository" in text
    assert infer(server, "three") == [1, 2]
    assert server.pid("steady") == steady
    assert infer(server, "steady") == [1, 2]
    assert len(server.events("model_uploaded")) == 4

    assert server.stop() == 0
    server.start_again()
    server.await_ready()
    assert infer(server, "one") == [1, 2]
    assert infer(server, "three") == [1, 2]
    with http(server) as client:
        for name in ("one", "three"):
            client.unload_model(name)
            assert not client.is_model_ready(name)
            assert f"failed to load '{name}', failed to poll" in refusal(client.load_model, name)
    assert list((server.state_dir / "uploads").iterdir()) == []
    assert infer(server, "steady") == [1, 2]
