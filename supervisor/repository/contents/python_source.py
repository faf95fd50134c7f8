"""The source of a Python model: its syntax, its class, and what it imports. It is parsed, never run."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from mmsup.ipc.python_models import TRITON_CLASS, TRITON_MODULE, TRITON_MODULE_TEXT
from mmsup.supervisor.config.config_error import InvalidValue

FILES_LIMIT: Final = 200
"""Files of a model's folder that are followed."""
SIZE_LIMIT_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class ModelClass:
    """What a model's file must have. `method` is empty for a torch.nn.Module."""

    name: str
    method: str = ""
    signature: str = ""


PLAIN_MODEL: Final = ModelClass("Model", "infer", "infer(self, inputs)")
TORCH_MODEL: Final = ModelClass("Model")
TRITON_MODEL: Final = ModelClass(TRITON_CLASS, "execute", "execute(self, requests)")


@dataclass(frozen=True, slots=True)
class ImportLine:
    """An import of another package, which is done whenever the model is loaded."""

    module: str
    """The top package."""
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class PythonSource:
    imports: tuple[ImportLine, ...]
    changes_path: bool = False
    """It touches `sys.path`, so that a module may be found elsewhere."""


@dataclass(slots=True)
class _Walk:
    """What was found in a model's file and in files of its folder that it imports."""

    folder: str
    is_package: bool = False
    """Its folder is a package: it may import relatively."""
    imports: list[ImportLine] = field(default_factory=list[ImportLine])
    problems: list[str] = field(default_factory=list[str])
    seen: set[str] = field(default_factory=set[str])
    changes_path: bool = False

    def follow(self, path: str) -> ast.Module | None:
        """Parse a file and those that it imports; None if it cannot be parsed."""
        if path in self.seen or len(self.seen) >= FILES_LIMIT:
            return None
        self.seen.add(path)
        file = os.path.relpath(path, self.folder)
        tree = self._parse(path, file)
        if tree is None:
            return None
        for node in _run_at_import(tree.body):
            if isinstance(node, ast.Attribute):
                self.changes_path |= ast.unparse(node) in ("sys.path", "site.addsitedir")
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    self._import(alias.name, file, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                if not node.level:
                    self._import(node.module or "", file, node.lineno)
                elif os.sep not in file and not self.is_package:
                    self.problems.append(
                        f"{_line(file, node.lineno)}a relative import finds no package: the model's folder is in "
                        f"sys.path, write `from {node.module or 'other'} import …` without the dots"
                    )
        return tree

    def _parse(self, path: str, file: str) -> ast.Module | None:
        try:
            with open(path, "rb") as source:
                text = source.read(SIZE_LIMIT_BYTES + 1)
            if len(text) > SIZE_LIMIT_BYTES:
                raise ValueError(f"it is larger than {SIZE_LIMIT_BYTES >> 20} MiB; read data from a file of its own")
            return ast.parse(text)
        except SyntaxError as error:
            self.problems.append(f"{_line(file, error.lineno or 0)}{error.msg}")
        except (ValueError, RecursionError) as error:
            self.problems.append(f"{_line(file, 0)}cannot be parsed: {error}")
        return None

    def _import(self, module: str, file: str, line: int) -> None:
        if module == TRITON_MODULE:  # which each worker of such a model has
            self.problems += [] if self.is_package else [TRITON_MODULE_TEXT]
            return
        top = module.partition(".")[0]
        own = os.path.join(self.folder, f"{top}.py")
        if os.path.isfile(own):
            self.follow(own)
        elif not os.path.isdir(os.path.join(self.folder, top)):
            self.imports.append(ImportLine(top, file, line))


def read_source(path: str, kind: ModelClass) -> PythonSource:
    """What a model's file imports; InvalidValue with all that would fail its load."""
    walk = _Walk(os.path.dirname(path), is_package=kind is TRITON_MODEL)
    tree = walk.follow(path)
    if tree is not None:
        problem = _class_problem(tree, kind)
        walk.problems += [problem] if problem else []
    if walk.problems:
        raise InvalidValue(*walk.problems)
    return PythonSource(tuple(walk.imports), walk.changes_path)


def _class_problem(tree: ast.Module, kind: ModelClass) -> str:
    """What is wrong with the class; empty if nothing, or if that cannot be seen."""
    names: set[str] = set()
    model: ast.ClassDef | None = None
    for node in _statements(tree.body):
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
            model = node if node.name == kind.name else model
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
        else:
            names |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    if not names & {kind.name, "*"}:
        wanted = f"a method {kind.signature}" if kind.method else "a torch.nn.Module as its base"
        return f"has no class {kind.name} with {wanted}"
    if not kind.method or model is None or model.bases or model.keywords or model.decorator_list:
        return ""
    members = {name for each in _statements(model.body) for name in _bound_names(each)}
    has_method = members & {kind.method, "__getattr__", "*"}
    return "" if has_method else f"its class {kind.name} has no method {kind.signature}"


def _bound_names(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    else:
        yield from (each.id for each in ast.walk(node) if isinstance(each, ast.Name))
        yield from (alias.asname or alias.name for alias in getattr(node, "names", ()))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a body, and those inside `if`, `try` and `with`."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for name in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


def _run_at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Nodes that every load of the module executes: not those of functions, and not what stands under a condition."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.If | ast.Try | ast.TryStar | ast.Match):
            continue
        if isinstance(node, ast.ClassDef | ast.With):
            yield from _run_at_import(node.body)
        else:
            yield from ast.walk(node)


def _line(file: str, number: int) -> str:
    return f"{file}, line {number}: " if number else f"{file}: "
