"""The gRPC front process (relay/) as the controller runs it: started if it is wanted, and again when it exits.

It is wanted with `--grpc-front grpcio`, or when a gateway reports that its own front does not work. Its token holds the
generation of the controller that started it, so that none is used twice; the next controller adopts what it finds.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import time
from typing import Any, Final

from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.keeper_control import ChildDescriptors, ChildExited, ForgetChild, SignalChild, SpawnFailed
from mmsup.ipc.rpc.front_options import RpcFrontOptions
from mmsup.ipc.stray_signals import signal_name
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.ipc.transport.dataclass_codec import to_plain
from mmsup.supervisor.gateways.gateway_process import GatewayContext, SeatTimer
from mmsup.supervisor.processes.child_process import ChildProcess
from mmsup.supervisor.processes.launch_spec import RELAY_LISTENER, RPC_LISTENERS, rpc_front_spawn, rpc_front_token

LIBRARY: Final = "grpc"
START_S: Final = 60.0
STALE_S: Final = 5.0
"""Its heartbeat comes every 100 ms."""
OUTPUT: Final = "grpc front"
_INSTALL: Final = "pip install 'mmsup[grpc]' gives another one"


def is_installed() -> bool:
    """Whether the grpcio library is there; it is not imported."""
    return importlib.util.find_spec(LIBRARY) is not None


class FrontOutput:
    """Keeps what the process prints; it sends nothing."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context

    def on_message(self, data: bytes, descriptors: list[int]) -> None:  # noqa: ARG002 - it has none
        close_fds(descriptors)

    def on_closed(self) -> None:
        """Its exit follows."""

    def on_crash_output(self, text: str) -> None:
        """Its exit follows, and says the signal."""

    def on_output(self, data: bytes) -> None:
        self._context.output.append(OUTPUT, data)


class RpcFront:
    def __init__(self, context: GatewayContext, controller_generation: int) -> None:
        self.process: ChildProcess | None = None
        self._context = context
        self._controller_generation = controller_generation
        self.number = 0
        self._token = ""
        self._is_wanted = context.settings.grpc_front == "grpcio"
        self._has_failed_over = False
        self._is_open = False
        self.started_s = 0.0
        self._timer = SeatTimer(context.rng)

    @property
    def can_run(self) -> bool:
        """Whether it could serve: there is the library, and what it is to serve on."""
        addresses = self._context.addresses
        return is_installed() and RELAY_LISTENER in addresses and any(each in addresses for each in RPC_LISTENERS)

    def open(self) -> None:
        """All children of the controller before are known."""
        self._is_open = True
        self._start_if_wanted()

    def on_own_front_failed(self, gateway: int, text: str) -> None:
        """A gateway's own front does not work."""
        can_run = self.can_run
        if not self._has_failed_over:
            self._has_failed_over = True
            then = "grpcio serves gRPC from now on" if can_run else f"gRPC may not work; {_INSTALL}"
            self._context.event_log.record("grpc_front_fallback", f"{text}: {then}", gateway=gateway)
        self._is_wanted = self._is_wanted or can_run
        self._start_if_wanted()

    def on_message(self, number: int, generation: int, message: object, descriptors: list[int]) -> None:
        """The keeper has started one, could not, hands one over, or says that one has exited."""
        token = rpc_front_token(number, generation)
        if isinstance(message, ChildDescriptors):
            if self.process is None and not self._token and descriptors:  # of the controller before
                self._token, self._is_wanted, self.started_s = token, True, time.monotonic()
            if token == self._token and self.process is None and descriptors:
                self.process = ChildProcess(token, message.pid, descriptors, FrontOutput(self._context))
            else:
                close_fds(descriptors)
                self._context.keeper.send(SignalChild(token, signal.SIGKILL, whole_session=True))
            return
        if isinstance(message, ChildExited):
            self._context.keeper.send(ForgetChild(token))
        if token == self._token:
            self._on_down(message)

    def check(self, now_s: float) -> None:
        """Kill it if its loop stands; called a few times a second."""
        process = self.process
        if process is None or process.is_dead:
            return
        progress = process.progress()
        is_late = now_s > self.started_s + START_S
        if progress.activity is Activity.STARTING:
            if is_late:
                self._signal(signal.SIGKILL)
        elif now_s - progress.heartbeat_ns / 1e9 > STALE_S:
            self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """The server stops: have it end its connections."""
        self._is_wanted = False
        self._timer.cancel()
        self._signal(signal.SIGTERM)

    def renew(self) -> None:
        """The code of the server was changed: have another one follow."""
        if not self._token.endswith(f".{self._controller_generation}"):
            self._signal(signal.SIGTERM)

    def status(self) -> dict[str, Any]:  # JSON
        process = self.process
        pid = process.pid if process is not None else None
        is_serving = process is not None and process.has_served
        return {
            "front": "grpcio" if self._is_wanted else "own",
            "pid": pid,
            "serves": is_serving or not self._is_wanted,
        }

    def close(self) -> None:
        """The process goes on without this controller."""
        self._timer.cancel()
        process, self.process = self.process, None
        if process is not None:
            process.close()

    def _start_if_wanted(self) -> None:
        if not self._is_wanted or not self._is_open or self._token or self._context.is_stopping or not self.can_run:
            return
        self._timer.cancel()
        self.number += 1
        name = self.number, self._controller_generation
        self._token, self.started_s = rpc_front_token(*name), time.monotonic()
        context, settings = self._context, self._context.settings
        options = RpcFrontOptions(
            socket=context.addresses[RELAY_LISTENER],
            folder=settings.runtime_dir,
            gateways=settings.gateways,
            max_message_bytes=settings.max_body_bytes,
            keepalive=settings.grpc_keepalive,
        )
        listeners = tuple(each for each in RPC_LISTENERS if each in context.addresses)
        text = json.dumps(to_plain(options)[1:])
        context.keeper.send(rpc_front_spawn(name, context.launch_environment, text, listeners))
        context.event_log.record("grpc_front_spawn", "the process that serves gRPC by grpcio is being started")

    def _signal(self, number: signal.Signals) -> None:
        if self._token:
            self._context.keeper.send(SignalChild(self._token, number, whole_session=True))

    def _on_down(self, message: object) -> None:
        process, self.process, self._token = self.process, None, ""
        if process is not None:
            process.drain_and_close()
        tail = self._context.output.finish(OUTPUT)
        if self._context.is_stopping or not self._is_wanted:
            return
        delay_s = self._timer.start_backoff(time.monotonic() - self.started_s, self._start_if_wanted)
        text = f"{_how(message)}; calls that it had are lost, HTTP and the gateways are not concerned"
        self._context.event_log.record("grpc_front_exit", text, tail=tail, next_delay_s=round(delay_s, 3))


def _how(message: object) -> str:
    match message:
        case SpawnFailed(_, text):
            return f"the gRPC front could not be started: {text}"
        case ChildExited() if message.signal:
            return f"the gRPC front was ended by {signal_name(message.signal)}"
        case ChildExited() if not message.status:
            return "the gRPC front left, as it was told to, and another one follows"
        case ChildExited():
            return f"the gRPC front exited with status {message.status}"
        case _:
            return "the gRPC front has ended"
