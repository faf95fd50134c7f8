"""`python -m mmsup.worker`: one worker process, from its inherited descriptors to its end.

    argv   lifeline=FD control=FD page=FD crash=FD

Order: the crash pipe, Boot, limits and environment, the folder, then imports, the model, a warm-up run,
Ready, the loop. What a limit shall bind must come after it, and Ready is said when the first caller would be served.
"""

from __future__ import annotations

import faulthandler
import gc
import io
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar, cast

from mmsup.ipc import exit_codes
from mmsup.ipc.memory.status_page import Activity, StatusPageWriter
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.worker_control import ConfigureWorker, LoadProgress, WorkerReady
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.ipc.transport.inherited_fds import parse_inherited_fds
from mmsup.worker.execution.device_errors import DeviceFault
from mmsup.worker.execution.model_errors import ModelFailure
from mmsup.worker.execution.model_errors_guard import DeviceLost, call_model_code
from mmsup.worker.startup.controller_channel import WorkerControlChannel, exit_now
from mmsup.worker.startup.resource_limits import set_environment, set_limits, tune_malloc

if TYPE_CHECKING:
    from mmsup.ipc.transport.zeromq_channel import ZmqWorkerChannel
    from mmsup.worker.execution.executor import Executor

LINGER_MS: Final = 1000
"""For the last replies, on their way to gateways that read."""
LOAD_CODES: Final = {"inference_failed": "load_failed", "gpu_oom": "does_not_fit"}
"""What a failure of a run is called when it happens in a load."""

log = logging.getLogger("mmsup.worker")
T = TypeVar("T")


def main(arguments: list[str]) -> NoReturn:
    """Run one worker."""
    inherited = parse_inherited_fds(arguments)
    for fd in inherited.values():
        os.set_inheritable(fd, False)  # noqa: FBT003 - a model's own children must not hold them open after us
    faulthandler.enable(inherited["crash"], all_threads=False)
    # Whoever wonders what a worker is doing sends SIGQUIT and reads the stacks in its log; it goes on.
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    # And the brain, before it kills one that stands still: the answer goes where it listens.
    faulthandler.register(signal.SIGUSR2, inherited["crash"], all_threads=True)
    _open_log()
    control = WorkerControlChannel(ControlChannel.from_fd(inherited["control"]), inherited["lifeline"])
    page = StatusPageWriter(inherited["page"])
    os.close(inherited["page"])  # the mapping stays
    boot = control.receive_boot()
    try:
        _run_worker(control, boot, page)
    except SystemExit as error:
        _exit_by_model(error)
    except DeviceLost as error:
        _exit_device_lost(str(error))
    except KeyboardInterrupt:
        exit_now(128 + signal.SIGINT)


def _run_worker(control: WorkerControlChannel, boot: ConfigureWorker, page: StatusPageWriter) -> NoReturn:
    """From Boot to the last reply."""
    began = time.monotonic()
    page.set_activity(Activity.LOADING, time.monotonic_ns())
    set_limits(boot)
    set_environment(boot.spec)
    tune_malloc(boot.spec)
    control.send(Hello("worker", WIRE_VERSION, boot.instance, boot.generation))
    _value_or_exit(control, call_model_code(lambda: os.chdir(boot.spec.directory), boot.spec))
    from mmsup.worker.serving.loop import ServingLoop  # noqa: PLC0415 - only now: it brings in numpy, with its threads

    execution = _load(control, boot.spec, page)
    end = _bind_zeromq(boot.address) if boot.address else None
    gc.collect()
    gc.freeze()
    gc.disable()
    control.send(WorkerReady(execution.metadata, time.monotonic() - began))
    ServingLoop(control, end, execution, page).run()
    page.set_activity(Activity.STOPPING, time.monotonic_ns())
    call_model_code(execution.engine.unload, boot.spec)
    if end is not None:
        end.close(LINGER_MS)
    exit_now(exit_codes.SUCCESS)


def _bind_zeromq(address: str) -> ZmqWorkerChannel:
    """The ZeroMQ socket of a server that is configured for one."""
    from mmsup.ipc.transport.zeromq_channel import ZmqWorkerChannel  # noqa: PLC0415 - the library and its threads are for those alone

    return ZmqWorkerChannel(address)


def _load(control: WorkerControlChannel, spec: ModelSpec, page: StatusPageWriter) -> Executor:
    """The model, imported, loaded and run once; the process ends if that cannot be."""
    from mmsup.worker.execution.engine import LIBRARIES, open_engine  # noqa: PLC0415 - see above
    from mmsup.worker.execution.executor import Executor  # noqa: PLC0415
    from mmsup.worker.startup.warm_up import warm_up  # noqa: PLC0415

    control.send(LoadProgress(f"importing {LIBRARIES[spec.engine]}"))
    engine = _value_or_exit(control, call_model_code(lambda: open_engine(spec.engine), spec))
    control.send(LoadProgress(f"loading {spec.artefact}"))
    metadata = _value_or_exit(control, call_model_code(lambda: engine.load(spec), spec))
    page.set_activity(Activity.WARMING, time.monotonic_ns())
    control.send(LoadProgress("warming up", is_warm_up=True))
    execution = Executor(engine, spec, metadata, page)
    _value_or_exit(control, call_model_code(lambda: warm_up(execution), spec))
    return execution


def _value_or_exit(control: WorkerControlChannel, outcome: T | ModelFailure) -> T:
    """The outcome of a step of the load; the process ends if it has none."""
    if isinstance(outcome, ModelFailure):
        if outcome.device_fault is DeviceFault.LOST:
            _exit_device_lost(outcome.text)
        control.report_load_failure(LOAD_CODES.get(outcome.code, outcome.code), outcome.text)
    return outcome


def _exit_device_lost(text: str) -> NoReturn:
    log.error("the CUDA context is lost, this process ends: %s", text)
    exit_now(exit_codes.DEVICE_LOST)


def _exit_by_model(error: SystemExit) -> NoReturn:
    """The model called `sys.exit`: a death like any other, with the status it chose."""
    code = error.code
    if code is not None and not isinstance(code, int):
        log.error("the model ended this process: %s", code)
        exit_now(exit_codes.REFUSED)
    exit_now((code or exit_codes.SUCCESS) & 0xFF)


def _open_log() -> None:
    """Our lines go to the error stream, and what a model prints is not held back until it is lost."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s worker: %(message)s"))
    log.addHandler(handler)
    log.propagate = False
    cast("io.TextIOWrapper", sys.stdout).reconfigure(line_buffering=True)


if __name__ == "__main__":
    main(sys.argv[1:])
