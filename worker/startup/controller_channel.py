"""The worker's end of its control channel to the controller, until it serves.

Covers: waiting for ConfigureWorker, the wire version, reporting the progress of a load, exiting.
Does not cover: what comes while it serves (serving/loop.py).
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

CONFIGURATION_DEADLINE_S: Final = 120.0
"""The controller sends ConfigureWorker with the spawn. The limit is for one that died in between, and whose successor
does not know this worker."""
TEXT_LIMIT: Final = 2000


class WorkerControlChannel:
    def __init__(self, channel: ControlChannel, lifeline: int) -> None:
        """`lifeline`: a pipe that is hung up when the keeper exits."""
        self.channel = channel
        self.lifeline = lifeline

    def receive_configuration(self, deadline_s: float = CONFIGURATION_DEADLINE_S) -> ConfigureWorker:
        """Wait for the controller's first message; exits if it does not come, or is of another wire version."""
        deadline = time.monotonic() + deadline_s
        while True:
            received = self._receive()
            if received is not None:
                data, descriptors = received
                close_fds(descriptors)
                try:
                    return read_configuration(data)
                except WireError as error:
                    self.report_load_failure("load_failed", str(error))
            if not self._wait(select.POLLIN, deadline - time.monotonic()):
                print(f"no ConfigureWorker within {deadline_s:.0f} s", file=sys.stderr)  # noqa: T201 - the log of a worker
                exit_parent_lost()

    def send(self, message: object) -> None:
        """Send a message; blocks while the channel is full, exits if the keeper is gone."""
        data = encode(message)
        try:
            while not self.channel.send(data):
                self._wait(select.POLLOUT, None)
        except ChannelClosed:
            exit_parent_lost()

    def report_load_failure(self, code: str, text: str, detail: str = "") -> NoReturn:
        self.send(LoadFailed(code, text[:TEXT_LIMIT], detail[:TEXT_LIMIT]))
        exit_now(exit_codes.LOAD_FAILED)

    def _receive(self) -> tuple[bytes, list[int]] | None:
        try:
            return self.channel.receive()
        except ChannelClosed:
            exit_parent_lost()

    def _wait(self, events: int, timeout_s: float | None) -> bool:
        if timeout_s is not None and timeout_s <= 0:
            return False
        poller = select.poll()
        poller.register(self.channel.fileno(), events)
        poller.register(self.lifeline, 0)  # only its hang-up matters
        for fd, _ in poller.poll(None if timeout_s is None else timeout_s * 1000):
            if fd == self.lifeline:
                exit_parent_lost()
        return True


def read_configuration(data: bytes) -> ConfigureWorker:
    """The controller's first message; WireError if it is another one, or of another wire version."""
    try:
        message = decode(data, (ConfigureWorker,))
    except WireError as error:
        text = f"the controller's first message is not of wire version {WIRE_VERSION}, this worker's: {error}"
        raise WireError(text) from error
    assert isinstance(message, ConfigureWorker)
    if message.wire_version != WIRE_VERSION:
        text = f"the controller has wire version {message.wire_version}, this worker {WIRE_VERSION}"
        raise WireError(f"{text}: their installations differ")
    return message


def exit_parent_lost() -> NoReturn:
    """Exit because the keeper is gone: no worker outlives it."""
    os._exit(exit_codes.KEEPER_LOST)


def exit_now(status: int) -> NoReturn:
    """Flush the output and exit without running destructors, in which a model may hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
