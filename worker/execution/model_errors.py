"""Calls model code, and turns whatever it raises into an error for the caller: a code and a text.

The trace goes to the worker's own output, which `ctl logs` shows. The text names no path, no address, no class
and no line of code.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from mmsup.ipc.errors import MmsupError
from mmsup.ipc.specs import ModelSpec
from mmsup.worker.execution.call_error import CallError
from mmsup.worker.execution.device_errors import DeviceFault, device_fault, message_of

T = TypeVar("T")
TEXT_LIMIT: Final = 500
_PATH: Final = re.compile(r"(?<![\w:/.~-])~?/(?:[^\s/'\"`<>|;,:()\[\]{}]+/)+([^\s/'\"`<>|;,:()\[\]{}]*)")
_TRACEBACK: Final = re.compile(r"Traceback\b[^\n]{0,60}\(most recent call last\)")
"""Python's, and TorchScript's (`Traceback of TorchScript, serialized code (most recent call last):`)."""
_CODE_LINE: Final = re.compile(
    r"""[ ]?\([^()]*\bline[ ][0-9]+\)  # of a SyntaxError
    |\bFile[ ]["'][^"']*["'],[ ]line[ ][0-9]+(?:,?[ ]in[ ][\w<>.]+)?[ ]?""",
    re.VERBOSE,
)
_OTHER_CODE_LINE: Final = re.compile(r" (?:on|at) line [0-9]+")
_ADDRESS: Final = re.compile(r"\b0x[0-9a-fA-F]{4,}\b")
_HOST_MEMORY_TEXTS: Final = ("bad_alloc", "defaultcpuallocator: can't allocate memory", "failed to allocate memory")
"""How native code reports a failed allocation: C++ (onnxruntime too), torch on the CPU, onnxruntime's arena."""


@dataclass(frozen=True, slots=True)
class ModelFailure:
    """Why a run or a load gave no result."""

    code: str
    text: str
    device_fault: DeviceFault = DeviceFault.NONE
    detail: str = field(default="", compare=False)
    """For the operator: type, text and line of what the model's code raised."""
    is_contradiction: bool = field(default=False, compare=False)
    """The model gave a result that contradicts its declared outputs."""


class RequestRefused(Exception):  # noqa: N818 - an answer of the model, not a fault of its code
    """Raised by an engine whose model answered a request with an error."""

    def __init__(self, failure: ModelFailure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class DeviceLost(Exception):  # noqa: N818 - what happened to the device; the process ends by it
    """The CUDA context is lost. Raised for `__main__`, which ends the process."""


def call_model_code(call: Callable[..., T], spec: ModelSpec, *arguments: object) -> T | ModelFailure:
    """The result of `call`, or why there is none. Only SystemExit and KeyboardInterrupt propagate: the model ends its
    own process."""
    try:
        return call(*arguments)
    except BaseException as error:  # noqa: BLE001 - a model may raise anything, asyncio's CancelledError too
        return caught(error, spec)


def caught(error: BaseException, spec: ModelSpec) -> ModelFailure:
    """The failure to report for an exception of model code, whose trace is printed here."""
    if issubclass(type(error), (SystemExit, KeyboardInterrupt)):
        raise error
    if type(error) is RequestRefused:
        return error.failure
    try:
        traceback.print_exception(error)
        failure = failure_of(error, spec)
        return replace(failure, detail="" if isinstance(error, MmsupError) else detail_of(error, spec, failure.text))
    except Exception:  # noqa: BLE001 - its attributes and methods are the model's code too
        return ModelFailure("inference_failed", f"model '{spec.name}' failed, and its exception cannot be described")


def detail_of(error: BaseException, spec: ModelSpec, told: str) -> str:
    """Type and text of an exception, with the last line in the model's folder that it passed. Where it passed none, the
    text is left out if what is `told` ends with it already, but for the path of that folder."""
    message = " ".join(message_of(error).split())
    lines = [each for each in traceback.extract_tb(error.__traceback__) if each.filename.startswith(spec.directory)]
    if not lines and told.endswith(message.replace(f"{spec.directory}/", "")):
        message = ""
    text = ": ".join(filter(None, (type(error).__name__, message)))[:TEXT_LIMIT]
    if lines:
        text += f", at {os.path.relpath(lines[-1].filename, spec.directory)}:{lines[-1].lineno}"
    return text.encode("utf-8", "replace").decode()


def failure_of(error: BaseException, spec: ModelSpec) -> ModelFailure:
    if isinstance(error, MmsupError):
        return ModelFailure(error.code, scrub(error.text))
    if isinstance(error, CallError):
        return ModelFailure(error.own_code, scrub(error.text))
    device = device_fault(error, spec.device)
    if device is DeviceFault.LOST:
        text = f"the device of model '{spec.name}' failed: {message_of(error)}"
        return ModelFailure("gpu_fault", scrub(text), device)
    if device is DeviceFault.MEMORY:
        return ModelFailure("gpu_oom", f"model '{spec.name}' ran out of device memory", device)
    if is_out_of_memory(error):
        cap = f" under its cap of {spec.memory_bytes} bytes" if spec.memory_bytes else ""
        return ModelFailure("inference_failed", f"model '{spec.name}' ran out of memory{cap}")
    text = message_of(error).strip() or f"{type(error).__name__} without a message"
    if isinstance(error, OSError):
        text = _with_file_names(text, error)
    if isinstance(error, SyntaxError):
        text = _OTHER_CODE_LINE.sub("", _CODE_LINE.sub("", text))
    return ModelFailure("inference_failed", scrub(f"model '{spec.name}' failed: {text}"))


def _with_file_names(text: str, error: OSError) -> str:
    """The text of an OSError with the last part of each path that it names, relative ones too."""
    for path in (error.filename, error.filename2):
        if isinstance(path, str | bytes):
            text = text.replace(repr(path), repr(os.path.basename(os.path.normpath(path))))
    return text


def scrub(text: str) -> str:
    """A text fit for a remote client: one line, bounded, paths reduced to their last part, no addresses, no lines of
    code."""
    line = _CODE_LINE.sub("", " ".join(_without_tracebacks(text).split()))
    line = _ADDRESS.sub("(address)", _PATH.sub(r"\1", line))
    line = "".join(each for each in line if each.isprintable())
    return line if len(line) <= TEXT_LIMIT else line[: TEXT_LIMIT - 1] + "…"


def _without_tracebacks(text: str) -> str:
    """Of what begins with the first traceback, the last line alone: the message that ends it."""
    if (head := _TRACEBACK.search(text)) is None:
        return text
    lines = text[head.end() :].strip().splitlines()
    return f"{text[: head.start()]} {lines[-1].lstrip(': ') if lines else ''}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation of host memory failed, in Python or in native code."""
    if isinstance(error, MemoryError):
        return True
    text = message_of(error).lower()
    return isinstance(error, Exception) and any(each in text for each in _HOST_MEMORY_TEXTS)
