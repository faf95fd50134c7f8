"""The pool without processes: the keeper is a list of what it was sent."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmsup.ipc import exit_codes
from mmsup.ipc.memory.status_page import make_status_page
from mmsup.ipc.messages.keeper_control import ChildExited, ForgetChild, SignalChild, Spawn
from mmsup.ipc.messages.zygote_control import ZygoteReady
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.transport.codec import encode
from mmsup.supervisor.linux.cgroup import Cgroup
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.observability.model_output import ModelOutput
from mmsup.supervisor.processes.launch_spec import LaunchEnvironment, StartMethod, parse_token
from mmsup.supervisor.zygotes import pool as pool_file
from mmsup.supervisor.zygotes.launcher import PoolContext
from mmsup.supervisor.zygotes.pool import MOST_ZYGOTES, ZygotePool


def spec(name: str = "m", engine: str = "custom", **fields: object) -> ModelSpec:
    return ModelSpec(name, "1", "/m/1", "model.py", engine, "python", **fields)  # type: ignore[arg-type]  # fields by name


class Rig:
    def __init__(self, folder: Path, mode: str = "auto", generation: int = 1) -> None:
        self.sent: list[Any] = []  # messages to the keeper
        self.specs: list[ModelSpec] = []
        self.forked: list[ModelSpec] = []
        self.log = EventLog(folder / "events")
        groups: Any = SimpleNamespace(create=lambda *_: Cgroup(()), group=lambda _: Cgroup(()), idle=None)
        cleanup: Any = SimpleNamespace(add=lambda *_: None)
        environment = LaunchEnvironment({}, str(folder), str(folder), 2)
        output = ModelOutput(folder / "output")
        self.pool = ZygotePool(
            PoolContext(
                self.sent.append, environment, groups, cleanup, self.log, output, mode, generation, lambda: False
            ),
            lambda: self.specs,
            lambda: self.forked,
        )
        self._ends: list[socket.socket] = []

    def spawned(self) -> list[Spawn]:
        return [each for each in self.sent if isinstance(each, Spawn)]

    async def come_up(self, spawn: Spawn, *, ready: bool = True) -> None:
        """The keeper has started it, and it has imported everything."""
        parsed = parse_token(spawn.token)
        assert parsed is not None
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ends.append(far)
        pipes = [os.pipe() for _ in range(2)]
        for _, write in pipes:
            os.close(write)
        descriptors = [os.pidfd_open(os.getpid()), near.detach(), make_status_page(), *(read for read, _ in pipes)]
        self.pool.on_started(parsed[1], parsed[2], 7, spawn.note, descriptors)
        assert b"ConfigureZygote" in far.recv(4096)
        if ready:
            is_there = asyncio.Event()
            stop = self.log.subscribe(lambda _: is_there.set())
            far.send(encode(ZygoteReady(5, 0.5)))
            await asyncio.wait_for(is_there.wait(), 20)
            stop()

    def end(self, spawn: Spawn, status: int = 0, number: int = 0) -> None:
        parsed = parse_token(spawn.token)
        assert parsed is not None
        self.pool.on_exited(parsed[1], parsed[2], ChildExited(spawn.token, 7, status, number))

    def close(self) -> None:
        self.pool.close()
        self.log.close()
        for each in self._ends:
            each.close()


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test in an event loop of its own."""

    @functools.wraps(test)
    def in_loop(*arguments: Any, **fixtures: Any) -> None:  # fixtures of any type
        asyncio.run(test(*arguments, **fixtures))

    return in_loop


@run
async def test_a_zygote_for_which_there_is_no_room_is_not_started_and_asking_for_room_does_not_ask_again(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    asked: list[str] = []

    def make_room(engine_set: str) -> bool:
        asked.append(engine_set)
        return rig.pool.choose(spec("a"), may_wait=True).waits  # as the need of a load that is booked asks

    rig.pool.make_room = make_room
    rig.specs = [spec("a"), spec("b")]
    rig.pool.open()
    chosen = rig.pool.choose(spec("b"), may_wait=True)
    assert chosen.text == "exec: there is no zygote for numpy: the memory budget has no room for it"
    assert not rig.spawned()
    assert asked == ["numpy"]
    rig.close()


@run
async def test_the_second_worker_starts_a_zygote_and_waits_for_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.pool.open()
    rig.specs = [spec("a")]
    assert (
        rig.pool.choose(spec("a"), may_wait=True).text == "exec: a zygote for numpy is kept from the second worker on"
    )
    assert not rig.spawned()
    rig.specs.append(spec("b"))
    again = rig.pool.choose(spec("b"), may_wait=False)
    assert again.text == "exec: the zygote for numpy is not ready yet, and callers may wait"
    (spawn,) = rig.spawned()
    assert rig.pool.choose(spec("b"), may_wait=True) == StartMethod(
        spawn.token, "of zygote 1, which imports numpy", waits=True
    )
    assert spawn.is_zygote
    await rig.come_up(spawn)
    rig.specs.append(spec("c"))
    assert rig.pool.choose(spec("c"), may_wait=True).zygote == spawn.token
    assert rig.spawned() == [spawn]
    rig.close()


@run
async def test_without_zygotes_none_is_started(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "none")
    rig.pool.open()
    rig.specs = [spec("a")] * 9
    assert rig.pool.choose(spec("a"), may_wait=True).text == "exec: the server's option zygotes is none"
    assert not rig.sent
    rig.close()


@run
async def test_before_the_children_of_an_earlier_controller_are_known_none_is_started(tmp_path: Path) -> None:
    rig = Rig(tmp_path, generation=2)
    rig.specs = [spec("a"), spec("b")]
    rig.pool.update()
    assert not rig.sent
    note = '{"interpreter": "/usr/bin/other", "engine_set": "torch"}'
    await rig.come_up(Spawn("zygote.4.1", (), {}, "/", (), (), counter_tables=False, oom_score_adj=0, note=note))
    rig.pool.open()
    assert [each.token for each in rig.spawned()] == ["zygote.5.2"], "its number is no other one's"
    other = spec("c", python="/usr/bin/other", preload="torch")
    assert rig.pool.choose(other, may_wait=True).zygote == "zygote.4.1"
    rig.close()


@run
async def test_a_class_is_forked_next_time_of_what_it_had_imported(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "eager")
    rig.pool.open()
    rig.specs = [spec("a")]
    rig.pool.learn(spec("a"), ("numpy", "torch"), is_forked=False)
    rig.pool.learn(spec("b", "ort"), ("numpy", "onnxruntime", "torch"), is_forked=False)
    assert "torch" in rig.pool.choose(spec("a"), may_wait=True).reason
    assert "onnxruntime" in rig.pool.choose(spec("b", "ort"), may_wait=True).reason
    rig.close()


@run
async def test_one_that_exits_is_started_again_after_a_pause_and_an_outdated_one_at_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "eager")
    rig.pool.open()
    (first,) = rig.spawned()
    await rig.come_up(first)
    rig.end(first, exit_codes.ZYGOTE_OUTDATED)
    assert ForgetChild(first.token) in rig.sent
    rig.pool.update()
    second = rig.spawned()[-1]
    assert second.token != first.token
    rig.end(second, 1)
    rig.pool.update()
    assert rig.spawned()[-1] is second, "it waits"
    assert (
        rig.pool.choose(spec("a"), may_wait=True).text == "exec: there is no zygote for numpy: it exited with status 1"
    )
    events = [each for each in rig.log.last() if each["event"] == "zygote_exit"]
    assert [each["next_delay_s"] > 0 for each in events] == [False, True]
    rig.close()


@run
async def test_after_some_that_fork_nothing_the_next_is_tried_much_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(pool_file, "time", SimpleNamespace(monotonic=lambda: now_s))
    rig = Rig(tmp_path, "eager")
    rig.pool.open()

    async def refuse() -> None:
        """One comes up, is asked by two workers, forks neither and exits."""
        nonlocal now_s
        spawn = rig.spawned()[-1]
        await rig.come_up(spawn)
        rig.pool.refused(spec("a"))
        rig.end(spawn, exit_codes.ZYGOTE_UNFIT)
        rig.pool.refused(spec("b"))
        now_s += 100.0  # longer than its pause
        rig.pool.update()

    for _ in range(2):
        await refuse()
    rig.pool.learn(spec("c"), ("numpy",), is_forked=True)  # one has forked
    for _ in range(3):
        await refuse()
    assert len(rig.spawned()) == 5, "none follows"
    text = "it could not fork safely; 3 in a row have forked none, so the next is tried in 10 minutes"
    assert rig.pool.choose(spec("a"), may_wait=True).text == f"exec: there is no zygote for numpy: {text}"
    assert text in rig.log.last()[-1]["text"]
    now_s += 600.0
    rig.pool.update()
    assert len(rig.spawned()) == 6
    await refuse()
    assert len(rig.spawned()) == 6
    rig.close()


@run
async def test_one_that_nobody_wants_is_ended_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    rig.pool.open()
    rig.specs = [spec("a"), spec("b")]
    rig.pool.update()
    (spawn,) = rig.spawned()
    await rig.come_up(spawn)
    rig.specs = [spec("a")]
    rig.pool.update()
    assert not [each for each in rig.sent if isinstance(each, SignalChild)]
    monkeypatch.setattr(pool_file, "UNUSED_S", 0.0)
    rig.forked = [spec("a")]
    rig.pool.update()
    rig.pool.update()
    assert not [each for each in rig.sent if isinstance(each, SignalChild)], (
        "its worker holds the pages that they share"
    )
    rig.forked = []
    rig.pool.update()
    rig.pool.update()
    assert [each.token for each in rig.sent if isinstance(each, SignalChild)] == [spawn.token]
    rig.end(spawn, number=9)
    assert not rig.pool.rows()
    assert [each["event"] for each in rig.log.last()] == ["zygote_ready", "zygote_end"]
    rig.close()


@run
async def test_after_an_upgrade_those_of_earlier_controllers_end_and_others_follow(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "eager", generation=2)
    old = Rig(tmp_path, "eager")
    old.pool.open()
    (spawn,) = old.spawned()
    await rig.come_up(spawn)
    rig.pool.open()
    assert not rig.spawned()
    rig.pool.renew()
    assert [each.token for each in rig.sent if isinstance(each, SignalChild)] == [spawn.token]
    assert [each.token for each in rig.spawned()] == ["zygote.2.2"]
    rig.close()
    old.close()


@run
async def test_their_number_is_bounded(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.pool.open()
    rig.specs = [spec(str(number), python=f"/opt/{number // 2}/python") for number in range(3 * MOST_ZYGOTES)]
    rig.pool.update()
    assert len(rig.spawned()) == MOST_ZYGOTES
    rig.close()
