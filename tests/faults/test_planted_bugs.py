"""Bugs of each class, planted in a real server, are found by a chaos run; the same run without a bug finds nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engines.patched_python import python_with
from mmsup.supervisor.chaos.analysis.checker import Finding, check
from mmsup.supervisor.chaos.clients.protocol import V2Adapter
from mmsup.supervisor.chaos.observe.history import History
from mmsup.supervisor.chaos.plan.catalog import ModelRole, select_faults
from mmsup.supervisor.chaos.runner import ChaosOptions, run_local
from mmsup.supervisor.chaos.server import local_server

pytestmark = pytest.mark.slow
MODELS = {"good": ModelRole.HEALTHY, "bad": ModelRole.CRASHY, "new": ModelRole.CHANGING}
COMPOSED = {"calling_1": ModelRole.CALLING, "ensemble_1": ModelRole.ENSEMBLE, "called_1": ModelRole.CALLED}
"""Only where a step is to die."""

NOTHING = "def patch(module): pass"
LOST = """
def patch(module):
    take, seen = module.WorkerLink._on_reply, [0]
    def lossy(self, reply):
        seen[0] += 1
        if seen[0] % 150 != 0:
            take(self, reply)
    module.WorkerLink._on_reply = lossy
"""
CROSSED = """
def patch(module):
    from dataclasses import replace
    take, seen, kept = module.WorkerLink._on_reply, [0], {}
    def crossing(self, reply):
        seen[0] += 1
        if reply.code == "" and reply.needed_bytes == 0:
            if self not in kept and seen[0] % 60 == 0:
                kept[self] = reply
                return
            first = kept.get(self)
            if first is not None and first.signature == reply.signature:
                take(self, replace(first, id=reply.id))
                take(self, replace(reply, id=first.id))
                kept[self] = None
                return
        take(self, reply)
    module.WorkerLink._on_reply = crossing
"""
LEAKED = """
def patch(module):
    free, seen = module.ArenaSide.free, [0]
    def leaky(self, slot):
        seen[0] += 1
        if seen[0] % 20 != 0:
            free(self, slot)
    module.ArenaSide.free = leaky
"""
UNREAPED = """
def patch(module):
    import os
    collect = module.collect
    def with_a_child(*arguments):
        os.posix_spawn("/bin/true", ["true"], {})
        return collect(*arguments)
    module.collect = with_a_child
"""
FORGETFUL = """
def patch(module):
    find, seen = module.PoisonList.find, [0]  # a few times: a model that goes on dying is given up, and waited for
    def forgetful(self, fingerprint, now_s):
        case = find(self, fingerprint, now_s)
        seen[0] += case is not None and case.blocked
        return None if case is not None and case.blocked and 4 <= seen[0] < 8 else case
    module.PoisonList.find = forgetful
"""
STALE = """
def patch(module):
    stop_routing = module.LinkTable.stop_routing
    def only_when_closed(self, worker_id):
        link = self.by_worker.get(worker_id)
        if link is None or link.closed:
            stop_routing(self, worker_id)
    module.LinkTable.stop_routing = only_when_closed
"""
NAMELESS = """
def patch(module):
    step_error = module.step_error
    module.step_error = lambda ensemble, step, error: step_error(ensemble, "a step", error)
"""
LATE_STOP = """
def patch(module):
    import asyncio
    send_stop = module._send_stop
    def later(instance):
        asyncio.get_running_loop().call_later(0.5, module.for_this_worker(instance, send_stop))
    module._send_stop = later
"""
"""No bug: whoever sends requests to a worker that was replaced has time for it."""


def run(python: str, faults: str) -> list[Finding]:
    """What is found in nine seconds of this server."""
    models = MODELS | (COMPOSED if "kill_step" in faults else {})
    options = ChaosOptions(
        3, 9.0, (1.0, 1.5), 30.0, select_faults(faults), models, cooldown_s=3.0, settle_s=3.0, request_timeout_s=4.0
    )
    adapter = V2Adapter(
        has_batch_axis=local_server.has_batch_axis,
        is_streamed=local_server.is_streamed,
        is_ensemble=local_server.is_ensemble,
    )
    history = History()
    asyncio.run(run_local(options, adapter, history, lambda _: None, python))
    return check(history.records)


WORKER_LINK, LINK_TABLE = "mmsup.gateway.dispatch.worker_link", "mmsup.gateway.dispatch.link_table"
BUGS = {
    "a lost reply": (WORKER_LINK, LOST, "segv", "outcome", "got no reply"),
    "a crossed reply": (WORKER_LINK, CROSSED, "leave", "crossed", "got the bytes of request"),
    "a leaked slot": ("mmsup.ipc.memory.arena", LEAKED, "segv", "left", "bytes of slots in use"),
    "an unreaped child": (
        *("mmsup.supervisor.instances.worker_exit", UNREAPED, "segv"),
        *("left", "children were not reaped"),
    ),
    "a forgotten verdict": ("mmsup.ipc.poison_policy", FORGETFUL, "poison", "poison", "had been refused, and then"),
    "a nameless step": ("mmsup.gateway.composition.ensemble_run", NAMELESS, "kill_step", "harm", "not name called_1"),
    "a stale route": (LINK_TABLE, STALE, "reload", "stale", "had replaced it"),
}
"""Module, patch, faults that show it, rule and words of the finding."""


@pytest.mark.parametrize(
    "names",
    [
        ("a lost reply", "an unreaped child"),
        ("a crossed reply",),
        ("a leaked slot", "a forgotten verdict"),
        ("a stale route", "a nameless step"),
    ],
    ids=" and ".join,
)
def test_planted_bugs_are_found(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Two at once where neither could pass for the other."""
    bugs = [BUGS[name] for name in names]
    plants = {module: plant for module, plant, *_ in bugs}
    if "a stale route" in names:
        plants["mmsup.supervisor.instances.actions"] = LATE_STOP
    python = python_with(tmp_path / "python", plants)
    findings = run(python, ",".join(sorted({faults for _, _, faults, _, _ in bugs})))
    for *_, rule, text in bugs:
        assert any(each.rule == rule and text in each.text for each in findings), [str(each) for each in findings]


def test_where_nothing_is_planted_nothing_is_found(tmp_path: Path) -> None:
    plants = {WORKER_LINK: NOTHING, "mmsup.supervisor.instances.actions": LATE_STOP}
    findings = run(python_with(tmp_path / "python", plants), "segv,reload,leave,poison")
    assert findings == [], [str(each) for each in findings]
