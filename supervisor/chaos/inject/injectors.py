"""Injects each fault class: `inject` for a planned fault, or one of the injectors alone.

What must be observed afterwards stands in plan/catalog.py. An injector without a victim records `done: false`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from mmsup.supervisor.chaos.clients.http_client import ConnectionRefused, ConnectionReset
from mmsup.supervisor.chaos.clients.load import RequestPurpose
from mmsup.supervisor.chaos.clients.payload import make_payload
from mmsup.supervisor.chaos.clients.protocol import FaultCommand
from mmsup.supervisor.chaos.inject.client_memory import cut_memory
from mmsup.supervisor.chaos.inject.context import FAULT_PAYLOAD_VALUES, FaultContext, Injector
from mmsup.supervisor.chaos.inject.moves import failing_move, kill_in_move, race_moves
from mmsup.supervisor.chaos.inject.poison import poison
from mmsup.supervisor.chaos.observe.history import FaultFinished, LeakReport, RevisionInForce
from mmsup.supervisor.chaos.plan.catalog import ModelRole, hit_together
from mmsup.supervisor.chaos.plan.nemesis import PlannedFault
from mmsup.supervisor.chaos.server.local_server import ServerNotStarted, wait_until_ready, write_model
from mmsup.supervisor.cli.ctl import control_client
from mmsup.supervisor.cli.ctl.control_client import Json

BUSY_S: Final = 0.2
"""How long a request is given to start, before its worker is killed."""
UNLOADED_S: Final = 0.3
SLOW_S: Final = 0.1
STOPPED_S: Final = 3.0
EVICT_CLIENTS: Final = 2
"""Of each model."""
EVICT_PACE_S: Final = 0.05
MAX_ATTEMPTS: Final = 20
RETRY_S: Final = 0.5
LOADED: Final = "load 200"
NO_WORKER: Final = "no worker"
"""Note on a fault without a worker as victim."""
FAULT_LIMIT_S: Final = 90.0
"""Limit for one fault, after which its victim may get another one."""
RECOVERY_LIMIT_S: Final = 20.0
"""How long a victim's next worker is waited for, before it may get another fault."""
GARBAGE: Final = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v2/models/x/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000\r\n\r\n" + b"[" * 20000,
    b"POST /v2/models/x/infer HTTP/1.1\r\nContent-Length: 9\r\nInference-Header-Content-Length: -1\r\n\r\n{\"a\": NaN",
)  # fmt: skip


async def send_request(context: FaultContext, fault: PlannedFault) -> str:
    context.record_start(fault)
    outcome = await context.send_fault_request(fault)
    return outcome.code or outcome.kind


async def kill_busy(context: FaultContext, fault: PlannedFault) -> str:
    request = asyncio.ensure_future(context.send_fault_request(fault))
    await asyncio.wait([request], timeout=BUSY_S)
    await _signal_worker(context, fault, number=signal.SIGKILL)
    return (await request).code


async def freeze_worker(context: FaultContext, fault: PlannedFault) -> str:
    """Freeze the worker's control group for `duration_s`: it can neither run nor, on v1, be killed."""
    frozen = find_freezer(context.workers.pid(fault.victim))
    context.record_start(fault, done=frozen is not None)
    if frozen is None:
        return "no freezer"
    file, on, off = frozen
    with contextlib.suppress(OSError):  # its group may go at any moment
        file.write_text(on)
        await asyncio.sleep(fault.fault_class.duration_s)
        file.write_text(off)
    return ""


async def kill_keeper(context: FaultContext, fault: PlannedFault) -> str:
    """SIGKILL to the keeper: every process must end with it. The service manager restarts the server."""
    manager = context.target.manager
    assert manager is not None, "planned only for a server with a service manager"
    async with context.files_lock:
        context.record_start(fault)
        left = await manager.replace_keeper()
        context.history.add(LeakReport(context.history.now(), "after the keeper's death", left))
        if await wait_until_ready(manager, context.target.runtime_dir) is None:
            raise ServerNotStarted("the server did not become ready after its keeper was killed")
        await _wait_until_live(context)
    return ""


async def reload(context: FaultContext, fault: PlannedFault) -> str:
    context.record_start(fault)
    return await _load_next_revision(context, fault.victim)


async def unload_load(context: FaultContext, fault: PlannedFault) -> str:
    """Unload the model, and load it again UNLOADED_S later."""
    context.record_start(fault)
    reply = await context.target.unload(fault.victim)
    if reply.status == 200:
        context.history.add(RevisionInForce(context.history.now(), fault.victim, 0))
        await asyncio.sleep(UNLOADED_S)
    context.history.add(RevisionInForce(context.history.now(), fault.victim, context.revisions.get(fault.victim, 1)))
    return await _load_model(context, fault.victim)


async def put_to_sleep(context: FaultContext, fault: PlannedFault) -> str:
    """Give the model's memory back: requests that come wait for the next load, and none may fail."""
    context.record_start(fault)
    return await context.target.by_hand(fault.victim, "sleep", "wake")


async def evict(context: FaultContext, fault: PlannedFault) -> str:
    """Ask for more models than the memory budget holds: they go to sleep for each other, and no request may fail."""
    context.record_start(fault)
    end_s = context.history.now() + fault.fault_class.duration_s

    async def ask(model: str) -> None:
        while context.history.now() < end_s:
            purpose = RequestPurpose(beside_fault=fault.number)
            await context.load.send(model, FAULT_PAYLOAD_VALUES, purpose=purpose)
            await asyncio.sleep(EVICT_PACE_S)

    async with asyncio.TaskGroup() as group:
        for model in hit_together(fault.victim, context.target.models):
            for _ in range(EVICT_CLIENTS):
                group.create_task(ask(model))
    return ""


async def group_load(context: FaultContext, fault: PlannedFault) -> str:
    """Load a revision that ends the process of the group: the others come back, and it serves when it is mended."""
    note = await load_bad_revision(context, fault)
    await _load_next_revision(context, fault.victim)
    return note


async def load_bad_revision(context: FaultContext, fault: PlannedFault) -> str:
    """Load a revision that fails to load: the old one must stay in force."""
    context.record_start(fault)
    repository, victim = context.target.repository, fault.victim
    assert repository is not None, "planned only where the models' files may be changed"
    revision = context.revisions.get(victim, 1)
    role = context.target.models[victim]
    async with context.files_lock:
        write_model(repository, victim, role, revision=revision + 1, on_load=fault.fault_class.mode, load_timeout="2s")
        reply = await context.target.load(victim)
        write_model(repository, victim, role, revision=revision)
    return f"load {reply.status}"


async def leave(context: FaultContext, fault: PlannedFault) -> str:
    """Close the connection while the request is being executed."""
    context.record_start(fault)
    connection = await context.target.client.connect(raw=True)
    command = FaultCommand(fault.fault_class.mode, fault.fault_class.amount)
    call = context.adapter.build_request(fault.victim, make_payload(0, 0, FAULT_PAYLOAD_VALUES), command)
    connection.write(context.target.client.encode(call))
    await asyncio.sleep(fault.fault_class.amount / 2)
    connection.close()
    return ""


async def slow_client(context: FaultContext, fault: PlannedFault) -> str:
    """Send a head 8 bytes at a time, and close the connection before the body."""
    context.record_start(fault)
    path = context.adapter.build_request(
        next(iter(context.target.models)), make_payload(0, 0, FAULT_PAYLOAD_VALUES), None
    ).path
    connection = await context.target.client.connect(raw=True)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n{{".encode()
    for at in range(0, len(head), 8):
        if not connection.is_open:
            break
        connection.write(head[at : at + 8])
        await asyncio.sleep(SLOW_S)
    connection.close()
    return ""


async def garbage(context: FaultContext, fault: PlannedFault) -> str:
    """Send invalid HTTP, and HTTP with wrong lengths."""
    context.record_start(fault)
    for each in GARBAGE:
        with contextlib.suppress(ConnectionReset, ConnectionRefused):
            connection = await context.target.client.connect(raw=True)
            connection.write(each)
            await asyncio.sleep(SLOW_S)
            connection.close()
    return ""


async def inject(context: FaultContext, fault: PlannedFault) -> None:
    """Inject a fault, wait until its victim serves again, and record start and end."""
    old_pid = context.workers.pid(fault.victim)
    if fault.fault_class.causes and context.target.runtime_dir and not old_pid:
        context.record_start(fault, done=False, note=NO_WORKER)
        return
    try:
        async with asyncio.timeout(FAULT_LIMIT_S):
            note = await _inject(context, fault, old_pid)
    except (ConnectionReset, ConnectionRefused) as error:  # a gateway is being restarted
        note = f"not done: {error or type(error).__name__}"
    except TimeoutError:
        note = f"not over within {FAULT_LIMIT_S:g} s"
    context.history.add(FaultFinished(context.history.now(), fault.number, note))


async def _inject(context: FaultContext, fault: PlannedFault, old_pid: int) -> str:
    """Inject; wait until another worker than `old_pid` has answered; reload the model if that is planned."""
    note = await _BY_NAME.get(fault.fault_class.name, send_request)(context, fault)
    if fault.fault_class.causes and fault.fault_class.must_kill and old_pid and note != NO_WORKER:
        await context.workers.wait_replaced(fault.victim, old_pid, RECOVERY_LIMIT_S)
    has_failed_to_move = fault.fault_class.role == ModelRole.MOVABLE and bool(fault.fault_class.causes)
    if (fault.reload_after or has_failed_to_move) and context.target.repository is not None:
        await _load_next_revision(context, fault.victim)  # resets the restart backoff, and lets it be moved again
        purpose = RequestPurpose(beside_fault=fault.number)
        await context.load.send(fault.victim, FAULT_PAYLOAD_VALUES, purpose=purpose)  # its answer tells its process id
    return note


async def _load_next_revision(context: FaultContext, model: str) -> str:
    """Write and load another revision; from then on no other may answer."""
    revision = _write_next_revision(context, model)
    note = await _load_model(context, model)
    if note == LOADED:
        context.history.add(RevisionInForce(context.history.now(), model, revision))
    return note


async def _signal_worker(context: FaultContext, fault: PlannedFault, *, number: signal.Signals) -> str:
    context.record_start(fault)  # first: the death may be recorded before this function returns
    return "" if context.workers.send_signal(fault.victim, number) else NO_WORKER


async def _signal_controller(context: FaultContext, fault: PlannedFault, *, number: signal.Signals) -> str:
    pid = (await context.target.status())["brain"]["pid"]
    _send_signal(context, fault, pid, number)
    await _wait_for_status(context, lambda status: status["brain"]["pid"] != pid)
    return ""


async def _signal_gateway(context: FaultContext, fault: PlannedFault, *, number: signal.Signals) -> str:
    pids = [each["pid"] for each in (await context.target.status())["gateways"] if each["pid"]]
    if not pids:
        context.record_start(fault, done=False)
        return "no gateway is up"
    _send_signal(context, fault, pids[0], number)
    await _wait_for_status(
        context, lambda status: pids[0] not in [each["pid"] or pids[0] for each in status["gateways"]]
    )
    await _wait_until_live(context)
    return ""


async def kill_front(context: FaultContext, fault: PlannedFault) -> str:
    """SIGKILL to the process that takes calls of gRPC, while one is under way; returns when another one serves."""
    pid = (await context.target.status())["grpc_front"]["pid"]
    if not pid or context.rpc_load is None:
        context.record_start(fault, done=False)
        return "no gRPC front is up"
    models = context.target.models
    model = next((name for name, role in models.items() if role == ModelRole.CRASHY), next(iter(models)))
    command = FaultCommand(fault.fault_class.mode, fault.fault_class.amount)
    purpose = RequestPurpose(command, beside_fault=fault.number)
    call = asyncio.ensure_future(context.rpc_load.send(model, FAULT_PAYLOAD_VALUES, purpose=purpose))
    await asyncio.wait([call], timeout=BUSY_S)
    _send_signal(context, fault, pid, signal.SIGKILL)
    await _wait_for_status(context, lambda status: _serves_grpc(status["grpc_front"], pid))
    return (await call).kind


def _serves_grpc(front: Json, old_pid: int) -> bool:
    return front["pid"] not in (None, old_pid) and bool(front["serves"])


async def _signal_zygote(context: FaultContext, fault: PlannedFault, *, number: signal.Signals) -> str:
    """One that is stopped is killed at the next start of a worker, or goes on after STOPPED_S."""
    pids = [each["pid"] for each in (await context.target.status())["zygotes"] if each["state"] == "ready"]
    if not pids:
        context.record_start(fault, done=False)
        return "no zygote is ready"
    _send_signal(context, fault, pids[0], number)
    if number == signal.SIGSTOP:
        await asyncio.sleep(STOPPED_S)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[0], signal.SIGCONT)  # to a process that does not wait for it, nothing
    return ""


def _send_signal(context: FaultContext, fault: PlannedFault, pid: int, number: signal.Signals) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        context.record_start(fault, done=False)
        return
    context.record_start(fault)
    signal.pidfd_send_signal(pidfd, number)
    os.close(pidfd)


async def _wait_for_status(context: FaultContext, is_over: Callable[[Json], bool]) -> None:
    """Poll the status until it is as expected; repeated when the controller dies during a call."""
    for _ in range(MAX_ATTEMPTS):
        with contextlib.suppress(control_client.NoServer, control_client.ServerRefused):
            if is_over(await context.target.status()):
                return
        await asyncio.sleep(RETRY_S)


async def _wait_until_live(context: FaultContext) -> None:
    for _ in range(MAX_ATTEMPTS):
        if (await context.target.call("/v2/health/live", "GET")).status == 200:
            return
        await asyncio.sleep(RETRY_S)


async def _load_model(context: FaultContext, model: str) -> str:
    """Load a model; repeated when a process dies during the call."""
    status = 0
    for _ in range(MAX_ATTEMPTS):
        status = (await context.target.load(model)).status
        if status == 200:
            break
        await asyncio.sleep(RETRY_S)
    return f"load {status}"


def _write_next_revision(context: FaultContext, model: str) -> int:
    repository = context.target.repository
    assert repository is not None, "planned only where the models' files may be changed"
    context.revisions[model] = revision = context.revisions.get(model, 1) + 1
    write_model(repository, model, context.target.models[model], revision=revision)
    return revision


def find_freezer(pid: int) -> tuple[Path, str, str] | None:
    """The freezer file of the process's control group, with its values for on and off; None if it has none."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "/mmsup_" not in path:
            continue
        for file, on, off in (
            (Path(f"/sys/fs/cgroup/freezer{path}/freezer.state"), "FROZEN", "THAWED"),
            (Path(f"/sys/fs/cgroup{path}/cgroup.freeze"), "1", "0"),
        ):
            if controllers in ("freezer", "") and file.exists():
                return file, on, off
    return None


_BY_NAME: Final[Mapping[str, Injector]] = {
    **dict.fromkeys(  # busy or idle
        ("kill_idle", "group_kill", "stream_kill", "kill_sequenced"), partial(_signal_worker, number=signal.SIGKILL)
    ),
    **dict.fromkeys(("kill_called", "kill_step"), kill_busy),
    "stop_worker": partial(_signal_worker, number=signal.SIGSTOP),
    "kill_brain": partial(_signal_controller, number=signal.SIGKILL),
    "stop_brain": partial(_signal_controller, number=signal.SIGSTOP),  # the keeper must detect it
    "kill_gateway": partial(_signal_gateway, number=signal.SIGKILL),
    "kill_zygote": partial(_signal_zygote, number=signal.SIGKILL),
    "stop_zygote": partial(_signal_zygote, number=signal.SIGSTOP),  # the keeper must detect it
    "stop_gateway": partial(_signal_gateway, number=signal.SIGSTOP),  # the controller must detect it
    **dict.fromkeys(("offload_raises", "offload_hangs", "restore_raises", "restore_hangs"), failing_move),
    **dict.fromkeys(("kill_offloading", "kill_offloaded", "kill_restoring"), kill_in_move),
    "stream_leave": leave,
    **dict.fromkeys(("load_raises", "load_crashes", "load_hangs"), load_bad_revision),
    **{
        each.__name__: each
        for each in (
            kill_busy, freeze_worker, kill_keeper, kill_front, poison, reload, unload_load, put_to_sleep, evict,
            group_load, race_moves, leave, slow_client, garbage, cut_memory,
        )
    },
}  # fmt: skip
