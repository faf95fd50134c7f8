"""Clients that people already have: curl and tritonclient, as processes of their own."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from gateway_double import FakeRouter, metadata, served
from mmsup.gateway.protocol.binary_tensors import HEADER

pytestmark = pytest.mark.slow
DEADLINE_S = 60.0

TRITON = """
import sys
import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

client = http.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("m")
assert not client.is_model_ready("zz")
assert client.get_server_metadata()["name"] == "mmsup"
assert client.get_model_metadata("m")["inputs"][0] == {"name": "X", "datatype": "FP32", "shape": [-1]}
assert client.get_model_config("m")["input"][0]["data_type"] == "TYPE_FP32"
client.unregister_system_shared_memory()
client.unregister_cuda_shared_memory()
assert client.get_system_shared_memory_status() == []


def ask(model, name, array, datatype, sent_binary, got_binary, **more):
    given = http.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=sent_binary)
    wanted = None if got_binary is None else [http.InferRequestedOutput(name + "_out", binary_data=got_binary)]
    result = client.infer(model, [given], outputs=wanted, request_id="r1", **more)
    assert result.get_response()["id"] == "r1"
    return result.as_numpy(name + "_out")


x = np.array([0.1, -2.5, np.nan, np.inf], np.float32)
s = np.array(["a", "\\u00e4\\u00f6", ""], np.object_)
for sent in (True, False):
    for got in (True, False, None):
        np.testing.assert_array_equal(ask("m", "X", x, "FP32", sent, got), x)
        told = ask("s", "S", s, "BYTES", sent, got)
        assert [each.decode() if isinstance(each, bytes) else each for each in told] == list(s)
h = np.array([1.5, -2], np.float16)
np.testing.assert_array_equal(ask("h", "H", h, "FP16", True, None), h)
for coding in ("gzip", "deflate"):
    codings = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
    np.testing.assert_array_equal(ask("m", "X", x, "FP32", True, True, **codings), x)
empty = np.zeros([0], np.float32)
assert ask("m", "X", empty, "FP32", True, None).size == 0
ask("m", "X", x, "FP32", True, True, timeout=5_000_000, priority=1, parameters={"beam": 4})

classes = client.infer("m", [given := http.InferInput("X", [4], "FP32").set_data_from_numpy(x)],
                       outputs=[http.InferRequestedOutput("X_out", class_count=1)])
assert classes.as_numpy("X_out").tolist() == [b"inf:3"], classes.as_numpy("X_out")

large = np.arange(3_150_000, dtype=np.float32)
np.testing.assert_array_equal(ask("m", "X", large, "FP32", True, True), large)
pending = [client.async_infer("m", [http.InferInput("X", [4], "FP32").set_data_from_numpy(x)]) for _ in range(8)]
for each in pending:
    np.testing.assert_array_equal(each.get_result().as_numpy("X_out"), x)

assert client.get_model_repository_index() == [{"name": "m", "version": "1", "state": "READY", "reason": ""}]
client.load_model("m")
client.load_model("m", config='{"max_batch_size":"8"}')
client.unload_model("m")
assert client.get_inference_statistics("m")["model_stats"][0]["inference_count"] > 10

wrong = (("zz", x, "Request for unknown model: 'zz' is not found"), ("m", x.reshape(2, 2), "unexpected shape"))
for model, array, says in wrong:
    try:
        ask(model, "X", array, "FP32", True, True)
    except InferenceServerException as error:
        assert says in error.message(), error
        assert error.status() in ("400", "404"), error.status()
    else:
        raise AssertionError(f"{says} was not said")
client.close()
print("all well")
"""


def backend() -> FakeRouter:
    made = FakeRouter()
    for name, tensor, datatype in (("m", "X", "FP32"), ("s", "S", "BYTES"), ("h", "H", "FP16")):
        made.serve(name, metadata((tensor, datatype, (-1,))))
    made.answers |= {
        "index": [{"name": "m", "version": "1", "state": "READY", "reason": ""}],
        "load": {},
        "unload": {},
    }
    return made


async def output_of(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(DEADLINE_S):
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


def test_tritonclient_finds_everything_it_asks_for() -> None:
    async def run() -> None:
        made = backend()
        async with served(made) as port:
            assert (await output_of(sys.executable, "-c", TRITON, f"127.0.0.1:{port}")).strip() == "all well"
        assert [verb for verb, _ in made.asked if verb != "status"] == ["index", "load", "load", "unload"]
        assert made.asked[2][1] == {"name": "m", "parameters": {"config": '{"max_batch_size":"8"}'}}

    asyncio.run(run())


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_is_served_with_its_own_content_type_and_asks_before_a_large_upload(tmp_path: Path) -> None:
    data = np.arange(1_000_000, dtype=np.float32).tobytes()
    head = json.dumps(
        {
            "inputs": [
                {"name": "X", "shape": [1_000_000], "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
            ],
            "outputs": [{"name": "X_out", "parameters": {"binary_data": True}}],
        }
    )
    upload, download = tmp_path / "upload", tmp_path / "download"
    upload.write_bytes(head.encode() + data)

    async def run() -> None:
        async with served(backend()) as port:
            url = f"http://127.0.0.1:{port}/v2/models/m/infer"
            small = '{"inputs":[{"name":"X","shape":[1],"datatype":"FP32","data":[0.1]}]}'
            told = await output_of("curl", "-sS", url, "-d", small)
            assert json.loads(told)["outputs"][0]["data"] == [0.1]
            trace = await output_of(
                "curl", "-svS", url, "-H", f"{HEADER}: {len(head)}", "--data-binary", f"@{upload}", "-o", str(download)
            )
            assert "100 Continue" in trace
            assert download.read_bytes().endswith(data)
            told = await output_of("curl", "-sSI", f"http://127.0.0.1:{port}/v2/health/ready")
            assert told.startswith("HTTP/1.1 200")

    asyncio.run(run())
