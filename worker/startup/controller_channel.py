"""The worker's side of its control channel, until it serves: the first word of the brain, then our own.

Covers: waiting for Boot, the wire's version, saying how far a load is. Does not cover: Attach and Stop (loop.py).
"""

from __future__ import annotations

import os
import select
import sys
import time
from typing import Final, NoReturn

from mmsup.ipc import exit_codes
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.messages.worker_control import ConfigureWorker, LoadFailed
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel, close_fds
from mmsup.ipc.transport.dataclass_codec import WireError

BOOT_DEADLINE_S: Final = 120.0
"""A brain sends Boot with the spawn; this bounds one that died in between and whose successor forgot us."""
TEXT_LIMIT: Final = 2000


class WorkerControlChannel:
    """The control channel, and the pipe whose end says that the keeper is gone."""

    def __init__(self, channel: ControlChannel, lifeline: int) -> None:
        self.channel = channel
        self.lifeline = lifeline

    def receive_boot(self, deadline_s: float = BOOT_DEADLINE_S) -> ConfigureWorker:
        """Wait for the brain's first message; the process ends if it never comes, or speaks another wire."""
        deadline = time.monotonic() + deadline_s
        while True:
            received = self._receive()
            if received is not None:
                data, descriptors = received
                close_fds(descriptors)
                return self._check_version(data)
            if not self._wait(select.POLLIN, deadline - time.monotonic()):
                print(f"no Boot within {deadline_s:.0f} s", file=sys.stderr)  # noqa: T201 - our log is this stream
                exit_parent_lost()

    def send(self, message: object) -> None:
        """Tell the brain; waits while nobody reads, ends the process when nobody ever will."""
        data = encode(message)
        try:
            while not self.channel.send(data):
                self._wait(select.POLLOUT, None)
        except ChannelClosed:
            exit_parent_lost()

    def report_load_failure(self, code: str, text: str) -> NoReturn:
        """Tell the brain why there will be no model here, and leave."""
        self.send(LoadFailed(code, text[:TEXT_LIMIT]))
        exit_now(exit_codes.LOAD_FAILED)

    def _receive(self) -> tuple[bytes, list[int]] | None:
        try:
            return self.channel.receive()
        except ChannelClosed:
            exit_parent_lost()

    def _wait(self, events: int, timeout_s: float | None) -> bool:
        """Whether the channel became ready in time."""
        if timeout_s is not None and timeout_s <= 0:
            return False
        poller = select.poll()
        poller.register(self.channel.fileno(), events)
        poller.register(self.lifeline, 0)  # only its end is of interest
        for fd, _ in poller.poll(None if timeout_s is None else timeout_s * 1000):
            if fd == self.lifeline:
                exit_parent_lost()
        return True

    def _check_version(self, data: bytes) -> ConfigureWorker:
        try:
            boot = decode(data, (ConfigureWorker,))
        except WireError as error:
            self.report_load_failure(
                "load_failed", f"the brain's first message is not of wire {WIRE_VERSION}, this worker's: {error}"
            )
        assert isinstance(boot, ConfigureWorker)
        if boot.wire_version != WIRE_VERSION:
            text = f"the brain speaks wire {boot.wire_version}, this worker wire {WIRE_VERSION}: their installations differ"
            self.report_load_failure("load_failed", text)
        return boot


def exit_parent_lost() -> NoReturn:
    """The keeper is gone and takes everything with it."""
    os._exit(exit_codes.KEEPER_LOST)


def exit_now(status: int) -> NoReturn:
    """End at once with what has been printed, without the destructors of a model that may hang in them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
