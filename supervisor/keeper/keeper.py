"""The keeper: parent process of a server. It starts, reaps and signals processes and holds their descriptors.

It decides nothing. It holds what must outlive a controller: locks, listening sockets, counter tables, and five
descriptors of each child (children.py). It starts the controller, sends it the inventory, carries out its requests, and
restarts it when it exits. When the keeper dies, all its processes die: by the parent-death signal and by EOF on the
lifeline. A process that escapes both (started by a model) is found in our control groups by the next keeper.

Standard library only, one thread, one loop. Nothing in it waits for a child or for the controller.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from dataclasses import dataclass
from typing import Any, Final

from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages import keeper_control
from mmsup.ipc.stray_signals import signal_name
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper import reexec
from mmsup.supervisor.keeper.bootstrap import HeldResources
from mmsup.supervisor.keeper.children import Children
from mmsup.supervisor.keeper.controller_restart import CheckpointStore, ControllerRestart
from mmsup.supervisor.keeper.reexec import KeeperState
from mmsup.supervisor.keeper.shared_descriptors import SharedDescriptors
from mmsup.supervisor.keeper.upgrade import KeeperUpgrade
from mmsup.supervisor.linux import process_tree
from mmsup.supervisor.linux.cgroup_backend import top_name
from mmsup.supervisor.linux.signal_queue import ReceivedSignal, SignalQueue, all_signals_blocked

STOP_MARGIN_S: Final = 15.0
"""Beyond the drain time of the settings: a controller that has not finished by then is considered stuck."""
CLEANUP_INTERVAL_S: Final = 0.02
"""Between two looks at the control groups of exited children while processes are left in them."""
IDLE_S: Final = 60.0
"""Longest wait of the selector, which does not accept infinity."""
KILL_LIMIT_S: Final = 5.0
"""Longest wait at the end for killed processes: one in an unkillable state (D) may stay."""
CONTROLLER_EXIT_LIMIT_S: Final = 1.0
"""How long a controller may take to exit after ShutdownFinished."""


@dataclass(frozen=True, slots=True)
class KeeperProgram:
    """What the keeper runs: `settings` as JSON text, the command of the `controller`, the keeper's own build id."""

    settings: str
    controller: tuple[str, ...]
    build_id: str


class Keeper:
    """The loop, the requests of the controller, and the stop of the server."""

    def __init__(self, program: KeeperProgram, resources: HeldResources, state: KeeperState | None = None) -> None:
        """`state`: of the previous program of this process, after a re-exec."""
        settings = Settings.from_json(program.settings)
        self._program = program
        self._resources = resources
        self._generation = state.keeper_generation + 1 if state else 1
        self._checkpoint = CheckpointStore(state.checkpoint if state else {})
        self._stop_by_s = float("inf")
        self._exit_code: int | None = None
        self._signals = SignalQueue()
        self._selector = selectors.DefaultSelector()
        self._shared = SharedDescriptors(resources.listeners, settings.gateway_seats, state)
        self._controller = ControllerRestart(
            program.controller,
            self._shared.for_controller(),
            self._selector,
            resources.console,
            self,
            state.controller_generation if state else 0,
        )
        self._upgrade = KeeperUpgrade(program.build_id, self._controller)
        server = top_name(settings.state_dir)
        self._children = Children(
            self._selector, self._shared.lifeline, self._shared.for_child, self._controller.send, server
        )
        if state is not None:
            self._children.restore(state.children)
            self._children.dying_groups.groups = list(state.dying_groups)
            failpoint("keeper.taken_over")

    def run(self) -> int:
        """Run until the server has stopped; the exit code. No process that was started is left then."""
        self._signals.install(self._selector)
        while self._exit_code is None:
            self._run_timers(time.monotonic())
            if self._upgrade.is_reexec_due and not self._controller.pid:
                self._reexec()
            self._controller.check(time.monotonic())
            notifier = self._resources.notifier
            due_s = min(self._controller.due_s, self._upgrade.due_s, self._children.forks.due_s)
            self._wait(min(self._stop_by_s, notifier.ping_due_s, due_s))
        return self._kill_all(self._exit_code)

    def _run_timers(self, now_s: float) -> None:
        self._resources.notifier.ping(now_s)
        if now_s >= self._stop_by_s:
            self._resources.console.log("error", "stop_timeout", text="the drain did not end in time")
            self._finish(exit_codes.REFUSED)
        self._upgrade.check(now_s)
        self._children.forks.check(now_s)
        self._children.dying_groups.kill_again()
        self._children.orphans.kill_again()

    def _wait(self, until_s: float) -> None:
        is_cleaning = self._children.dying_groups.groups or self._children.orphans.is_searching
        wait_s = min(until_s - time.monotonic(), CLEANUP_INTERVAL_S if is_cleaning else IDLE_S)
        for key, _ in self._selector.select(max(0.0, wait_s)):
            key.data()
        self._handle_signals()

    def _handle_signals(self) -> None:
        for received in self._signals:
            match received.number:
                case signal.SIGCHLD:
                    self._reap()
                case signal.SIGHUP:
                    self._controller.send(keeper_control.ReloadRequested())
                case signal.SIGTERM | signal.SIGINT:
                    self._stop(received)
                case number:
                    name, sender = signal_name(number), received.sender()
                    self._resources.console.log(
                        "warning", "signal_ignored", process="keeper", signal=name, sender=sender
                    )

    def _stop(self, received: ReceivedSignal) -> None:
        """Ask the controller to drain and stop the server; a second signal kills everything at once."""
        if self._stop_by_s < float("inf"):
            text = "received a second signal to stop"
            self._resources.console.log("warning", "stop_forced", text=text, sender=received.sender())
            self._finish(exit_codes.REFUSED)
            self._controller.kill()
            return
        text = f"{signal_name(received.number)} from {received.sender()}"
        self._resources.console.log("info", "stopping", text=text)
        self._resources.notifier.send("STOPPING=1")
        drain_s = Settings.from_json(self._program.settings).exit_timeout_s
        self._stop_by_s = time.monotonic() + drain_s + STOP_MARGIN_S
        self._controller.send(keeper_control.StopReason(text))
        self._controller.send(keeper_control.TerminateRequested())
        failpoint("keeper.stopping")
        self._controller.start_now()

    def _finish(self, code: int) -> None:
        if self._exit_code is None:
            self._exit_code = code
            self._controller.stop_restarting()
            failpoint("keeper.finished")

    def _reap(self) -> None:
        """Handle every exited child. It is reaped last, so that its pid is not reused while its session is killed."""
        while (found := _next_exited()) is not None:
            token = self._children.token_of(found.si_pid)
            if found.si_pid == self._controller.pid:
                self._upgrade.cancel()
                self._controller.on_exit(_exited_message("controller", found))
            elif found.si_pid == self._upgrade.pid:
                self._upgrade.on_exit(_exited_message("preflight", found))
            elif token is not None:
                self._children.record_exit(_exited_message(token, found))
            os.waitpid(found.si_pid, 0)
            failpoint("keeper.reaped")

    def on_controller_start(self) -> None:
        parts = self._checkpoint.parts()
        inventory = keeper_control.KeeperInventory(
            keeper_pid=os.getpid(),
            generation=self._controller.generation,
            settings=self._program.settings,
            checkpoint_parts=len(parts),
            children=len(self._children),
            addresses=self._resources.listeners.addresses,
            stopping=self._stop_by_s < float("inf"),
            keeper_generation=self._generation,
        )
        for part in (inventory, *parts):
            self._controller.send(part)
        self._children.announce_all()

    def on_message(self, message: Any) -> None:  # one of TO_KEEPER
        if self._exit_code is not None:
            return  # the server has stopped
        match message:
            case keeper_control.Spawn():
                self._children.spawn(message)
            case keeper_control.SignalChild():
                self._children.signal(message)
            case keeper_control.ForgetChild(token):
                self._children.forget(token)
            case keeper_control.SaveCheckpoint(key, text):
                self._save_checkpoint(key, text)
            case keeper_control.NotifySystemd(text):
                self._resources.notifier.send(text)
            case keeper_control.ShutdownFinished(code):
                self._finish(code)
            case keeper_control.RequestUpgrade(force):
                stopping = self._stop_by_s < float("inf")
                self._upgrade.start(self._state, time.monotonic(), force=force, stopping=stopping)
            case _:
                assert isinstance(message, keeper_control.Heartbeat), f"{message} is not for a keeper"

    def _save_checkpoint(self, key: str, text: str) -> None:
        if self._checkpoint.save(key, text):
            failpoint("keeper.remembered")
        else:
            text = f"{key}: {len(text)} characters are too many"
            self._resources.console.log("error", "not_remembered", text=text)

    def _reexec(self) -> None:
        """Become the program on disk. Signals that arrive meanwhile stay pending for it."""
        self._upgrade.is_reexec_due = False
        try:
            with all_signals_blocked():
                self._handle_signals()
                failpoint("keeper.blocked")
                self._children.forks.give_up("the keeper becomes another program")
                if self._exit_code is None and self._stop_by_s == float("inf"):
                    reexec.exec_next(self._state())
        except OSError as error:
            self._resources.console.log("error", "keeper_not_renewed", text=error.strerror or str(error))

    def _state(self) -> KeeperState:
        listeners, notifier = self._resources.listeners, self._resources.notifier
        return KeeperState(
            keeper_generation=self._generation,
            settings=self._program.settings,
            controller_generation=self._controller.generation,
            checkpoint=self._checkpoint.entries,
            locks=tuple(self._resources.directories.locks),
            listeners=listeners.descriptors,
            addresses=listeners.addresses,
            socket_paths=tuple(listeners.socket_paths),
            lifeline=self._shared.lifeline,
            lifeline_writer=self._shared.lifeline_writer,
            counter_tables=self._shared.counter_tables,
            notify_address=notifier.address,
            watchdog_s=notifier.watchdog_s,
            children=self._children.records(),
            dying_groups=tuple(self._children.dying_groups.groups),
        )

    def _kill_all(self, code: int) -> int:
        """Kill all processes that are left and wait for their exit, at most KILL_LIMIT_S."""
        started_s = time.monotonic()
        self._children.forks.close()
        while time.monotonic() < started_s + KILL_LIMIT_S and (self._controller.pid or not self._children.is_empty):
            self._children.kill_all()
            if time.monotonic() >= started_s + CONTROLLER_EXIT_LIMIT_S:
                self._controller.kill()
            self._children.dying_groups.kill_again()
            self._children.orphans.kill_again()
            self._wait(time.monotonic() + CLEANUP_INTERVAL_S)
        # Children that are left are orphans that had left their session.
        while not process_tree.end_children(os.getpid()) and time.monotonic() < started_s + KILL_LIMIT_S:
            self._wait(time.monotonic() + CLEANUP_INTERVAL_S)
        self._resources.console.log("info", "stopped", code=code)
        failpoint("keeper.ended")
        return code


def _next_exited() -> os.waitid_result | None:
    """A child that has exited, which is not reaped yet."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None


def _exited_message(token: str, found: os.waitid_result) -> keeper_control.ChildExited:
    if found.si_code == os.CLD_EXITED:
        return keeper_control.ChildExited(token, found.si_pid, found.si_status, 0)
    return keeper_control.ChildExited(token, found.si_pid, 0, found.si_status)
