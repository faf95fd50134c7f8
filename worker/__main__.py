"""`python -m mmsup.worker`: the main function of one worker process, which runs one model, or those of one group.

    argv   lifeline=FD control=FD page=FD crash=FD

Order: the crash pipe, ConfigureWorker, limits and environment, the working directory, then imports, the model, a
warm-up run, WorkerReady, the loop. Limits come before whatever they are to bind; WorkerReady is sent when requests can
be served.
"""

from __future__ import annotations

import faulthandler
import io
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar, cast

from mmsup.worker.startup.interpreter_check import exit_if_lacking

exit_if_lacking()  # before the imports that may fail

from mmsup.ipc import exit_codes
from mmsup.ipc.memory import garbage
from mmsup.ipc.memory.status_page import Activity, StatusPageWriter
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.worker_control import ConfigureWorker, WorkerReady
from mmsup.ipc.messages.zygote_control import ENGINE_SETS
from mmsup.ipc.stray_signals import ignore_stray_signals
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.ipc.transport.inherited_fds import parse_inherited_fds
from mmsup.worker.execution.device_errors import DeviceFault
from mmsup.worker.execution.model_errors import DeviceLost, ModelFailure, call_model_code
from mmsup.worker.startup.controller_channel import WorkerControlChannel, exit_now
from mmsup.worker.startup.hidden_tensors import public_metadata
from mmsup.worker.startup.model_load import LOAD_CODES, load_model
from mmsup.worker.startup.resource_limits import set_environment, set_limits, tune_malloc

if TYPE_CHECKING:
    from mmsup.ipc.transport.zeromq_channel import ZmqWorkerChannel

LINGER_MS: Final = 1000
"""How long the ZeroMQ socket may send on after it was closed."""

log = logging.getLogger("mmsup.worker")
T = TypeVar("T")


def main(arguments: list[str]) -> NoReturn:
    inherited = parse_inherited_fds(arguments)
    for fd in inherited.values():
        os.set_inheritable(fd, False)  # noqa: FBT003 - the model's child processes must not hold them open
    faulthandler.enable(inherited["crash"], all_threads=False)
    # SIGQUIT writes the stacks of all threads to the log; the process goes on.
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    # SIGUSR2, which the controller sends before it kills a hung worker, writes them to the crash pipe.
    faulthandler.register(signal.SIGUSR2, inherited["crash"], all_threads=True)
    ignore_stray_signals(_print_line, but={signal.SIGUSR2})
    _configure_log()
    control = WorkerControlChannel(ControlChannel.from_fd(inherited["control"]), inherited["lifeline"])
    page = StatusPageWriter(inherited["page"])
    os.close(inherited["page"])  # the mapping stays
    configuration = control.receive_configuration()
    try:
        _run_worker(control, configuration, page)
    except SystemExit as error:
        _exit_by_model(error)
    except DeviceLost as error:
        _exit_device_lost(str(error))
    except KeyboardInterrupt:
        exit_now(128 + signal.SIGINT)


def _run_worker(control: WorkerControlChannel, configuration: ConfigureWorker, page: StatusPageWriter) -> NoReturn:
    began_s, spec = time.monotonic(), configuration.spec
    page.set_activity(Activity.LOADING, time.monotonic_ns())
    set_limits(configuration)
    set_environment(spec)
    tune_malloc(spec)
    control.send(Hello("worker", WIRE_VERSION, configuration.instance, configuration.generation))
    if configuration.is_shared:
        _run_members(control, page)
    _value_or_exit(control, call_model_code(lambda: os.chdir(spec.directory), spec))
    from mmsup.worker.execution.engine import as_offloading_engine, as_streaming_engine  # noqa: PLC0415 - as below
    from mmsup.worker.sequences.handler_choice import handler_class  # noqa: PLC0415 - as below
    from mmsup.worker.serving.loop import ServingLoop  # noqa: PLC0415 - imports numpy, with its threads, which the limits above must bind

    executor = _value_or_exit(control, load_model(control.send, spec, page))
    zeromq = _bind_zeromq(configuration.address) if configuration.address else None
    garbage.freeze_and_disable()
    imported = tuple(each for each in ENGINE_SETS if each in sys.modules)
    can_offload = as_offloading_engine(executor.engine) is not None
    metadata = public_metadata(spec, executor.metadata)
    control.send(WorkerReady(metadata, time.monotonic() - began_s, imported, can_offload))
    if as_streaming_engine(executor.engine) is not None:
        from mmsup.worker.streaming.streaming_loop import StreamingLoop  # noqa: PLC0415 - imports asyncio, for these alone

        StreamingLoop(control, zeromq, executor, page).run()
    else:
        ServingLoop(control, zeromq, executor, page, handler_class=handler_class(spec)).run()
    page.set_activity(Activity.STOPPING, time.monotonic_ns())
    call_model_code(executor.engine.unload, spec)
    if zeromq is not None:
        zeromq.close(LINGER_MS)
    exit_now(exit_codes.SUCCESS)


def _run_members(control: WorkerControlChannel, page: StatusPageWriter) -> NoReturn:
    """The process of a co-location group: the models that the controller adds to it, until it is stopped."""
    from mmsup.worker.hosting.group_loop import GroupLoop  # noqa: PLC0415 - imports numpy, as above

    GroupLoop(control, page).run()
    exit_now(exit_codes.SUCCESS)


def _bind_zeromq(address: str) -> ZmqWorkerChannel:
    from mmsup.ipc.transport.zeromq_channel import ZmqWorkerChannel  # noqa: PLC0415 - imports zmq, with its threads

    return ZmqWorkerChannel(address)


def _value_or_exit(control: WorkerControlChannel, result: T | ModelFailure) -> T:
    """The result of a step of the load; reports a failure and exits if it failed."""
    if isinstance(result, ModelFailure):
        if result.device_fault is DeviceFault.LOST:
            _exit_device_lost(result.text)
        control.report_load_failure(LOAD_CODES.get(result.code, result.code), result.text, result.detail)
    return result


def _exit_device_lost(text: str) -> NoReturn:
    log.error("the CUDA context is lost, this process ends: %s", text)
    exit_now(exit_codes.DEVICE_LOST)


def _exit_by_model(error: SystemExit) -> NoReturn:
    code = error.code
    if code is not None and not isinstance(code, int):
        log.error("the model ended this process: %s", code)
        exit_now(exit_codes.REFUSED)
    exit_now((code or exit_codes.SUCCESS) & 0xFF)


def _print_line(text: str) -> None:
    """From a signal handler: one write, which no buffer of a stream can be in the middle of."""
    os.write(2, f"worker: {text}\n".encode())


def _configure_log() -> None:
    """Log to the error stream, and flush each line that the model prints, so that none is lost in a crash."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s worker: %(message)s"))
    log.addHandler(handler)
    log.propagate = False
    cast("io.TextIOWrapper", sys.stdout).reconfigure(line_buffering=True)


if __name__ == "__main__":
    main(sys.argv[1:])
