"""The declaration that a model lacks, as YAML to paste, with the names of its tensors as far as its source tells them.

Datatypes and shapes are FP32 of any length: the source does not say them, so a person has to look.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Collection, Iterator
from typing import Final

from mmsup.ipc.python_models import CLASS_FILE, TRITON_CLASS
from mmsup.supervisor.repository.contents.torchscript_signature import TensorNames, returned_names, torchscript_names

SOURCE_LIMIT_BYTES: Final = 64 << 10
"""The controller waits for it: 100 ms."""


def missing_declaration(directory: str, artifact: str, declared: Collection[str] = ()) -> str:
    """Lines of `mmsup.yaml` for the artifact in a version's folder, without the keys that are declared."""
    is_class = artifact.endswith(".py")
    path = os.path.join(directory, artifact)
    if artifact.endswith((".pt", ".pth")):
        names = torchscript_names(path)
    else:
        names = _names_in(path if is_class else os.path.join(directory, CLASS_FILE), "infer" if is_class else "forward")
    inputs = names.inputs or (("x",) if is_class else ("INPUT__0",))
    outputs = names.outputs or (("y",) if is_class else ("OUTPUT__0",))
    lines = {"max_batch_size": "0", "inputs": _yaml(inputs), "outputs": _yaml(outputs)}
    return "\n".join(f"{key}: {value}" for key, value in lines.items() if key not in declared)


def _yaml(names: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'{{name: "{name}", datatype: FP32, shape: [-1]}}' for name in names) + "]"


def _names_in(path: str, method: str) -> TensorNames:
    """Of `infer(self, inputs)` the keys that are read of its argument, of `forward(self, x, y)` the arguments; of both
    what is returned."""
    try:
        with open(path, "rb") as source:
            tree = ast.parse(source.read(SOURCE_LIMIT_BYTES))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deeply
        return TensorNames()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == TRITON_CLASS:
            return _triton_names(node)
        if isinstance(node, ast.ClassDef) and node.name == "Model":
            for each in node.body:
                if isinstance(each, ast.FunctionDef) and each.name == method:
                    return _method_names(each)
    return TensorNames()


def _method_names(method: ast.FunctionDef) -> TensorNames:
    arguments = [each.arg for each in (*method.args.posonlyargs, *method.args.args)[1:]]
    is_forward = method.name == "forward"
    inputs = arguments if is_forward else list(_keys_read(method, arguments[0])) if arguments else []
    outputs: list[str] = []
    for node in ast.walk(method):
        if isinstance(node, ast.Return):
            outputs += returned_names(node.value, has_positions=is_forward)
    return TensorNames(tuple(dict.fromkeys(inputs)), tuple(dict.fromkeys(outputs)))


def _keys_read(method: ast.FunctionDef, argument: str) -> Iterator[str]:
    """Keys in `argument["key"]` and `argument.get("key")`."""
    for node in ast.walk(method):
        key: ast.expr | None = None
        if isinstance(node, ast.Subscript) and _is_name(node.value, argument):
            key = node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            key = node.args[0] if node.func.attr == "get" and _is_name(node.func.value, argument) else None
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value


def _triton_names(kind: ast.ClassDef) -> TensorNames:
    """Of `get_input_tensor_by_name(request, "x")` and `Tensor("y", array)`, in any method."""
    inputs: list[str] = []
    outputs: list[str] = []
    for node in ast.walk(kind):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            texts = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            if called == "get_input_tensor_by_name":
                inputs += texts[:1]
            elif called in ("Tensor", "from_dlpack"):
                outputs += texts[:1]
    return TensorNames(tuple(dict.fromkeys(inputs)), tuple(dict.fromkeys(outputs)))


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
