"""Engine for models written in Python: `model.py` with a class `Model` of one to five methods.

    class Model:
        def load(self, context): ...     # name, version, directory, device, parameters; may be left out
        def infer(self, inputs): ...     # dict of arrays in, dict of arrays out; may be `async def`; in a model with
                                         # sequences it may take `sequences` too: a SequenceView for each row
        def unload(self): ...            # may be left out
        def offload(self): ...           # both or none: give memory back while nobody asks for the model,
        def restore(self): ...           # and make again what was given

Inputs belong to the model: it may write to them and keep them. That takes one copy (12 microseconds for 602 KB, 0.9 ms
for 12.6 MB). A model that only reads its inputs, and keeps none, sets the parameter `read_only_inputs: true` and gets
views over the request's own memory; writing to one is then a ValueError.

Elements of a BYTES input are `bytes`; with the parameter `strings: text` they are `str`, decoded from UTF-8, and an
input that is not UTF-8 is `bad_request`; with `strings: json` they are what their JSON says, and outputs are made JSON.
Outputs may be either. Comparing bytes with text raises nothing and is never
true, so a model that expects text has to say so.

`context.infer("other", {...})` runs another model of this server and returns its outputs, as does
`await context.infer_async("other", {...})` in an `async def infer`; without a result they raise `context.CallError`.
`infer` may be a generator, or an async generator: each dict that it yields is a response, and it may yield as many as
it likes, or none. So may a plain `infer` that returns an iterator or None, where the model is configured as
`decoupled`. An `async def infer` answers once, and awaits beside others. When nobody reads any more, the generator is
closed: what it holds is given back in a `finally`.

If the model uses torch, its allocator is limited to `gpu_memory`, and what it has cached is freed after `offload`.

The model's folder is last in `sys.path`: its other files can be imported, and shadow no installed module. The module
has the name of its file, `model`, so that a child process which the model starts by `multiprocessing` with `spawn`
finds it, and what another file of the folder imports as `model` is the same module. If an installed module has that
name, it is FALLBACK_NAME instead.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar, Final

import numpy as np

from mmsup.ipc.errors import ModelError
from mmsup.ipc.python_models import TRITON_CLASS, TRITON_MODULE, TRITON_MODULE_TEXT, TRITON_UNSEEN_TEXT
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array
from mmsup.worker.calls.model_calls import ModelCalls
from mmsup.worker.engines import torch_memory
from mmsup.worker.engines.gpu_memory_limit import enforce_gpu_memory
from mmsup.worker.engines.python_values import BYTES, JSON, TEXT, as_array, as_text, converted_input, string_form
from mmsup.worker.engines.tensor_metadata import configured_metadata
from mmsup.worker.execution.call_error import CallError
from mmsup.worker.execution.engine import NO_BUFFERS, OutputBuffers, Responses, bool_parameter
from mmsup.worker.execution.responses import mapped
from mmsup.worker.execution.sequence_view import SequenceView

SEQUENCES: Final = "sequences"
"""The parameter of `infer` that gets the sequence of each row."""
FALLBACK_NAME: Final = "mmsup_model"
"""The module of a file whose own name belongs to another module."""


@dataclass(frozen=True, slots=True)
class ImportedFile:
    """What was imported for one model of the process."""

    names: tuple[str, ...]
    """Its module, and the package of that."""
    folders: tuple[str, ...]
    """In `sys.path`: that of the file, and maybe the one above it."""


_loaded: Final[list[ImportedFile]] = []
"""What `forget_module` removes: one for each model of the process."""

log = logging.getLogger("mmsup.worker")


@dataclass(frozen=True, slots=True)
class ModelContext:
    """What the user's class gets to know, and may ask for."""

    CallError: ClassVar[type[CallError]] = CallError
    """Raised by calls of other models: `code`, `text`, `model`, `retryable`."""
    name: str
    version: str
    directory: str
    device: str
    """`cpu`, or `cuda:0`: a worker sees only its own device."""
    parameters: Mapping[str, str]
    calls: ModelCalls = field(repr=False)
    strings: bool = False
    """Elements of BYTES outputs of other models are `str`."""

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],  # arrays, or lists
        **options: Any,  # as ModelCalls has them
    ) -> dict[str, Array]:
        """Run another model of this server and wait for its outputs. `options`: version, outputs (names), parameters,
        timeout_s. CallError if there is no result."""
        return self._told(self.calls.infer(model, inputs, **options))

    async def infer_async(
        self,
        model: str,
        inputs: Mapping[str, Any],  # as above
        **options: Any,
    ) -> dict[str, Array]:
        """The same in an `async def infer`, so that several models can run at a time."""
        return self._told(await self.calls.infer_async(model, inputs, **options))

    def _told(self, outputs: dict[str, Array]) -> dict[str, Array]:
        if not self.strings:
            return outputs
        return {name: as_text(name, each) if each.dtype.kind == "O" else each for name, each in outputs.items()}


class PythonModelEngine:
    def __init__(self) -> None:
        self._model: Any = None  # an instance of the user's class
        self._infer: Callable[[dict[str, Array]], Any] = _not_loaded
        self._copies = True
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._strings = BYTES
        self._folder = ""
        self.calls = ModelCalls()
        self.can_offload = False
        self.sequences: Sequence[SequenceView | None] | None = None
        self.is_streaming = False

    def load(self, spec: ModelSpec) -> Metadata:
        metadata = configured_metadata(spec, spec.artefact)
        self._copies = not bool_parameter(spec.parameters, "read_only_inputs")
        self._strings = string_form(spec.parameters)
        self._dtypes = {each.name: NUMPY[each.datatype] for each in metadata.outputs}
        self._folder = spec.directory
        kind = _model_class(spec)
        enforce_gpu_memory(spec)
        self._model = kind()
        if hasattr(self._model, "load"):
            device = "cpu" if spec.device == "cpu" else "cuda:0"
            parameters = MappingProxyType(dict(spec.parameters))
            own = spec.name, spec.version, spec.directory, device, parameters
            self._model.load(ModelContext(*own, self.calls, self._strings == TEXT))
            enforce_gpu_memory(spec)  # it may have imported torch only now
        self._infer = own_infer = self._model.infer
        if has_parameter(own_infer, SEQUENCES):
            self.sequences, self._infer = (), self._infer_with_sequences
        self.can_offload = can_be_offloaded(self._model)
        is_generator = inspect.isgeneratorfunction(own_infer) or inspect.isasyncgenfunction(own_infer)
        decoupled = spec.decoupled or is_generator
        self.is_streaming = decoupled or inspect.iscoroutinefunction(own_infer)
        return replace(metadata, decoupled=decoupled, runs_side_by_side=self.is_streaming)

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        del buffers  # the user's class makes its own arrays
        result: Any = self._infer(self._own_inputs(inputs))  # of the user
        return self._outputs(result, wanted)

    def respond(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> Responses:
        return mapped(self._infer(self._own_inputs(inputs)), lambda result: self._outputs(result, wanted))

    def _own_inputs(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        own = {name: array.copy() for name, array in inputs.items()} if self._copies else dict(inputs)
        if self._strings != BYTES:
            own = {name: converted_input(self._strings, name, array) for name, array in own.items()}
        return own

    def _outputs(self, result: Any, wanted: Sequence[str]) -> dict[str, Array]:  # of the user
        if type(result) is not dict and not isinstance(result, Mapping):
            raise TypeError(f"infer answered a {type(result).__name__} instead of a dict of arrays")
        made: dict[str, Array] = {}
        for name in wanted:
            if name in result:
                value = result[name]
                is_ready = type(value) is np.ndarray and self._strings != JSON
                made[name] = value if is_ready else as_array(value, self._dtypes.get(name), self._strings)
        return made

    def _infer_with_sequences(self, inputs: dict[str, Array]) -> Any:  # of the user
        return self._model.infer(inputs, sequences=self.sequences)

    def shrink(self) -> None:
        torch_memory.free_cache()

    def device_bytes(self) -> int:
        return torch_memory.reserved_bytes()

    def offload(self) -> None:
        self._model.offload()
        self.shrink()

    def restore(self) -> None:
        self._model.restore()

    def unload(self) -> None:
        model, self._model, self._infer = self._model, None, _not_loaded
        try:
            if model is not None and hasattr(model, "unload"):
                model.unload()
        finally:
            forget_module(self._folder)


def has_parameter(method: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(method).parameters
    except (TypeError, ValueError):
        return False


def can_be_offloaded(model: Any) -> bool:  # an instance of the user's class
    """Whether it has both methods, and each can be called without arguments: the names are common words."""
    found = [getattr(model, name, None) for name in ("offload", "restore")]
    return all(callable(each) and _takes_nothing(each) for each in found)


def _takes_nothing(method: Callable[..., Any]) -> bool:
    try:
        inspect.signature(method).bind()
    except (TypeError, ValueError):
        return False
    return True


def _model_class(spec: ModelSpec) -> Any:  # a class of the user
    try:
        module = load_module(os.path.join(spec.directory, spec.artefact))
    except ModuleNotFoundError as error:
        if error.name != TRITON_MODULE:
            raise
        raise ModelError("config_mismatch", f"model '{spec.name}': {TRITON_MODULE_TEXT}") from error
    kind = getattr(module, "Model", None)
    if kind is None and hasattr(module, TRITON_CLASS):
        raise ModelError("config_mismatch", f"model '{spec.name}': {TRITON_UNSEEN_TEXT.format(spec.artefact)}")
    if kind is None or not callable(getattr(kind, "infer", None)):
        text = f"model '{spec.name}': {spec.artefact} has no class Model with a method infer(self, inputs)"
        raise ModelError("load_failed", text)
    return kind


def load_module(path: str, *, is_in_package: bool = False) -> ModuleType:
    """Import the module in a file, writing no bytecode beside it. It is in `sys.modules`, where dataclasses and pickles
    look for it. Its folder is last in `sys.path`, where its other files and children by `multiprocessing` find it.

    `is_in_package`: its folder is a package, so that its relative imports find other files, and the folder above is in
    `sys.path` too."""
    sys.dont_write_bytecode = True
    with _hidden_modules({folder for each in _loaded for folder in each.folders}):
        return _import_file(path, is_in_package=is_in_package)


def _import_file(path: str, *, is_in_package: bool) -> ModuleType:
    folder = os.path.dirname(path)
    folders = (folder, os.path.dirname(folder)) if is_in_package else (folder,)
    sys.path += folders
    if is_in_package:
        package = _make_package(folder)
        name = f"{package}.{os.path.basename(path).removesuffix('.py')}"
        loaded = ImportedFile((name, package), folders)
    else:
        name = module_name(path)
        loaded = ImportedFile((name,), folders)
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None, f"{path} does not end in .py"
    assert found.loader is not None, f"{path} has no loader"
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    _loaded.append(loaded)
    try:
        found.loader.exec_module(module)
    except BaseException:
        forget_module(folder)
        raise
    return module


def _make_package(folder: str) -> str:
    """The name of a new package of the files in a folder: as the folder is called, if nothing else is."""
    name = os.path.basename(folder)
    name = next(each for each in itertools.chain((name,), _fallback_names()) if each not in sys.modules)
    package = ModuleType(name)
    package.__path__ = [folder]
    sys.modules[name] = package
    return name


@contextlib.contextmanager
def _hidden_modules(folders: set[str]) -> Iterator[None]:
    """While a model is imported, what others of its process have imported of these folders is not found: a file of the
    same name beside this model is another one, or a newer one. Of two such names the older stays in `sys.modules`."""
    hidden = {name: each for name, each in sys.modules.items() if _is_in(each, folders)} if folders else {}
    for name in hidden:
        del sys.modules[name]
    others = [each for each in sys.path if each in folders]
    sys.path[:] = [each for each in sys.path if each not in folders]
    try:
        yield
    finally:
        sys.modules.update(hidden)
        sys.path += others


def _is_in(module: ModuleType, folders: set[str]) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and any(file.startswith(each + os.sep) for each in folders)


def module_name(path: str) -> str:
    """The name under which a model's file is imported: its own, if an import by that name would find this file."""
    stem = os.path.basename(path).removesuffix(".py")
    taken = {name for each in _loaded for name in each.names}
    if stem in sys.modules or "." in stem or stem in taken:
        return next(name for name in _fallback_names() if name not in sys.modules and name not in taken)
    other = importlib.util.find_spec(stem)
    if other is None or (other.origin and os.path.realpath(other.origin) == os.path.realpath(path)):
        return stem
    log.warning(
        "%s.py has the name of an installed module: processes that the model starts by multiprocessing with spawn "
        "cannot import it; rename the file, and set default_model_filename",
        stem,
    )
    return next(name for name in _fallback_names() if name not in taken)


def _fallback_names() -> Iterator[str]:
    yield FALLBACK_NAME
    yield from (f"{FALLBACK_NAME}_{number}" for number in itertools.count(2))


def forget_module(of_folder: str = "") -> None:
    """Remove from `sys.modules` and `sys.path` what `load_module` has put there: first of one folder, or all."""
    found = [each for each in _loaded if of_folder in ("", each.folders[0])]
    for loaded in found[:1] if of_folder else found:
        _loaded.remove(loaded)
        for name in loaded.names:
            sys.modules.pop(name, None)
        for folder in loaded.folders:
            if folder in sys.path:
                sys.path.remove(folder)


def _not_loaded(_: dict[str, Array]) -> Any:  # in the place of the user's method
    raise AssertionError("infer before load")
