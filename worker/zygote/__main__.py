"""`python -m mmsup.worker.zygote`: imports an engine, and then forks workers at the keeper's request.

    argv   BLANKS lifeline=FD control=FD page=FD crash=FD fork=FD

It has one thread, no model, no link to a gateway, no listener and no shared memory, and it never touches CUDA: before
each fork that is checked (fitness.py), and a zygote that is unfit refuses and exits. It waits for nothing but requests.
A child runs the worker's main function once the keeper knows of it; until then it only becomes what it would be after
an exec (forked_worker.py).
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import select
import socket
import sys
import time
import traceback
from typing import Any, Final, NoReturn

from mmsup.ipc import exit_codes
from mmsup.ipc.memory import garbage
from mmsup.ipc.messages.data import InferSignature, ReplySignature
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.messages.worker_control import TO_WORKER
from mmsup.ipc.messages.zygote_control import (
    GO,
    TO_ZYGOTE,
    ConfigureZygote,
    Forked,
    ForkRefused,
    ForkWorker,
    WorkerSetUp,
    ZygoteReady,
)
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel, close_fds
from mmsup.ipc.transport.dataclass_codec import from_json, record_decoder, to_json
from mmsup.ipc.transport.inherited_fds import parse_inherited_fds
from mmsup.worker.zygote.clone import Cloner
from mmsup.worker.zygote.fitness import LoadedCode, unfitness
from mmsup.worker.zygote.forked_worker import ForkDescriptors, set_up
from mmsup.worker.zygote.process_titles import ProcessTitles
from mmsup.worker.zygote.thread_pools import ThreadPools

MAIN: Final = "mmsup.worker.__main__"
_ALWAYS: Final = (
    "encodings.ascii",
    *(MAIN, "mmsup.worker.serving.loop", "mmsup.worker.startup.warm_up"),
    *("mmsup.worker.execution.reshaped_engine", "mmsup.worker.engines.python_model"),
    *("mmsup.worker.sequences.handler_choice", "mmsup.worker.sequences.sequence_handler"),
    "mmsup.worker.streaming.streaming_loop",
)
_ENGINES: Final = {"onnxruntime": "mmsup.worker.engines.ort", "torch": "mmsup.worker.engines.pytorch"}
"""The engine of each library; without what else it needs (safetensors) the library alone is imported."""


class Forker:
    """After its imports."""

    def __init__(self) -> None:
        self._cloner = Cloner()
        self._titles = ProcessTitles()
        self._pools = ThreadPools()
        self._code = LoadedCode()
        self.import_s = 0.0

    def check(self) -> tuple[str, int]:
        """Why no worker may be forked, and the exit code that says so; an empty text if one may."""
        if self._code.has_changed():
            return "its code has changed since", exit_codes.ZYGOTE_OUTDATED
        return unfitness(), exit_codes.ZYGOTE_UNFIT

    def fork(self, request: ForkWorker, received: list[int]) -> None:
        """Returns in the zygote only. Answers on the status channel; exits if it refuses."""
        status, output, *others = received
        groups, inherited = others[len(request.inherited) :], others[: len(request.inherited)]
        descriptors = ForkDescriptors(status, output, tuple(inherited), tuple(groups))
        answer, code = self.check()
        if not answer:
            try:
                pid, pidfd = self._cloner.clone(groups)
            except OSError as error:
                answer = str(error)
            else:
                if pid == 0:
                    _become_worker(request, descriptors, self._titles, self._pools)
                _send(status, Forked(pid), pidfd)
                close_fds([*received, pidfd])
                return
        _send(status, ForkRefused(answer))
        print(f"zygote: no worker is forked any more: {answer}", file=sys.stderr)  # noqa: T201 - its log
        os._exit(code)


def _become_worker(
    request: ForkWorker, descriptors: ForkDescriptors, titles: ProcessTitles, pools: ThreadPools
) -> NoReturn:
    try:
        arguments = set_up(request, descriptors, titles, pools)
    except BaseException as error:  # noqa: BLE001 - the zygote's own code must never continue in the child
        _send(descriptors.status, WorkerSetUp(f"{type(error).__name__}: {error}"))
        os._exit(1)
    _send(descriptors.status, WorkerSetUp(""))
    os.set_blocking(descriptors.status, True)
    if os.read(descriptors.status, len(GO)) != GO:
        os._exit(exit_codes.KEEPER_LOST)  # it does not know this process, and has started another one
    os.close(descriptors.status)
    try:
        main: Any = sys.modules[MAIN]
        main.main(arguments)
    except BaseException:  # noqa: BLE001 - as the interpreter ends after an exec
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _send(status: int, message: object, *descriptors: int) -> None:
    """The keeper may have given this fork up; then nobody reads."""
    try:
        with socket.socket(fileno=os.dup(status)) as sock:
            socket.send_fds(sock, [to_json(message)], descriptors, socket.MSG_NOSIGNAL)
    except OSError:
        pass


def load(engine_set: str) -> Forker:
    """Import everything, and leave it in pages that a child does not have to touch."""
    began_s = time.monotonic()
    for name in _ALWAYS:
        importlib.import_module(name)
    if engine_set in _ENGINES:
        try:
            importlib.import_module(_ENGINES[engine_set])
        except ModuleNotFoundError:
            importlib.import_module(engine_set)
    zygote = Forker()
    zygote.import_s = time.monotonic() - began_s
    for kind in (*TO_WORKER, InferSignature, ReplySignature):
        record_decoder(kind)  # made once here, and not in each child: 0.1 MB
    garbage.freeze_and_disable()
    return zygote


def main(arguments: list[str]) -> NoReturn:
    inherited = parse_inherited_fds(arguments)
    for fd in inherited.values():
        os.set_inheritable(fd, False)  # noqa: FBT003 - the standard library's own signature
    faulthandler.enable(inherited["crash"], all_threads=False)
    os.close(inherited["page"])
    control = ControlChannel.from_fd(inherited["control"])
    fork = ControlChannel.from_fd(inherited["fork"])
    lifeline = inherited["lifeline"]
    try:
        serve(control, fork, lifeline)
    except ChannelClosed:
        os._exit(exit_codes.KEEPER_LOST)


def serve(control: ControlChannel, fork: ControlChannel, lifeline: int) -> NoReturn:
    zygote: Forker | None = None
    poller = select.poll()
    poller.register(lifeline, 0)  # only its hang-up matters
    poller.register(control.fileno(), select.POLLIN)
    while True:
        ready = [fd for fd, _ in poller.poll()]
        if lifeline in ready:
            os._exit(exit_codes.KEEPER_LOST)
        if control.fileno() in ready and (received := control.receive()) is not None:
            zygote = _configure(zygote, decode(received[0], TO_ZYGOTE), control)
            poller.register(fork.fileno(), select.POLLIN)  # what was requested before waits there
        if fork.fileno() in ready and (received := fork.receive()) is not None:
            data, descriptors = received
            assert zygote is not None, "requests are read once everything is imported"
            zygote.fork(from_json(data, (ForkWorker,)), descriptors)


def _configure(zygote: Forker | None, message: ConfigureZygote, control: ControlChannel) -> Forker:
    found = zygote or load(message.engine_set)
    answer, code = found.check()
    if message.wire_version != WIRE_VERSION:
        answer, code = f"the controller has wire version {message.wire_version}", exit_codes.ZYGOTE_OUTDATED
    if answer:
        print(f"zygote: no worker is forked: {answer}", file=sys.stderr)  # noqa: T201 - its log
        os._exit(code)
    control.send(encode(ZygoteReady(WIRE_VERSION, found.import_s)))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
