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
from mmsup.ipc.memory.status_page import Activity, PageWriter
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.worker_control import Boot, Ready, Stage
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.transport.control_channel import Seqpacket
from mmsup.ipc.transport.inherited_fds import descriptors
from mmsup.worker.execution.device_errors import DeviceFault
from mmsup.worker.execution.model_errors import Failure
from mmsup.worker.execution.model_errors_guard import DeviceLost, guarded
from mmsup.worker.startup.controller_channel import Control, leave
from mmsup.worker.startup.resource_limits import set_environment, set_heap, set_limits

if TYPE_CHECKING:
    from mmsup.ipc.transport.zeromq_channel import WorkerEnd
    from mmsup.worker.execution.executor import Execution

LINGER_MS: Final = 1000
"""For the last replies, on their way to gateways that read."""
LOAD_CODES: Final = {"inference_failed": "load_failed", "gpu_oom": "does_not_fit"}
"""What a failure of a run is called when it happens in a load."""

log = logging.getLogger("mmsup.worker")
T = TypeVar("T")


def main(arguments: list[str]) -> NoReturn:
    """Run one worker."""
    inherited = descriptors(arguments)
    for fd in inherited.values():
        os.set_inheritable(fd, False)  # noqa: FBT003 - a model's own children must not hold them open after us
    faulthandler.enable(inherited["crash"], all_threads=False)
    # Whoever wonders what a worker is doing sends SIGQUIT and reads the stacks in its log; it goes on.
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    # And the brain, before it kills one that stands still: the answer goes where it listens.
    faulthandler.register(signal.SIGUSR2, inherited["crash"], all_threads=True)
    _open_log()
    control = Control(Seqpacket.of_descriptor(inherited["control"]), inherited["lifeline"])
    page = PageWriter(inherited["page"])
    os.close(inherited["page"])  # the mapping stays
    boot = control.boot()
    try:
        _live(control, boot, page)
    except SystemExit as error:
        _exit_as_asked(error)
    except DeviceLost as error:
        _lose_device(str(error))
    except KeyboardInterrupt:
        leave(128 + signal.SIGINT)


def _live(control: Control, boot: Boot, page: PageWriter) -> NoReturn:
    """From Boot to the last reply."""
    began = time.monotonic()
    page.enter(Activity.LOADING, time.monotonic_ns())
    set_limits(boot)
    set_environment(boot.spec)
    set_heap(boot.spec)
    control.say(Hello("worker", WIRE_VERSION, boot.instance, boot.generation))
    _succeeded(control, guarded(lambda: os.chdir(boot.spec.directory), boot.spec))
    from mmsup.worker.serving.loop import Loop  # noqa: PLC0415 - only now: it brings in numpy, with its threads

    execution = _load(control, boot.spec, page)
    end = _bound(boot.address) if boot.address else None
    gc.collect()
    gc.freeze()
    gc.disable()
    control.say(Ready(execution.metadata, time.monotonic() - began))
    Loop(control, end, execution, page).run()
    page.enter(Activity.STOPPING, time.monotonic_ns())
    guarded(execution.engine.unload, boot.spec)
    if end is not None:
        end.close(LINGER_MS)
    leave(exit_codes.DONE)


def _bound(address: str) -> WorkerEnd:
    """The ZeroMQ socket of a server that is configured for one."""
    from mmsup.ipc.transport.zeromq_channel import WorkerEnd  # noqa: PLC0415 - the library and its threads are for those alone

    return WorkerEnd(address)


def _load(control: Control, spec: ModelSpec, page: PageWriter) -> Execution:
    """The model, imported, loaded and run once; the process ends if that cannot be."""
    from mmsup.worker.execution.engine import LIBRARIES, open_engine  # noqa: PLC0415 - see above
    from mmsup.worker.execution.executor import Execution  # noqa: PLC0415
    from mmsup.worker.startup.warm_up import warm_up  # noqa: PLC0415

    control.say(Stage(f"importing {LIBRARIES[spec.engine]}"))
    engine = _succeeded(control, guarded(lambda: open_engine(spec.engine), spec))
    control.say(Stage(f"loading {spec.artefact}"))
    metadata = _succeeded(control, guarded(lambda: engine.load(spec), spec))
    page.enter(Activity.WARMING, time.monotonic_ns())
    control.say(Stage("warming up", warming=True))
    execution = Execution(engine, spec, metadata, page)
    _succeeded(control, guarded(lambda: warm_up(execution), spec))
    return execution


def _succeeded(control: Control, outcome: T | Failure) -> T:
    """The outcome of a step of the load; the process ends if it has none."""
    if isinstance(outcome, Failure):
        if outcome.device is DeviceFault.LOST:
            _lose_device(outcome.text)
        control.fail(LOAD_CODES.get(outcome.code, outcome.code), outcome.text)
    return outcome


def _lose_device(text: str) -> NoReturn:
    log.error("the CUDA context is lost, this process ends: %s", text)
    leave(exit_codes.DEVICE_LOST)


def _exit_as_asked(error: SystemExit) -> NoReturn:
    """The model called `sys.exit`: a death like any other, with the status it chose."""
    code = error.code
    if code is not None and not isinstance(code, int):
        log.error("the model ended this process: %s", code)
        leave(exit_codes.REFUSED)
    leave((code or exit_codes.DONE) & 0xFF)


def _open_log() -> None:
    """Our lines go to the error stream, and what a model prints is not held back until it is lost."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s worker: %(message)s"))
    log.addHandler(handler)
    log.propagate = False
    cast("io.TextIOWrapper", sys.stdout).reconfigure(line_buffering=True)


if __name__ == "__main__":
    main(sys.argv[1:])
