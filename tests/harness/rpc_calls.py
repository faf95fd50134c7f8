"""Calls of a fault model over gRPC, with tritonclient."""

from __future__ import annotations

import contextlib
import queue
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from harness.server import EVENT_S, Server

X = (1.0, 2.0, 3.0)
Client = Any  # tritonclient.grpc.InferenceServerClient, which has no types
Options = Any  # of a call of tritonclient


def target(server: Server) -> str:
    host, port = server.address("grpc")
    return f"{host}:{port}"


@contextlib.contextmanager
def connected(server: Server, **options: Options) -> Iterator[Client]:
    with triton.InferenceServerClient(target(server), **options) as client:
        yield client


def tensor(name: str, datatype: str, values: Any, shape: Sequence[int] | None = None) -> Any:
    """An input; `values` as numpy takes them, or the raw bytes of a datatype that numpy has not."""
    if isinstance(values, bytes):
        assert shape is not None
        made = triton.InferInput(name, list(shape), datatype)
        made._raw_content = values
        return made
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def fault_inputs(mode: str = "ok", amount: float = 0.0, x: Sequence[float] = X) -> list[Any]:
    """Inputs of a fault model."""
    return [
        tensor("x", "FP32", np.array(x, np.float32)),
        tensor("mode", "BYTES", np.array([mode.encode()], np.object_)),
        tensor("amount", "FP64", np.array([amount])),
    ]


def is_right(result: Any, x: Sequence[float] = X) -> bool:
    return bool(np.array_equal(result.as_numpy("y"), np.array(x, np.float32)))


class Replies:
    """What comes back on a stream."""

    def __init__(self) -> None:
        self._found: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def __call__(self, result: Any, error: Any) -> None:
        self._found.put((result, error))

    def next(self) -> tuple[Any, Any]:
        """The next reply: a result or an error."""
        return self._found.get(timeout=EVENT_S)

    @property
    def count(self) -> int:
        return self._found.qsize()


class RpcTraffic(threading.Thread):
    """A client that calls a fault model over and over, each time with other values; no call may fail."""

    def __init__(self, server: Server, model: str, *, may_fail: bool = False) -> None:
        super().__init__(name=f"gRPC to {model}")
        self._target, self._model, self._may_fail = target(server), model, may_fail
        self._stop_it, self._began = threading.Event(), threading.Event()
        self.sent = 0
        self.failures: list[str] = []

    def run(self) -> None:
        with triton.InferenceServerClient(self._target) as client:
            while not self._stop_it.wait(0.005):
                x = (float(self.sent), 2.0)
                try:
                    found = client.infer(self._model, [tensor("x", "FP32", np.array(x, np.float32))])
                    if not is_right(found, x):
                        self.failures.append(f"wrong: {found.get_response()}")
                except triton.InferenceServerException as error:
                    self.failures.append(f"{error.status()}: {error.message()}")
                self.sent += 1
                self._began.set()

    def __enter__(self) -> RpcTraffic:
        self.start()
        assert self._began.wait(EVENT_S), "no answer over gRPC"
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop_it.set()
        self.join(EVENT_S)
        if kind is None and not self._may_fail:
            assert not self.failures, f"{len(self.failures)} of {self.sent}: {self.failures[:3]}"


def floats(data: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(data) // 4}f", data)
