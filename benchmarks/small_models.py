"""A repository of small models with real weights, each of which gives another answer to the same input.

All are networks of one hidden layer, y = max(x·a + b, 0)·c + d; half of them are Python classes that import numpy, four
tenths ONNX files and a tenth weights for torch.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from work import Array

INPUTS, OUTPUTS = 64, 16
HIDDEN = (256, 1024, 4096)
"""80 KB, 330 KB, 1.3 MB of weights."""
KINDS = ("numpy",) * 5 + ("onnx",) * 4 + ("torch",)
"""Of ten models; without torch its share is that of numpy."""
TENSORS = (
    f"inputs: [{{name: x, datatype: FP32, shape: [1, {INPUTS}]}}]\n"
    f"outputs: [{{name: y, datatype: FP32, shape: [1, {OUTPUTS}]}}]\n"
)
NUMPY = """from pathlib import Path

import numpy as np


class Model:
    def __init__(self):
        with np.load(Path(__file__).parent / "weights.npz") as file:
            self.a, self.b, self.c, self.d = (file[name] for name in "abcd")

    def infer(self, inputs):
        return {"y": np.maximum(inputs["x"] @ self.a + self.b, 0) @ self.c + self.d}
"""
TORCH = f"""import torch


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        shapes = dict(a=({INPUTS}, HIDDEN), b=(HIDDEN,), c=(HIDDEN, {OUTPUTS}), d=({OUTPUTS},))
        for name, shape in shapes.items():
            setattr(self, name, torch.nn.Parameter(torch.zeros(shape)))

    def forward(self, x):
        return torch.relu(x @ self.a + self.b) @ self.c + self.d
"""
Weights = Mapping[str, Array]


@dataclass(frozen=True)
class SmallModel:
    """One model, as the client knows it."""

    name: str
    kind: str
    weights: Weights

    def answers(self, x: Array) -> Array:
        """What it answers to rows of inputs: N x INPUTS to N x OUTPUTS."""
        w = self.weights
        made: Array = np.maximum(x @ w["a"] + w["b"], 0) @ w["c"] + w["d"]
        return made

    def request(self) -> bytes:
        """An inference request up to its tensor, which follows as floats of 32 bits."""
        x = {"name": "x", "datatype": "FP32", "shape": [1, INPUTS], "parameters": {"binary_data_size": INPUTS * 4}}
        head = json.dumps({"inputs": [x], "parameters": {"binary_data_output": True}}, separators=(",", ":"))
        lines = [
            f"POST /v2/models/{self.name}/infer HTTP/1.1",
            "Host: 127.0.0.1",
            "Content-Type: application/octet-stream",
            f"Inference-Header-Content-Length: {len(head)}",
            f"Content-Length: {len(head) + INPUTS * 4}",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n" + head).encode()


def write_models(repository: Path, count: int, seed: int) -> list[SmallModel]:
    """Write so many models; the same for the same seed."""
    kinds = KINDS if importlib.util.find_spec("torch") else tuple(each.replace("torch", "numpy") for each in KINDS)
    return [_write(repository, kinds[number % len(kinds)], number, seed) for number in range(count)]


def _write(repository: Path, kind: str, number: int, seed: int) -> SmallModel:
    draw = np.random.default_rng((seed, number))
    hidden = HIDDEN[int(draw.integers(len(HIDDEN)))]
    shapes = {"a": (INPUTS, hidden), "b": (hidden,), "c": (hidden, OUTPUTS), "d": (OUTPUTS,)}
    made = {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    model = SmallModel(f"{kind}-{number:03}", kind, made | {"c": made["c"] / np.float32(np.sqrt(hidden))})
    folder = repository / model.name / "1"
    folder.mkdir(parents=True)
    {"numpy": _write_numpy, "onnx": _write_onnx, "torch": _write_torch}[kind](folder, model.weights)
    return model


def _write_numpy(folder: Path, weights: Weights) -> None:
    np.savez(folder / "weights.npz", allow_pickle=False, **weights)
    (folder / "model.py").write_text(NUMPY)
    (folder.parent / "mmsup.yaml").write_text(TENSORS)


def _write_torch(folder: Path, weights: Weights) -> None:
    from safetensors.numpy import save_file  # noqa: PLC0415 - comes with torch, which may not be there

    save_file({name: np.ascontiguousarray(each) for name, each in weights.items()}, folder / "model.safetensors")
    (folder / "model.py").write_text(TORCH.replace("HIDDEN", str(len(weights["b"]))))
    (folder.parent / "mmsup.yaml").write_text(TENSORS + "trusted: true\n")


def _write_onnx(folder: Path, weights: Weights) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["xa"]),
        helper.make_node("Add", ["xa", "b"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["positive"]),
        helper.make_node("MatMul", ["positive", "c"], ["hc"]),
        helper.make_node("Add", ["hc", "d"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, INPUTS])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, OUTPUTS])
    constants = [numpy_helper.from_array(each, name) for name, each in weights.items()]
    graph = helper.make_graph(nodes, "network", [x], [y], constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
