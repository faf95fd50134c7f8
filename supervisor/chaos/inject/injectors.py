"""How each fault is brought about. Each injector is usable alone: it needs a `Scene`, and says what it did.

    DEEDS["kill_idle"](scene, strike)      for the strikes of a plan, by the fault's name, else by how it is done

What must be seen afterwards stands in faults.py. An injector that has nobody to hurt writes `done: false`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from mmsup.supervisor.chaos.clients.http_client import ConnectionRefused, ConnectionReset
from mmsup.supervisor.chaos.clients.payload import make_payload
from mmsup.supervisor.chaos.clients.protocol import FaultCommand
from mmsup.supervisor.chaos.inject.context import FAULT_PAYLOAD_VALUES, FaultContext, Injector
from mmsup.supervisor.chaos.inject.poison import poison
from mmsup.supervisor.chaos.observe.history import FaultFinished, LeakReport, RevisionInForce
from mmsup.supervisor.chaos.plan.nemesis import PlannedFault
from mmsup.supervisor.chaos.server.local_server import ServerNotStarted, wait_until_ready, write_model
from mmsup.supervisor.cli import control_client
from mmsup.supervisor.cli.control_client import Json

BUSY_S: Final = 0.2
"""How long a request is given to be at work, before its worker is killed."""
UNLOADED_S: Final = 0.3
SLOW_S: Final = 0.1
MAX_ATTEMPTS: Final = 20
RETRY_S: Final = 0.5
LOADED: Final = "load 200"
NO_WORKER: Final = "nobody was there"
"""The note on a fault that met nobody."""
FAULT_LIMIT_S: Final = 90.0
"""How long one fault may keep its victim from being hurt again, whatever the server does."""
RECOVERY_LIMIT_S: Final = 20.0
"""How long a victim is waited for, until the next one may be hurt."""
GARBAGE: Final = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /v2/models/x/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v2/models/x/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n" + b"[" * 20000,
    b"POST /v2/models/x/infer HTTP/1.1\r\nContent-Length: 9\r\nInference-Header-Content-Length: -1\r\n\r\n{\"a\": NaN",
)  # fmt: skip


async def by_request(scene: FaultContext, strike: PlannedFault) -> str:
    """A request that makes the model do it."""
    scene.record_start(strike)
    outcome = await scene.send_fault_request(strike)
    return outcome.code or outcome.kind


async def kill_idle(scene: FaultContext, strike: PlannedFault) -> str:
    """SIGKILL to the worker, whatever it does."""
    return _signal_worker(scene, strike, signal.SIGKILL)


async def stop_worker(scene: FaultContext, strike: PlannedFault) -> str:
    """SIGSTOP to the worker."""
    return _signal_worker(scene, strike, signal.SIGSTOP)


async def kill_busy(scene: FaultContext, strike: PlannedFault) -> str:
    """SIGKILL to the worker while it runs a request."""
    harm = asyncio.ensure_future(scene.send_fault_request(strike))
    await asyncio.wait([harm], timeout=BUSY_S)
    _signal_worker(scene, strike, signal.SIGKILL)
    return (await harm).code


async def freeze_worker(scene: FaultContext, strike: PlannedFault) -> str:
    """Freeze the worker's control group: it can neither run nor, on v1, be killed. Thawed after a while."""
    frozen = find_freezer(scene.workers.pid(strike.victim))
    scene.record_start(strike, done=frozen is not None)
    if frozen is None:
        return "no freezer"
    file, on, off = frozen
    with contextlib.suppress(OSError):  # its group may go at any moment
        file.write_text(on)
        await asyncio.sleep(strike.fault.duration_s)
        file.write_text(off)
    return ""


async def kill_brain(scene: FaultContext, strike: PlannedFault) -> str:
    """SIGKILL to the brain."""
    return await _signal_controller(scene, strike, signal.SIGKILL)


async def stop_brain(scene: FaultContext, strike: PlannedFault) -> str:
    """SIGSTOP to the brain: the keeper must find out."""
    return await _signal_controller(scene, strike, signal.SIGSTOP)


async def kill_gateway(scene: FaultContext, strike: PlannedFault) -> str:
    """SIGKILL to a gateway."""
    return await _signal_gateway(scene, strike, signal.SIGKILL)


async def stop_gateway(scene: FaultContext, strike: PlannedFault) -> str:
    """SIGSTOP to a gateway: the brain must find out."""
    return await _signal_gateway(scene, strike, signal.SIGSTOP)


async def kill_keeper(scene: FaultContext, strike: PlannedFault) -> str:
    """SIGKILL to the keeper: everything must end with it. A service manager starts the server again."""
    manager = scene.target.manager
    assert manager is not None, "planned only where the server is started by us"
    async with scene.files_lock:
        scene.record_start(strike)
        left = await manager.replace_keeper()
        scene.history.add(LeakReport(scene.history.now(), "after the keeper's death", left))
        if await wait_until_ready(manager, scene.target.runtime_dir) is None:
            raise ServerNotStarted("the server did not come up again after its keeper was killed")
        await _wait_until_live(scene)
    return ""


async def reload(scene: FaultContext, strike: PlannedFault) -> str:
    """Another edition of the model, loaded while the old one serves."""
    scene.record_start(strike)
    return await _load_next_revision(scene, strike.victim)


async def unload_load(scene: FaultContext, strike: PlannedFault) -> str:
    """Unload it, and load it again a little later."""
    scene.record_start(strike)
    gone = await scene.target.unload(strike.victim)
    if gone.status == 200:
        scene.history.add(RevisionInForce(scene.history.now(), strike.victim, 0))
        await asyncio.sleep(UNLOADED_S)
    scene.history.add(RevisionInForce(scene.history.now(), strike.victim, scene.revisions.get(strike.victim, 1)))
    return await _load_model(scene, strike.victim)


async def load_bad_revision(scene: FaultContext, strike: PlannedFault) -> str:
    """Another edition that cannot be loaded: the old one must go on."""
    scene.record_start(strike)
    repository, victim = scene.target.repository, strike.victim
    assert repository is not None, "planned only where the models' files are ours"
    revision = scene.revisions.get(victim, 1)
    role = scene.target.models[victim]
    async with scene.files_lock:
        write_model(repository, victim, role, revision=revision + 1, on_load=strike.fault.mode, load_timeout="2s")
        reply = await scene.target.load(victim)
        write_model(repository, victim, role, revision=revision)
    return f"load {reply.status}"


async def leave(scene: FaultContext, strike: PlannedFault) -> str:
    """A client that hangs up while its request is at work."""
    scene.record_start(strike)
    connection = await scene.target.client.connect(raw=True)
    harm = FaultCommand(strike.fault.mode, strike.fault.amount)
    call = scene.adapter.build_request(strike.victim, make_payload(0, 0, FAULT_PAYLOAD_VALUES), harm)
    connection.write(scene.target.client.encode(call))
    await asyncio.sleep(strike.fault.amount / 2)
    connection.close()
    return ""


async def slow_client(scene: FaultContext, strike: PlannedFault) -> str:
    """A client that sends its head a few bytes at a time, and leaves before the body."""
    scene.record_start(strike)
    path = scene.adapter.build_request(
        next(iter(scene.target.models)), make_payload(0, 0, FAULT_PAYLOAD_VALUES), None
    ).path
    connection = await scene.target.client.connect(raw=True)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{{".encode()
    for at in range(0, len(head), 8):
        if not connection.is_open:
            break
        connection.write(head[at : at + 8])
        await asyncio.sleep(SLOW_S)
    connection.close()
    return ""


async def garbage(scene: FaultContext, strike: PlannedFault) -> str:
    """Bytes that are no HTTP, or HTTP that lies."""
    scene.record_start(strike)
    for each in GARBAGE:
        with contextlib.suppress(ConnectionReset, ConnectionRefused):
            connection = await scene.target.client.connect(raw=True)
            connection.write(each)
            await asyncio.sleep(SLOW_S)
            connection.close()
    return ""


_BY_NAME: Final[Mapping[str, Injector]] = {
    each.__name__: each
    for each in (
        kill_idle, kill_busy, stop_worker, freeze_worker, kill_brain, stop_brain, kill_gateway, stop_gateway,
        kill_keeper, poison, reload, unload_load, leave, slow_client, garbage,
    )
} | dict.fromkeys(("load_raises", "load_crashes", "load_hangs"), load_bad_revision)  # fmt: skip


def injector_of(strike: PlannedFault) -> Injector:
    """What brings this fault about."""
    return _BY_NAME.get(strike.fault.name, by_request)


async def inject(scene: FaultContext, strike: PlannedFault) -> None:
    """Bring it about, wait until its victim serves again, and write down when it began and when that was over."""
    before = scene.workers.pid(strike.victim)
    if strike.fault.causes and scene.target.runtime_dir and not before:
        scene.record_start(strike, done=False, note=NO_WORKER)
        return
    try:
        async with asyncio.timeout(FAULT_LIMIT_S):
            note = await _inject(scene, strike, before)
    except (ConnectionReset, ConnectionRefused) as error:  # the door is closed for a moment: a gateway is coming back
        note = f"not done: {error or type(error).__name__}"
    except TimeoutError:
        note = f"not over within {FAULT_LIMIT_S:g} s"
    scene.history.add(FaultFinished(scene.history.now(), strike.number, note))


async def _inject(scene: FaultContext, strike: PlannedFault, before: int) -> str:
    """The deed, its victim's return, and what is done afterwards; `before`: the process that it is done to."""
    note = await injector_of(strike)(scene, strike)
    if strike.fault.causes and strike.fault.must_kill and before and note != NO_WORKER:
        await scene.workers.wait_replaced(strike.victim, before, RECOVERY_LIMIT_S)
    if strike.reload_after and scene.target.repository is not None:
        await _load_next_revision(scene, strike.victim)  # what it died of is forgotten
    return note


async def _load_next_revision(scene: FaultContext, model: str) -> str:
    """Another edition, and from its load on no other."""
    revision = _write_next_revision(scene, model)
    note = await _load_model(scene, model)
    if note == LOADED:
        scene.history.add(RevisionInForce(scene.history.now(), model, revision))
    return note


def _signal_worker(scene: FaultContext, strike: PlannedFault, number: signal.Signals) -> str:
    # Written down first: the death may be heard before this function ends.
    scene.record_start(strike)
    return "" if scene.workers.send_signal(strike.victim, number) else NO_WORKER


async def _signal_controller(scene: FaultContext, strike: PlannedFault, number: signal.Signals) -> str:
    pid = (await scene.target.status())["brain"]["pid"]
    _send_signal(scene, strike, pid, number)
    await _wait_for_status(scene, lambda status: status["brain"]["pid"] != pid)
    return ""


async def _signal_gateway(scene: FaultContext, strike: PlannedFault, number: signal.Signals) -> str:
    pids = [each["pid"] for each in (await scene.target.status())["gateways"] if each["pid"]]
    if not pids:
        scene.record_start(strike, done=False)
        return "no gateway is up"
    _send_signal(scene, strike, pids[0], number)
    await _wait_for_status(scene, lambda status: pids[0] not in [each["pid"] or pids[0] for each in status["gateways"]])
    await _wait_until_live(scene)
    return ""


def _send_signal(scene: FaultContext, strike: PlannedFault, pid: int, number: signal.Signals) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        scene.record_start(strike, done=False)
        return
    scene.record_start(strike)
    signal.pidfd_send_signal(pidfd, number)
    os.close(pidfd)


async def _wait_for_status(scene: FaultContext, is_over: Callable[[Json], bool]) -> None:
    """Returns when the status says so; asks again whenever a brain dies over the question."""
    for _ in range(MAX_ATTEMPTS):
        with contextlib.suppress(control_client.NoServer, control_client.ServerRefused):
            if is_over(await scene.target.status()):
                return
        await asyncio.sleep(RETRY_S)


async def _wait_until_live(scene: FaultContext) -> None:
    for _ in range(MAX_ATTEMPTS):
        if (await scene.target.call("/v2/health/live", "GET")).status == 200:
            return
        await asyncio.sleep(RETRY_S)


async def _load_model(scene: FaultContext, model: str) -> str:
    """Load it, again if the process that was to answer went away meanwhile."""
    status = 0
    for _ in range(MAX_ATTEMPTS):
        status = (await scene.target.load(model)).status
        if status == 200:
            break
        await asyncio.sleep(RETRY_S)
    return f"load {status}"


def _write_next_revision(scene: FaultContext, model: str) -> int:
    """Another edition in the repository; its number."""
    repository = scene.target.repository
    assert repository is not None, "planned only where the models' files are ours"
    scene.revisions[model] = revision = scene.revisions.get(model, 1) + 1
    write_model(repository, model, scene.target.models[model], revision=revision)
    return revision


def find_freezer(pid: int) -> tuple[Path, str, str] | None:
    """The file that freezes this process's group, with the words for on and off; None if there is none of mmsup's."""
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
