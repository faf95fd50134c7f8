"""The ONNX network of the batching scene: a run costs much by itself, so that a batch costs little more than one row.

python benchmarks/network.py FILE      makes it, and prints what it costs by itself
"""

from __future__ import annotations

import os
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from places import BUILT
from work import MLP_INPUTS, MLP_OUTPUTS, Array

WIDTHS = (MLP_INPUTS, *[32] * 1000, MLP_OUTPUTS)
"""A thousand thin layers: about 1.0 ms for one row and 1.3 ms for 16, on one core of a server of 2023."""
SLOPE = 0.9
"""Of the leaky ReLU: near 1, or a thousand layers make all inputs alike and a wrong row would look right."""


def make(file: Path) -> None:
    """Write it: linear and leaky ReLU in turn, weights from a fixed seed."""
    import onnx  # noqa: PLC0415 - seconds to import, and only here
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    random = np.random.default_rng(3)
    nodes, weights, name = [], [], "x"
    for place, (rows, columns) in enumerate(pairwise(WIDTHS)):
        square = np.linalg.qr(random.standard_normal((max(rows, columns),) * 2))[0][:columns, :rows]
        weight = (square * (2 / (1 + SLOPE**2)) ** 0.5).astype(np.float32)
        bias = 0.01 * random.standard_normal(columns, dtype=np.float32)
        weights += [numpy_helper.from_array(weight, f"w{place}"), numpy_helper.from_array(bias, f"b{place}")]
        last = place == len(WIDTHS) - 2
        out = "y" if last else f"h{place}"
        nodes.append(helper.make_node("Gemm", [name, f"w{place}", f"b{place}"], [out], transB=1))
        if not last:
            nodes.append(helper.make_node("LeakyRelu", [out], [name := f"r{place}"], alpha=SLOPE))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTHS[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTHS[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    whole = file.with_suffix(f".{os.getpid()}")
    whole.write_bytes(model.SerializeToString())
    whole.replace(file)


class OnnxNetwork:
    """It, run here: the right answers, and its cost without any server."""

    def __init__(self, file: Path) -> None:
        import onnxruntime  # noqa: PLC0415 - as above

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.file = file
        self._session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])

    def __call__(self, x: Array) -> Array:
        answer: Array = self._session.run(["y"], {"x": x})[0]
        return answer

    def cost_ms(self, rows: int, times: int = 60) -> float:
        """The best time of one run with so many rows."""
        x = np.random.default_rng(1).standard_normal((rows, WIDTHS[0]), dtype=np.float32)
        taken = []
        for _ in range(times):
            begin = time.perf_counter()
            self(x)
            taken.append(time.perf_counter() - begin)
        return min(taken) * 1e3


def network() -> OnnxNetwork:
    """It, made if it is not there or older than this file."""
    file = BUILT / "mlp.onnx"
    if not file.exists() or file.stat().st_mtime < Path(__file__).stat().st_mtime:
        file.parent.mkdir(parents=True, exist_ok=True)
        make(file)
    return OnnxNetwork(file)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
    made = OnnxNetwork(Path(sys.argv[1]))
    print({rows: round(made.cost_ms(rows), 2) for rows in (1, 2, 4, 8, 16, 32)})
