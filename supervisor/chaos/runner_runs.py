"""Whole runs: against a server of our own, and against one that somebody else started."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable

from mmsup.ipc import exit_codes
from mmsup.supervisor.chaos.clients.load import Clients
from mmsup.supervisor.chaos.clients.protocol import Driver
from mmsup.supervisor.chaos.observe import leak_check
from mmsup.supervisor.chaos.observe.history import Began, History, Left
from mmsup.supervisor.chaos.runner import Course, Run
from mmsup.supervisor.chaos.server import local_server
from mmsup.supervisor.chaos.server.host_info import machine
from mmsup.supervisor.chaos.server.target import Target

Progress = Callable[[str], None]


async def against_own(
    course: Course, driver: Driver, history: History, progress: Progress, python: str = sys.executable
) -> None:
    """Start a server with `course.models`, hurt it, end it, look what is left. `python`: what it runs on."""
    strays: list[int] = []
    async with local_server.running(course.models, strays.append, python) as (server, target):
        await against(target, strays, course, driver, history, progress)
        family = leak_check.family_of(server.manager.pid)
        folders = leak_check.cgroup_folders(family)
        code = await server.stop()
        found = leak_check.gone(family, folders)
        left = {"cgroups": sum(each.exists() for each in folders)}
        if code != exit_codes.DONE:
            found.append(f"the server ended with {code}")
        history.add(Left(history.now(), "after the end", found, left))


async def against(
    target: Target, strays: list[int], course: Course, driver: Driver, history: History, progress: Progress
) -> None:  # a run needs whom, what, how, and where to write it down
    """Hurt a running server. `strays`: where its doors write down replies that nobody asked for."""
    clients = Clients(target.door, driver, history, target.models, course.patience_s)
    title = Began(
        course.seed,
        course.seconds,
        {name: role.value for name, role in target.models.items()},
        machine(),
        target.title,
        shlex.join(["mmsup", *sys.argv[1:]]),
        own_codes=bool(target.runtime_dir),
    )
    try:
        await Run(target, driver, clients, history, course, title, progress)()
    finally:
        target.door.close()
        for number in strays:
            clients.stray(number)
