"""One model in the process of a co-location group: loaded, turned, and unloaded while the others stay."""

from __future__ import annotations

import gc
import os
import sys
import time
from typing import Final

from mmsup.ipc.memory import garbage, heap
from mmsup.ipc.memory.status_page import Activity, StatusPageWriter
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.worker_control import (
    ConfigureWorker,
    LoadFailed,
    MemberLeft,
    StopWorker,
    WorkerReady,
)
from mmsup.ipc.messages.zygote_control import ENGINE_SETS
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import ChannelClosed, close_fds
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.worker.execution.device_errors import DeviceFault
from mmsup.worker.execution.engine import as_streaming_engine
from mmsup.worker.execution.executor import Executor
from mmsup.worker.execution.model_errors import DeviceLost, ModelFailure, call_model_code
from mmsup.worker.hosting.member_loop import MemberLoop
from mmsup.worker.serving.shared_poller import SharedPoller
from mmsup.worker.startup.controller_channel import TEXT_LIMIT, WorkerControlChannel, read_configuration
from mmsup.worker.startup.hidden_tensors import public_metadata
from mmsup.worker.startup.model_load import LOAD_CODES, load_model

_POLLIN: Final = 1


class Member:
    def __init__(self, control: WorkerControlChannel, page: StatusPageWriter, identity: int) -> None:
        """`control`: its own channel, on which its ConfigureWorker comes. `identity`: the number of its socket."""
        self.identity = identity
        self.poller = SharedPoller()
        self._control = control
        self._page = page
        self._loop: MemberLoop | None = None
        self._executor: Executor | None = None
        self._spec: ModelSpec | None = None
        self._is_forgotten = False
        """The controller has closed its channel."""
        self.poller.register(control.channel.fileno(), _POLLIN)

    def turn(self) -> bool:
        """Load the model, once its configuration has come, or turn its loop; False when it has left."""
        if self._loop is not None:
            return self._loop.turn()
        if not self.poller.poll(0):
            return True
        began_s, configuration = time.monotonic(), self._receive_configuration()
        if configuration is None:
            return False
        spec = self._spec = configuration.spec
        self._page.set_activity(Activity.LOADING, time.monotonic_ns())
        self._control.send(Hello("worker", WIRE_VERSION, configuration.instance, configuration.generation))
        found = self._load(spec)
        if isinstance(found, ModelFailure):
            return self._on_failure(found)
        self._executor = found
        garbage.freeze_and_disable()
        imported = tuple(each for each in ENGINE_SETS if each in sys.modules)
        self.poller.unregister(self._control.channel.fileno())  # the loop registers it again
        self._loop = _member_loop(self._control, found, self._page, self.poller)
        self._control.send(WorkerReady(public_metadata(spec, found.metadata), time.monotonic() - began_s, imported))
        self._page.idle(time.monotonic_ns())
        return True

    def due_ns(self, now_ns: int) -> int | None:
        """As MemberLoop has it."""
        return self._loop.due_ns(now_ns) if self._loop is not None else None

    def close(self) -> None:
        """Unload it, give back what it held, and say that it has left."""
        self._page.set_activity(Activity.STOPPING, time.monotonic_ns())
        if self._loop is not None:
            self._loop.close()
        if self._executor is not None and self._spec is not None:
            call_model_code(self._executor.engine.unload, self._spec)
        self._loop = self._executor = None
        gc.unfreeze()
        garbage.freeze_and_disable()
        heap.trim_heap()
        self.poller.close()
        self._page.set_activity(Activity.LEFT, time.monotonic_ns())
        if not self._is_forgotten:
            self._control.send(MemberLeft())
        self._control.channel.close()

    def _receive_configuration(self) -> ConfigureWorker | None:
        """What it is to load; None if it is to leave before: the controller that has requested it may have died."""
        try:
            received = self._control.channel.receive()
        except ChannelClosed:
            self._is_forgotten = True
            return None
        assert received is not None, "something has come"
        data, descriptors = received
        close_fds(descriptors)
        try:
            return None if data == encode(StopWorker()) else read_configuration(data)
        except WireError as error:
            self._control.send(LoadFailed("load_failed", str(error)[:TEXT_LIMIT]))
            return None

    def _load(self, spec: ModelSpec) -> Executor | ModelFailure:
        moved = call_model_code(lambda: os.chdir(spec.directory), spec)
        if isinstance(moved, ModelFailure):
            return moved
        return load_model(self._control.send, spec, self._page, is_shared=True)

    def _on_failure(self, failure: ModelFailure) -> bool:
        if failure.device_fault is DeviceFault.LOST:
            raise DeviceLost(failure.text)
        code = LOAD_CODES.get(failure.code, failure.code)
        self._control.send(LoadFailed(code, failure.text[:TEXT_LIMIT], failure.detail[:TEXT_LIMIT]))
        return False


def _member_loop(
    control: WorkerControlChannel, executor: Executor, page: StatusPageWriter, poller: SharedPoller
) -> MemberLoop:
    if as_streaming_engine(executor.engine) is None:
        return MemberLoop(control, executor, page, poller)
    from mmsup.worker.hosting.streaming_member_loop import (  # noqa: PLC0415 - imports asyncio, for these alone
        StreamingMemberLoop,
    )

    return StreamingMemberLoop(control, executor, page, poller)
