"""The declaration that a model lacks, as YAML to paste, with the names of its tensors as far as its source tells them.

Datatypes and shapes are FP32 of any length: the source does not say them, so a person has to look.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.python_models import CLASS_FILE

SOURCE_LIMIT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorNames:
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


def missing_declaration(directory: str, artifact: str) -> str:
    """Lines of `mmsup.yaml` for the artifact in a version's folder."""
    is_class = artifact.endswith(".py")
    names = TensorNames()
    if is_class or artifact.endswith(".safetensors"):
        names = _names_in(
            os.path.join(directory, artifact if is_class else CLASS_FILE), "infer" if is_class else "forward"
        )
    inputs = names.inputs or (("x",) if is_class else ("INPUT__0",))
    outputs = names.outputs or (("y",) if is_class else ("OUTPUT__0",))
    return f"max_batch_size: 0\ninputs: {_yaml(inputs)}\noutputs: {_yaml(outputs)}"


def _yaml(names: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'{{name: "{name}", datatype: FP32, shape: [-1]}}' for name in names) + "]"


def _names_in(path: str, method: str) -> TensorNames:
    try:
        with open(path, "rb") as source:
            tree = ast.parse(source.read(SOURCE_LIMIT_BYTES))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return TensorNames()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == "Model":
            for each in node.body:
                if isinstance(each, ast.FunctionDef) and each.name == method:
                    return method_names(each)
    return TensorNames()


def method_names(method: ast.FunctionDef) -> TensorNames:
    """Of `infer(self, inputs)` the keys that are read of its argument, of `forward(self, x, y)` the arguments; of both
    the keys of a dict that is returned."""
    arguments = [each.arg for each in method.args.args[1:]]
    inputs = arguments if method.name == "forward" else list(_keys_read(method, arguments[0])) if arguments else []
    outputs = [
        key.value
        for node in ast.walk(method)
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Dict)
        for key in node.value.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    ]
    return TensorNames(tuple(dict.fromkeys(inputs)), tuple(dict.fromkeys(outputs)))


def _keys_read(method: ast.FunctionDef, argument: str) -> Iterator[str]:
    """Keys in `argument["key"]` and `argument.get("key")`."""
    for node in ast.walk(method):
        key: ast.expr | None = None
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == argument:
            key = node.slice
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == f"{argument}.get" and node.args:
            key = node.args[0]
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value
