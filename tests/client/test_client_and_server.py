"""The clients, their examples and the notebook against one running server."""

from __future__ import annotations

import asyncio
import json
import runpy
import shutil
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from engines.build import write_identity_onnx, write_python
from harness.server import Server, eventually, serving
from mmsup.client import AsyncClient, Client, ServerRefused, TimedOut
from mmsup.client.tensors import DTYPES
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow
CLIENTS = Path(__file__).resolve().parents[2] / "examples" / "clients"
ECHO = """
import time

class Model:
    def infer(self, inputs):
        if "wait" in inputs:
            time.sleep(float(inputs["wait"][0]))
        return {name + "_out": array for name, array in inputs.items() if name != "wait"}
"""
DATATYPES = [*DTYPES, "BF16", "BYTES"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    for each in ("doubled", "words"):
        shutil.copytree(CLIENTS / "models" / each, repository / each)
    tensors = [TensorSpec(each.lower(), each, (-1,), optional=True) for each in DATATYPES]
    inputs = (*tensors, TensorSpec("wait", "FP64", (1,), optional=True))
    outputs = tuple(TensorSpec(f"{each.name}_out", each.datatype, each.shape) for each in tensors)
    write_python(repository, "echo", ECHO, inputs, outputs)
    write_identity_onnx(repository, "spare", "FP32", dims=[-1])
    unix = tmp_path_factory.mktemp("sockets") / "http.sock"
    with serving(repository, "--http-unix", str(unix)) as running:
        yield running


def tcp(server: Server) -> str:
    host, port = server.address()
    return f"{host}:{port}"


@pytest.fixture(params=["tcp", "unix"])
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Client]:
    address = tcp(server) if request.param == "tcp" else server.status()["addresses"]["http_unix"]
    with Client(address if ":" in address else f"unix:{address}") as made:
        yield made


def array_of(datatype: str) -> Any:
    if datatype == "BYTES":
        return np.array([b"a", b"", "ä".encode()], dtype=object)
    dtype = np.dtype(ml_dtypes.bfloat16) if datatype == "BF16" else DTYPES[datatype]
    return np.array([1, 0, 1]).astype(dtype)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_goes_there_and_back(client: Client, datatype: str) -> None:
    given, name = array_of(datatype), datatype.lower()
    result = client.infer("echo", {name: given}, outputs=[f"{name}_out"], id="r")
    found = result[f"{name}_out"]
    assert (found.dtype, found.tolist()) == (given.dtype, given.tolist())
    assert (result.model, result.version, result.id, list(result)) == ("echo", "1", "r", [f"{name}_out"])
    found.setflags(write=True)  # it is the caller's own


def test_large_arrays_go_through_shared_memory_or_not(client: Client) -> None:
    given = np.random.default_rng(1).standard_normal(1 << 20, dtype=np.float32)
    assert (client.infer("doubled", {"x": given})["y"] == given * 2).all()
    with client.shared_memory(3 * given.nbytes) as memory:
        x, y = memory.array(given.shape, "float32"), memory.array(given.shape, "float32")
        for shift in range(3):
            x[:] = given + shift
            result = client.infer("doubled", {"x": x}, into={"y": y})
            assert np.shares_memory(result["y"], y)
            assert (y == x * 2).all()
        assert (client.infer("doubled", {"x": x[:100]})["y"] == x[:100] * 2).all()
        assert [each["name"] for each in client.document("/v2/systemsharedmemory/status")] == [memory.name]
        assert not Path(f"/dev/shm/{memory.key}").exists(), "a program that ends now would leave nothing"
        del x, y, result
    assert client.document("/v2/systemsharedmemory/status") == []


def test_metadata_index_load_and_unload(client: Client) -> None:
    assert client.is_live()
    assert client.is_ready()
    assert client.is_ready("spare")
    assert not client.is_ready("nobody")
    assert "system_shared_memory" in client.server_metadata().extensions
    assert client.model_metadata("doubled").inputs[0].shape == (-1,)
    assert {"doubled", "echo", "spare", "words"} <= {each.name for each in client.index(ready=True)}
    client.unload("spare")
    assert not client.is_ready("spare")
    assert "spare" not in {each.name for each in client.index(ready=True)}
    client.load("spare")
    assert client.is_ready("spare", "1")
    assert client.document("/v2/models/spare/config")["name"] == "spare"
    with pytest.raises(ServerRefused, match="failed to load 'nobody'"):
        client.load("nobody")


def test_errors_and_time_limits(client: Client) -> None:
    with pytest.raises(ServerRefused) as caught:
        client.infer("doubled", {"x": np.array([1, 2])})
    assert (caught.value.code, caught.value.status, caught.value.model) == ("bad_request", 400, "doubled")
    assert not caught.value.retryable
    with pytest.raises((TimedOut, ServerRefused)) as late:
        client.infer("echo", {"int8": array_of("INT8"), "wait": np.array([0.5])}, outputs=["int8_out"], timeout_s=0.1)
    assert late.value.code in ("timed_out", "deadline_exceeded")
    found = client.infer("echo", {"int8": array_of("INT8")}, outputs=["int8_out"])
    assert found["int8_out"].tolist() == [1, 0, 1]


def test_a_stream_comes_part_by_part_and_ends_when_it_is_closed(server: Server, client: Client) -> None:
    prompt = np.array(["to be or not"])
    parts = client.stream("words", {"prompt": prompt, "max_words": [6]}, id="r")
    assert [each["word"].tolist() for each in parts] == [[b"to"], [b"be"], [b"or"], [b"not"], [b"to"], [b"be"]]
    endless = client.stream("words", {"prompt": prompt, "max_words": [1 << 30]})
    assert next(endless)["word"].tolist() == [b"to"]
    eventually(lambda: server.gauge("mmsup_requests_open", model="words") == 1, "it is open")
    endless.close()  # type: ignore[attr-defined] # a generator is what it is
    eventually(lambda: server.gauge("mmsup_requests_open", model="words") == 0, "it is over")
    with pytest.raises(ServerRefused) as caught:
        list(client.stream("words", {"prompt": np.array([1])}))
    assert caught.value.code == "bad_request"


def test_threads_share_a_client(client: Client) -> None:
    wrong: list[int] = []

    def ask(number: int) -> None:
        for _ in range(20):
            if client.infer("doubled", {"x": np.full(5, number, np.float32)})["y"].tolist() != [2 * number] * 5:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert wrong == []


def test_the_client_for_asyncio_does_the_same(server: Server) -> None:
    async def run() -> None:
        async with AsyncClient(tcp(server)) as client:
            inputs = [np.full(3, number, np.float32) for number in range(20)]
            results = await asyncio.gather(*(client.infer("doubled", {"x": x}) for x in inputs))
            assert [each["y"].tolist() for each in results] == [(2 * x).tolist() for x in inputs]
            large = np.random.default_rng(2).standard_normal(1 << 20, dtype=np.float32)
            assert ((await client.infer("doubled", {"x": large}))["y"] == large * 2).all()
            async with client.shared_memory(2 * large.nbytes) as memory:
                x, y = memory.array(large.shape, "float32"), memory.array(large.shape, "float32")
                x[:] = large
                await client.infer("doubled", {"x": x}, into={"y": y})
                assert (y == large * 2).all()
                del x, y
            inputs_of_words: dict[str, Any] = {"prompt": np.array(["a b"]), "max_words": [3]}
            assert [each["word"][0] async for each in client.stream("words", inputs_of_words)] == [b"a", b"b", b"a"]
            async with aclosing(client.stream("words", inputs_of_words | {"max_words": [1 << 30]})) as parts:
                async for part in parts:
                    assert part["word"].tolist() == [b"a"]
                    break
            assert await client.is_ready("doubled")
            assert (await client.model_metadata("doubled")).name == "doubled"
            with pytest.raises(ServerRefused, match="unknown model"):
                await client.infer("nobody", {})
            with pytest.raises((TimedOut, ServerRefused)):
                await client.infer("echo", {"wait": np.array([0.5])}, timeout_s=0.1)

    asyncio.run(run())
    eventually(lambda: server.gauge("mmsup_requests_open", model="words") == 0, "the stream is over")


@pytest.mark.parametrize("name", ["numpy_client", "asyncio_client", "triton_client"])
def test_the_examples_run(server: Server, name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", [name, tcp(server)])
    runpy.run_path(str(CLIENTS / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "doubled: [2. 5.]" in printed or "at once: [0.0, 2.0" in printed
    assert "shared memory: 2097150" in printed or "streamed: after" in printed


def test_the_notebook_runs(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Its code cells in turn, in one namespace."""
    monkeypatch.setenv("MMSUP_ADDRESS", tcp(server))
    notebook = json.loads((CLIENTS / "tour.ipynb").read_text())
    assert notebook["nbformat"] == 4
    assert all(not each["outputs"] for each in notebook["cells"] if each["cell_type"] == "code"), "outputs are not kept"
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)
    assert "one word after the other" in capsys.readouterr().out


def test_the_streaming_model_of_the_examples_is_one() -> None:
    other = CLIENTS.parent / "streaming_model" / "words"
    for path in ("mmsup.yaml", "1/model.py"):
        assert (CLIENTS / "models" / "words" / path).read_text() == (other / path).read_text()
