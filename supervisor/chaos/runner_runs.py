"""Whole runs: against a server of our own, and against one that somebody else started."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable

from mmsup.ipc import exit_codes
from mmsup.supervisor.chaos.clients.load import LoadGenerator
from mmsup.supervisor.chaos.clients.protocol import ProtocolAdapter
from mmsup.supervisor.chaos.observe import leak_check
from mmsup.supervisor.chaos.observe.history import History, LeakReport, RunStarted
from mmsup.supervisor.chaos.runner import ChaosOptions, ChaosRun
from mmsup.supervisor.chaos.server import local_server
from mmsup.supervisor.chaos.server.host_info import describe_host
from mmsup.supervisor.chaos.server.target import Target

Progress = Callable[[str], None]


async def run_local(
    options: ChaosOptions, adapter: ProtocolAdapter, history: History, progress: Progress, python: str = sys.executable
) -> None:
    """Start a server with `course.models`, hurt it, end it, look what is left. `python`: what it runs on."""
    strays: list[int] = []
    async with local_server.running_server(options.models, strays.append, python) as (server, target):
        await run_against(target, strays, options, adapter, history, progress)
        family = leak_check.process_tree(server.manager.pid)
        folders = leak_check.cgroup_directories(family)
        code = await server.stop()
        found = leak_check.survivors(family, folders)
        left = {"cgroups": sum(each.exists() for each in folders)}
        if code != exit_codes.SUCCESS:
            found.append(f"the server ended with {code}")
        history.add(LeakReport(history.now(), "after the end", found, left))


async def run_against(
    target: Target,
    unexpected: list[int],
    options: ChaosOptions,
    adapter: ProtocolAdapter,
    history: History,
    progress: Progress,
) -> None:  # a run needs whom, what, how, and where to write it down
    """Hurt a running server. `strays`: where its doors write down replies that nobody asked for."""
    clients = LoadGenerator(target.client, adapter, history, target.models, options.request_timeout_s)
    title = RunStarted(
        options.seed,
        options.seconds,
        {name: role.value for name, role in target.models.items()},
        describe_host(),
        target.title,
        shlex.join(["mmsup", *sys.argv[1:]]),
        own_codes=bool(target.runtime_dir),
    )
    try:
        await ChaosRun(target, adapter, clients, history, options, title, progress)()
    finally:
        target.client.close()
        for number in unexpected:
            clients.on_unexpected_reply(number)
