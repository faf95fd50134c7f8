"""The control channel: messages from the controller to this gateway and back, and what they do to the router.

The first message is ConfigureGateway. A controller that is started later sends it again and then everything anew; what
it does not name before Synced is removed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NoReturn

import orjson

from mmsup.gateway.client_memory.region_table import RegionTable, make_region_table
from mmsup.gateway.dispatch.link_memory import LinkMemory
from mmsup.gateway.dispatch.link_table import forget_handle
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.gateway.observability.log_output import apply_log_settings
from mmsup.ipc import exit_codes
from mmsup.ipc.errors import ServerError, make_error
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.log_settings import LogSettings
from mmsup.ipc.messages import gateway_control as messages
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.packed_result import unpack
from mmsup.ipc.messages.uploads import UploadedFiles
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import ControlChannel, close_fds
from mmsup.ipc.transport.data_channel import DataChannel
from mmsup.ipc.transport.message_channel import MessageChannel
from mmsup.ipc.transport.zeromq_channel import ZmqContext

LINK_DESCRIPTORS: Final = 3
CHANNEL_OVERFLOW: Final = 1
"""Exit status."""
LOST_DETAILS_LIMIT: Final = 64
"""Of the requests that a worker exited with, so many are described to the controller; the others are only counted."""
ID_CHARACTERS: Final = 64
CALL_TIMEOUT_S: Final = 3600.0
"""A load may take as long as its model's own limit; this only bounds a command that the controller lost."""
REGION_WAIT_S: Final = 10.0
"""For the controller and all gateways to take a region; a gateway that hangs is not waited for so long."""


class ControllerCalls:
    """Commands to the controller that wait for their replies."""

    def __init__(self, send: Callable[..., None]) -> None:
        """`send` takes a message and the descriptors that go with it."""
        self._send = send
        self._pending: dict[int, asyncio.Future[Any]] = {}  # results are JSON, by command
        self._last_id = 0

    async def call(self, command: str, arguments: dict[str, Any]) -> Any:  # arguments and result: JSON, by command
        """The controller's result. MmsupError as the controller reports it, or `unavailable` if it does not answer."""
        upload = arguments.get("upload")
        descriptors: tuple[int, ...] = ()
        if isinstance(upload, UploadedFiles):
            arguments, descriptors = {**arguments, "upload": upload.sizes}, (upload.fd,)
        return await self._ask(lambda number: messages.CommandRequest(number, command, arguments), descriptors)

    async def register_region(self, region: messages.MemoryRegion, fd: int) -> None:
        """Returns when all gateways have it. Errors as those of `call`."""
        await self._ask_soon(lambda number: messages.RegisterRegion(number, region), (fd,) if fd >= 0 else ())

    async def unregister_regions(self, kind: str, name: str) -> None:
        """Returns when no gateway has it any more."""
        await self._ask_soon(lambda number: messages.UnregisterRegions(number, kind, name))

    async def _ask_soon(self, message: Callable[[int], object], descriptors: tuple[int, ...] = ()) -> None:
        try:
            async with asyncio.timeout(REGION_WAIT_S):
                await self._ask(message, descriptors)
        except TimeoutError:
            raise ServerError("unavailable", "the supervisor does not answer; try again", retry_after_s=2) from None

    async def _ask(self, message: Callable[[int], object], descriptors: tuple[int, ...] = ()) -> Any:  # as `call`
        self._last_id = number = self._last_id + 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()  # as above
        self._pending[number] = future
        try:
            if descriptors:
                self._send(message(number), descriptors)
            else:
                self._send(message(number))
            failpoint("gateway.asked")
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await future
        except TimeoutError:
            raise ServerError("unavailable", "the supervisor did not answer; try again", retry_after_s=2) from None
        finally:
            self._pending.pop(number, None)

    def on_reply(self, message: messages.CommandReply) -> None:
        """A result; dropped if nothing waits for it any more."""
        failpoint("gateway.answered")
        future = self._pending.pop(message.id, None)
        if future is None or future.done():
            return
        if message.code:
            retry_after_s, retryable = message.retry_after_s or None, message.retryable
            future.set_exception(
                make_error(message.code, message.text, retry_after_s=retry_after_s, retryable=retryable)
            )
        else:
            future.set_result(unpack(message.result, orjson.loads))

    def on_controller_restart(self) -> None:
        """The controller that got the commands is dead, and its successor does not know them."""
        for future in self._pending.values():
            if not future.done():
                text = "the supervisor was restarted while it worked on this; try again"
                future.set_exception(ServerError("unavailable", text, retry_after_s=1))


class ControllerClient:
    """One per gateway process; applies the controller's messages to its router."""

    def __init__(
        self,
        channel: ControlChannel,
        configure: messages.ConfigureGateway,
        router: Router,
        zeromq: ZmqContext,
        regions: RegionTable | None = None,
    ) -> None:
        self._channel = MessageChannel(channel, self._on_message, exit_parent_lost, exit_channel_overflow)
        self._configure = configure
        self._router = router
        self._regions = regions or make_region_table(configure)
        self._zeromq = zeromq
        self._rpc_fault = ""
        self._links_in_sync: set[tuple[int, int]] | None = set()
        """The workers that a new controller has named so far; None once it has named all."""
        self._drain_task: asyncio.Task[None] | None = None
        self.synced = asyncio.Event()
        """A controller has sent everything once."""
        self.calls = ControllerCalls(self._send)
        router.waiters.cold_starts.call = self.calls.call
        self._regions.announce, self._regions.withdraw = self.calls.register_region, self.calls.unregister_regions
        self._regions.on_unused_handle = partial(forget_handle, router.links)
        router.poison_requests.send = self._send
        router.send_link_closed = lambda link: self._send(link_closed_message(link, time.monotonic_ns()))
        self._send_hello()

    def _send_hello(self) -> None:
        self._send(Hello("gateway", WIRE_VERSION, self._configure.seat, self._configure.generation))
        if self._rpc_fault:
            self._send(messages.RpcFrontFailed(self._rpc_fault))

    # Sending.

    def _send(self, message: object, descriptors: tuple[int, ...] = ()) -> None:
        self._channel.send(encode(message), descriptors)

    def report_overdue(self, now_s: float) -> None:
        """Report the workers that have not replied for too long; called a few times a second."""
        for link, age_s in self._router.links.overdue(now_s):
            self._send(messages.RequestOverdue(*link.worker_id, age_s))

    def report_rpc_fault(self, text: str) -> None:
        """The own gRPC front does not work: said to each controller."""
        self._rpc_fault = text
        self._send(messages.RpcFrontFailed(text))

    # Receiving.

    def _on_message(self, data: bytes, descriptors: list[int]) -> None:
        router, message = self._router, decode(data, messages.TO_GATEWAY)
        match message:
            case messages.LinkWorker():
                self._on_link(message, descriptors)
                return
            case messages.Route():
                router.routes.put(message)
                router.waiters.notify()
                failpoint("gateway.routed", message.name)
            case messages.Unroute():
                router.routes.drop(message.name)
                router.waiters.notify()
            case messages.UnlinkWorker():
                router.links.stop_routing((message.instance, message.generation))
                failpoint("gateway.unlinked")
            case messages.Condemned() | messages.Verdict():
                self._on_verdict(message)
            case messages.CommandReply():
                self.calls.on_reply(message)
            case messages.AddPoisonEntries() | messages.RemovePoisonEntry():
                router.poison_requests.on_message(message)
            case messages.AddRegion():
                self._regions.add(message.region, descriptors)
            case messages.RemoveRegion():
                self._regions.remove(message.name)
            case LogSettings():
                apply_log_settings(message)
            case messages.Ping():
                self._send(messages.Pong(message.number))
            case messages.ConfigureGateway():
                self._on_configure(message)
            case messages.Synced():
                self._on_synced(message)
            case messages.DrainGateway():
                self._on_drain()
            case messages.RetireGateway():
                router.status.retire()
            case _:
                raise AssertionError(f"{type(message).__name__} is in TO_GATEWAY and not handled")
        close_fds(descriptors)

    def _on_configure(self, message: messages.ConfigureGateway) -> None:
        """A new controller: the limits stay, everything else is sent again."""
        check_wire_version(message)
        self.calls.on_controller_restart()
        self._router.routes.begin_sync()
        self._links_in_sync = set()
        self._send_hello()
        for held in self._regions.held():  # the controller before knew them; this one knows what gateways say
            descriptors = (held.fd,) if held.fd >= 0 else ()
            self._send(messages.RegisterRegion(0, held.region), descriptors)

    def _on_synced(self, message: messages.Synced) -> None:
        router = self._router
        router.routes.end_sync()
        if self._links_in_sync is not None:
            for worker_id in router.links.by_worker.keys() - self._links_in_sync:
                router.links.stop_routing(worker_id)
        self._links_in_sync = None
        router.status.ready, router.status.reason = message.ready, message.reason
        router.waiters.notify()
        failpoint("gateway.synced")
        self.synced.set()

    def _on_link(self, message: messages.LinkWorker, descriptors: list[int]) -> None:
        router, worker_id = self._router, (message.instance, message.generation)
        if self._links_in_sync is not None:
            self._links_in_sync.add(worker_id)
        router.links.close_if_draining(worker_id)  # it was offloaded, and serves again
        if len(descriptors) != LINK_DESCRIPTORS or worker_id in router.links.by_worker:
            close_fds(descriptors)  # known: a new controller repeats what its predecessor sent
            return
        pidfd, page, fd = descriptors
        data_channel = DataChannel(fd)
        memory = LinkMemory(data_channel, router.memory_quota, router.executor, router.links.release_idle_memory)
        channel = self._zeromq.connect(message.address, message.identity) if message.address else data_channel
        link = WorkerLink(message, channel, memory, (pidfd, page))
        link.channel.on_protocol_error = partial(self._on_protocol_error, link)
        router.add_link(link)
        failpoint("gateway.linked", message.spec.name)

    def _on_protocol_error(self, link: WorkerLink, text: str) -> None:
        """A worker violated the protocol: close its link and report it, so that the controller kills it."""
        name = link.spec.name
        text_of_error = f"the worker of model '{name}' gave an answer that is not valid"
        self._router.verdicts.set(link.worker_id, make_error("bad_worker_reply", text_of_error, model=name))
        self._send(messages.BadReply(*link.worker_id, text))
        link.close()

    def _on_verdict(self, message: messages.Condemned | messages.Verdict) -> None:
        worker_id = message.instance, message.generation
        retryable = message.retryable if isinstance(message, messages.Verdict) else None
        self._router.verdicts.set(worker_id, make_error(message.code, message.text, retryable=retryable))
        failpoint("gateway.judged")
        link = self._router.links.by_worker.get(worker_id)
        if link is not None:
            link.close()

    def _on_drain(self) -> None:
        if self._drain_task is None or self._drain_task.done():  # a new controller may not have received the result
            self._router.status.drain()
            failpoint("gateway.draining")
            self._drain_task = asyncio.create_task(self._send_drained(), name="drain")

    async def _send_drained(self) -> None:
        await self._router.wait_until_drained()
        failpoint("gateway.drained")
        self._send(messages.GatewayDrained())

    async def close(self) -> None:
        if self._drain_task is not None:
            self._drain_task.cancel()
            await asyncio.gather(self._drain_task, return_exceptions=True)
        await self._router.waiters.cold_starts.close()
        self._channel.close()


def check_wire_version(message: messages.ConfigureGateway) -> None:
    """A controller with another version of the wire is a broken installation."""
    version = message.wire_version
    assert version == WIRE_VERSION, f"the controller uses wire version {version}, this gateway {WIRE_VERSION}"


def link_closed_message(link: WorkerLink, now_ns: int) -> messages.LinkClosed:
    """What was in flight when a link was closed. Requests that had started come first: one of them may be the cause."""
    assert link.close_record is not None, "an open link is reported as closed"
    lost = sorted(link.close_record.lost_requests, key=lambda each: not each.started)
    details = tuple(
        messages.InFlight(
            each.request.client_id[:ID_CHARACTERS],
            each.started,
            each.request.abandoned,
            (now_ns - each.request.sent_ns) / 1e9,
        )
        for each in lost[:LOST_DETAILS_LIMIT]
    )
    return messages.LinkClosed(*link.worker_id, len(lost), sum(each.started for each in lost), details)


def exit_channel_overflow(error: OSError) -> NoReturn:
    """A message of the controller is lost, perhaps with a worker's descriptors; the next process of this seat gets
    everything anew."""
    sys.stderr.write(f"a message of the controller was lost: {error.strerror}\n")
    sys.stderr.flush()
    os._exit(CHANNEL_OVERFLOW)


def exit_parent_lost() -> NoReturn:
    os._exit(exit_codes.KEEPER_LOST)
