"""Names in the signature of `forward` in a TorchScript archive, read without torch and without running anything.

The archive has the source of its classes as text, whose grammar is Python's, and a pickle that begins with the class of
the whole module:

    data.pkl                  GLOBAL `__torch__.net Scale`
    code/__torch__/net.py     class Scale(Module): … def forward(self: __torch__.net.Scale, image: Tensor) -> Tensor: …

Datatypes and shapes are not in it. What is not understood has no names. The controller waits for it, so what is read is
bounded.
"""

from __future__ import annotations

import ast
import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

READ_LIMIT_BYTES: Final = 256 << 10
_TENSORS: Final = ("Tensor", "Optional[Tensor]")
_RETURNED_DICT: Final = re.compile(r"^    return (\{.{1,4096}\})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class TensorNames:
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


def torchscript_names(path: str) -> TensorNames:
    """The names of the tensors that `forward` takes and returns; none if they cannot be read."""
    try:
        with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            pickled = next(each for each in archive.namelist() if each.endswith("/data.pkl") and each.count("/") == 1)
            module, _, name = _module_class(_read(archive, pickled)).rpartition(" ")
            code = pickled.removesuffix("data.pkl") + f"code/{module.replace('.', '/')}.py"
            return signature_names(_read(archive, code).decode(), name)
    except (OSError, ValueError, KeyError, SyntaxError, StopIteration, RecursionError, MemoryError):
        return TensorNames()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError):  # the last: encrypted
        return TensorNames()


def signature_names(source: str, name: str) -> TensorNames:
    """The same of the class in the source of a module; ValueError if it has no such class with a `forward`."""
    start = source.index(f"class {name}(Module):")
    body = source[start : (source.find("\nclass ", start) + 1) or len(source)]
    at = body.index("  def forward(")
    head_end = body.index(":\n", at)
    (method,) = ast.parse(body[at:head_end].strip() + ": ...").body
    assert isinstance(method, ast.FunctionDef)
    arguments = [each for each in method.args.args[1:] if each.annotation is not None]
    inputs = [each.arg for each in arguments if each.annotation and ast.unparse(each.annotation) in _TENSORS]
    following = body.find("\n  def ", head_end)
    returned = _RETURNED_DICT.findall(body[head_end : following if following >= 0 else len(body)])
    if returned:
        outputs = list(returned_names(ast.parse(returned[-1], mode="eval").body, has_positions=True))
    else:
        outputs = [f"OUTPUT__{index}" for index in range(_result_count(method.returns))]
    return TensorNames(tuple(inputs), tuple(outputs))


def returned_names(value: ast.expr | None, *, has_positions: bool) -> Iterator[str]:
    """The keys of a dict that is returned, and, where results have positions, `OUTPUT__0` and so on for a tuple."""
    if isinstance(value, ast.Dict):
        for key in value.keys:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value
    elif isinstance(value, ast.Tuple) and has_positions:
        yield from (f"OUTPUT__{index}" for index in range(len(value.elts)))


def _result_count(annotation: ast.expr | None) -> int:
    """Of `Tuple[Tensor, Tensor]` 2, of all else 1."""
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple):
        is_tuple = isinstance(annotation.value, ast.Name) and annotation.value.id == "Tuple"
        return len(annotation.slice.elts) if is_tuple else 1
    return 1


def _module_class(pickled: bytes) -> str:
    """The class of the whole, as `MODULE NAME`. Nothing is unpickled: only the names of the operations are read."""
    return next(str(argument) for operation, argument, _ in pickletools.genops(pickled) if operation.name == "GLOBAL")


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    """The first bytes of a member."""
    with archive.open(name) as member:
        return member.read(READ_LIMIT_BYTES)


class _BoundedFile(io.FileIO):
    """A file whose archive directory is not read if it is longer than READ_LIMIT_BYTES."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > READ_LIMIT_BYTES:
            raise ValueError("more than is read of an archive")
        return super().read(-1 if size is None else size) or b""
