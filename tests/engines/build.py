"""Model repositories for tests: working models of every kind, and one that does harm on request.

Each `write_*` makes `REPOSITORY/NAME/config.pbtxt` and `REPOSITORY/NAME/1/…` as an operator would lay them, and gives
the spec that a worker gets for it, for tests without a supervisor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmsup.ipc.specs import ModelSpec, TensorSpec
from mmsup.ipc.tensors.datatypes import config_name
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.supervisor.chaos.plan import fault_model


def write_fault_model(repository: Path, name: str, **options: Any) -> ModelSpec:  # see below
    """A model that obeys `mode`, with `on_import`, `on_load` (modes too), `on_load_amount`, `held_by`,
    `max_batch_size`; `config` is more of its `config.pbtxt`, any other option goes to its `mmsup.yaml`."""
    batch, more = options.pop("max_batch_size", 0), options.pop("config", "")
    heads = {key: options.pop(key) for key in ("on_import", "on_load", "on_load_amount", "held_by") if key in options}
    code = fault_model.source(**heads, batched=bool(batch))
    inputs = (
        TensorSpec("x", "FP32", (-1,)),
        TensorSpec("mode", "BYTES", (1,), optional=True),
        TensorSpec("amount", "FP64", (1,), optional=True),
    )
    outputs = (TensorSpec("y", "FP32", (-1,)), TensorSpec("runs", "INT64", (1,)))
    spec = write_python(repository, name, code, inputs, outputs, batch, options)
    if more:
        with (repository / name / "config.pbtxt").open("a") as config:
            config.write(more)
    return spec


def mode(word: str, amount: float = 0.0, x: Array | None = None) -> dict[str, Array]:
    """Inputs that make a fault model do something."""
    given = np.arange(5, dtype=np.float32) if x is None else x
    return {"x": given, "mode": np.array([word.encode()], dtype=np.object_), "amount": np.array([amount])}


def write_python(
    repository: Path,
    name: str,
    code: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_batch: int = 0,
    settings: Mapping[str, Any] | None = None,  # values of a YAML file
) -> ModelSpec:
    """A plain Python model with this code."""
    folder = _folder(repository, name)
    (folder / "model.py").write_text(code)
    _write_config(repository, name, "python", max_batch, inputs, outputs)
    _write_settings(repository, name, settings or {})
    return _spec(folder, "model.py", "custom", max_batch, inputs, outputs)


def write_identity_onnx(
    repository: Path, name: str, datatype: str = "FP32", dims: Sequence[int] = (-1,), max_batch: int = 0
) -> ModelSpec:
    """`y = x`, in ONNX; without a configuration unless it batches."""
    return _write_onnx(repository, name, "Identity", datatype, dims, max_batch)


def write_mean_onnx(repository: Path, name: str, dims: Sequence[int] = (-1,), max_batch: int = 0) -> ModelSpec:
    """`y`: the mean of FP32 `x` over its last axis, which is kept."""
    return _write_onnx(repository, name, "ReduceMean", "FP32", dims, max_batch)


def _write_onnx(
    repository: Path, name: str, operator: str, datatype: str, dims: Sequence[int], max_batch: int
) -> ModelSpec:
    import onnx
    from onnx import TensorProto, helper

    kinds = {
        "BOOL": TensorProto.BOOL, "BYTES": TensorProto.STRING, "FP16": TensorProto.FLOAT16,
        "BF16": TensorProto.BFLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    }  # fmt: skip
    kind = kinds.get(datatype) or getattr(TensorProto, datatype)
    whole = [-1, *dims] if max_batch else list(dims)
    mean = operator == "ReduceMean"
    named = [f"d{index}" if size == -1 else size for index, size in enumerate(whole)]
    made = [*named[:-1], 1] if mean else named
    attributes: dict[str, Any] = {"axes": [-1], "keepdims": 1} if mean else {}  # as the operator has them
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], **attributes)],
        name,
        [helper.make_tensor_value_info("x", kind, named)],
        [helper.make_tensor_value_info("y", kind, made)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=9)
    folder = _folder(repository, name)
    onnx.save(model, folder / "model.onnx")
    inputs = (TensorSpec("x", datatype, tuple(dims)),)
    outputs = (TensorSpec("y", datatype, (*dims[:-1], 1) if mean else tuple(dims)),)
    if max_batch:
        _write_config(repository, name, "onnxruntime", max_batch, inputs, outputs)
    return _spec(folder, "model.onnx", "ort", max_batch, inputs if max_batch else (), outputs if max_batch else ())


def write_torchscript(
    repository: Path, name: str, datatype: str = "FP32", dims: Sequence[int] = (-1,), max_batch: int = 0
) -> ModelSpec:
    """`OUTPUT__0 = INPUT__0`, in TorchScript."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit announces its retirement
        traced = torch.jit.trace(torch.nn.Identity(), torch.zeros(1))
        folder = _folder(repository, name)
        torch.jit.save(traced, str(folder / "model.pt"))
    inputs = (TensorSpec("INPUT__0", datatype, tuple(dims)),)
    outputs = (TensorSpec("OUTPUT__0", datatype, tuple(dims)),)
    _write_config(repository, name, "pytorch", max_batch, inputs, outputs)
    return _spec(folder, "model.pt", "pytorch", max_batch, inputs, outputs)


def write_exported(repository: Path, name: str, max_batch: int = 0) -> ModelSpec:
    """`total = x + y` and `difference = x - y` of FP32 rows of 4, by torch.export, with names of its own."""
    import torch

    class Both(torch.nn.Module):  # type: ignore[misc] # mypy does not read torch
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"total": x + y, "difference": x - y}

    rows = torch.export.Dim("rows")
    example = (torch.zeros(3, 4), torch.zeros(3, 4))
    program = torch.export.export(Both(), example, dynamic_shapes={"x": {0: rows}, "y": {0: rows}})
    folder = _folder(repository, name)
    torch.export.save(program, folder / "model.pt2")
    if max_batch:
        (repository / name / "config.pbtxt").write_text(f"max_batch_size: {max_batch}\n")
    return _spec(folder, "model.pt2", "pytorch", max_batch, (), ())


def write_safetensors(repository: Path, name: str, scale: float = 1.0) -> ModelSpec:
    """`y = x * scale` of FP32, the scale in safetensors and the class beside it."""
    import torch
    from safetensors.torch import save_file

    folder = _folder(repository, name)
    save_file({"scale": torch.tensor([scale])}, folder / "model.safetensors")
    (folder / "model.py").write_text(
        "import torch\n\n\nclass Model(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.scale = torch.nn.Parameter(torch.zeros(1))\n\n"
        "    def forward(self, x):\n        return x.mul_(self.scale)\n"
    )
    inputs, outputs = (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),)
    _write_config(repository, name, "pytorch", 0, inputs, outputs)
    return _spec(folder, "model.safetensors", "pytorch", 0, inputs, outputs)


def _folder(repository: Path, name: str) -> Path:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    return folder


def _spec(
    folder: Path,
    artefact: str,
    engine: str,
    max_batch: int,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> ModelSpec:
    return ModelSpec(
        name=folder.parent.name,
        version=folder.name,
        directory=str(folder),
        artefact=artefact,
        engine=engine,
        platform={"ort": "onnxruntime_onnx", "pytorch": "pytorch_libtorch", "custom": "python"}[engine],
        max_batch_size=max_batch,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
    )


def _write_config(
    repository: Path,
    name: str,
    backend: str,
    max_batch: int,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> None:
    lines = [f'name: "{name}"', f'backend: "{backend}"', f"max_batch_size: {max_batch}"]
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for each in tensors:
            optional = ", optional: true" if each.optional else ""
            dims = ", ".join(map(str, each.shape))
            fields = f'name: "{each.name}", data_type: {config_name(each.datatype)}, dims: [ {dims} ]{optional}'
            lines.append(f"{kind} [ {{ {fields} }} ]")
    (repository / name / "config.pbtxt").write_text("\n".join(lines) + "\n")


def _write_settings(repository: Path, name: str, settings: Mapping[str, Any]) -> None:  # values of a YAML file
    if settings:  # JSON is YAML
        (repository / name / "mmsup.yaml").write_text(json.dumps(dict(settings)) + "\n")
