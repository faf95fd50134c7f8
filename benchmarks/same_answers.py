"""Whether forked workers answer as executed ones do: torch and onnxruntime with two threads inside an operator.

python benchmarks/same_answers.py [--requests 10000] [--kinds torch,onnx]

Of each kind one server runs the same model twice, one worker forked and one executed. Both get the same requests, each
with other values, and their answers are compared bit by bit; exit code 1 if one differs by more than a part in 10^5.
Beside other work it is slow: where one of two threads waits for a processor, the other one waits for it, in each
operator.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

ROWS: Final = 8
COLUMNS: Final = 64
THREADS: Final = 2
WINDOW: Final = 8
"""Requests under way."""
ANSWER_S: Final = 60.0
"""Until an answer, at most."""
SEED: Final = 3
TOLERANCE: Final = 1e-5
TORCH: Final = """
import torch
torch.manual_seed(1)
layers = torch.nn.Sequential(
    torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Unflatten(1, (2, 16, 16)), torch.nn.Conv2d(2, 8, 3, padding=1),
    torch.nn.Flatten(), torch.nn.Linear(2048, 64)).eval()
class Model:
    def infer(self, inputs):
        assert torch.get_num_threads() == 2
        with torch.inference_mode():
            return {"y": layers(torch.from_numpy(inputs["x"])).numpy()}
"""
TENSORS: Final = (
    "inputs: [{name: x, datatype: FP32, shape: [8, 64]}]\noutputs: [{name: y, datatype: FP32, shape: [8, 64]}]\n"
)
Rows = npt.NDArray[np.float32]


@dataclass
class Comparison:
    """Of the answers of two models to the same requests."""

    requests: int = 0
    equal: int = 0
    """To the last bit."""
    largest: float = 0.0
    """Of the differences, relative to the largest value of the answer."""

    def add(self, first: Rows, second: Rows) -> None:
        self.requests += 1
        self.equal += first.tobytes() == second.tobytes()
        self.largest = max(self.largest, float(np.abs(first - second).max() / np.abs(first).max()))

    @property
    def is_good(self) -> bool:
        return self.largest <= TOLERANCE


def write_model(repository: Path, name: str, kind: str, start: str) -> None:
    """A matrix product, a convolution and another product, with two threads each."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    settings = f"start: {start}\n"
    if kind == "onnx":
        write_onnx(folder / "model.onnx")
        settings += f"parameters: {{intra_op_thread_count: {THREADS}}}\n"
    else:
        (folder / "model.py").write_text(TORCH)
        settings += f"{TENSORS}preload: torch\nenv: {{OMP_NUM_THREADS: '{THREADS}'}}\n"
    (repository / name / "mmsup.yaml").write_text(settings)


def write_onnx(path: Path) -> None:
    import onnx  # noqa: PLC0415 - for one kind of model only
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    random = np.random.default_rng(SEED)
    shapes = {"a": (64, 512), "k": (8, 2, 3, 3), "b": (2048, 64)}
    weights = [
        numpy_helper.from_array(random.standard_normal(shape, dtype=np.float32) / 16, name)
        for name, shape in shapes.items()
    ]
    weights += [numpy_helper.from_array(np.array(shape), f"to_{name}") for name, shape in _INNER_SHAPES.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Reshape", ["r", "to_image"], ["i"]),
        helper.make_node("Conv", ["i", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["c", "to_row"], ["f"]),
        helper.make_node("MatMul", ["f", "b"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS, COLUMNS]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=9), path)


_INNER_SHAPES: Final = {"image": (-1, 2, 16, 16), "row": (-1, 2048)}


def inputs(requests: int) -> Iterator[Rows]:
    """The same ones at each call."""
    random = np.random.default_rng(SEED)
    for _ in range(requests):
        yield random.standard_normal((ROWS, COLUMNS), dtype=np.float32)


def answers(address: tuple[str, int], model: str, requests: int) -> Iterator[Rows]:
    """To each of `inputs`, in order; WINDOW requests are under way on one connection at a time."""
    with socket.create_connection(address, ANSWER_S) as sock, sock.makefile("rb") as replies:
        sent = 0
        for x in inputs(requests):
            sock.sendall(request_bytes(model, x))
            sent += 1
            if sent >= WINDOW:
                yield read_answer(replies)
        for _ in range(min(sent, WINDOW - 1)):
            yield read_answer(replies)


def request_bytes(model: str, x: Rows) -> bytes:
    given = {"name": "x", "datatype": "FP32", "shape": x.shape, "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(head) + x.nbytes}",
        f"Inference-Header-Content-Length: {len(head)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + head + x.tobytes()


def read_answer(replies: BinaryIO) -> Rows:
    """The numbers of `y`."""
    status, headers = replies.readline(), http.client.parse_headers(replies)
    body = replies.read(int(headers["Content-Length"]))
    if b" 200 " not in status:
        raise SystemExit(f"{status.decode().strip()}: {body.decode()}")
    return np.frombuffer(body[int(headers["Inference-Header-Content-Length"]) :], np.float32)


def compare(address: tuple[str, int], names: tuple[str, str], requests: int) -> Comparison:
    """Of two models behind this address. All answers of the first are kept, then those of the second come: two that
    compute at once would take the processors from each other."""
    found = Comparison()
    first = list(answers(address, names[0], requests))
    for one, other in zip(first, answers(address, names[1], requests), strict=True):
        found.add(one, other)
    return found


def main(arguments: Sequence[str]) -> int:
    from start import IMPORTS, running  # noqa: PLC0415 - the functions above are used without a server of its own

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kinds", default="torch,onnx")
    options = parser.parse_args(arguments)
    failed = False
    for kind in options.kinds.split(","):
        with running("eager") as server:
            for start in ("zygote", "exec"):
                write_model(server.repository, f"{kind}_{start}", kind, start)
            server.load(f"{kind}_zygote")
            server.load(f"{kind}_exec")
            how = server.ctl("show", name=f"{kind}_zygote")["instances"][0]["start"]
            assert how.startswith(f"forked: of zygote 2, which imports {IMPORTS[kind]}"), how
            began_s = time.monotonic()
            found = compare(server.address, (f"{kind}_zygote", f"{kind}_exec"), options.requests)
            took_s = time.monotonic() - began_s
        print(
            f"{kind}: {found.requests} requests to each, {found.equal} answers equal to the last bit, "
            f"largest difference {found.largest:.2g}; {took_s:.0f} s",
            flush=True,
        )
        failed |= not found.is_good
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
