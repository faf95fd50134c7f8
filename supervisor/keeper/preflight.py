"""The code on disk, tried in a child before the keeper or a brain becomes it.

The child is started as the next keeper would be, reads what that one would be handed, compiles every file of the
package, imports a brain and lets it read what the present one remembers. It touches nothing. It says in one line what
it is, or why it cannot take over; what it does not say (a crash, silence) is a no as well.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
from dataclasses import dataclass
from typing import Any, Final

import mmsup
from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.messages.keeper_control import Exited, Spawn
from mmsup.ipc.transport.control_channel import close_all
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper import build_id, reexec
from mmsup.supervisor.keeper.reexec import ESTATE, Estate
from mmsup.supervisor.keeper.spawn import start, verdict

REHEARSE: Final = "rehearse"
LIMIT_S: Final = 60.0
"""Importing a brain takes under a second; on a cold, busy disk much longer."""
SAID_BYTES: Final = 64 << 10
_NEEDS_RESTART: Final = "a restart is needed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rehearsal came to. `fault` empty: the code can take over, and `code` is its keeper's digest."""

    fault: str = ""
    code: str = ""


class Rehearsal:
    """The child, for the keeper, from its fork until it was reaped and `outcome` was asked."""

    def __init__(self, estate: Estate, *, force: bool, now_s: float) -> None:
        """Start it; OSError if there can be no process now. `force`: kept for whoever asks later."""
        self.force = force
        self.until_s = now_s + LIMIT_S
        with contextlib.ExitStack() as failed, contextlib.ExitStack() as theirs:
            memory = reexec.write(estate)
            theirs.callback(os.close, memory)
            faultpoint("keeper.trial_pipe")
            self._said, end = os.pipe2(os.O_CLOEXEC)
            failed.callback(os.close, self._said)
            theirs.callback(os.close, end)
            os.set_blocking(self._said, False)
            self._process = start(_spawn(), {ESTATE: memory}, end)
            failed.pop_all()
        faultpoint("keeper.trial_begun")

    @property
    def pid(self) -> int:
        """Its process, the keeper's to reap."""
        return self._process.pid

    def close(self) -> None:
        """Nobody wants to know any more; it is reaped as an orphan is."""
        self.kill()
        close_all([self._said, self._process.doubt, self._process.pidfd])

    def kill(self) -> None:
        """It took too long; its death comes as any other."""
        self.until_s = float("inf")
        signal.pidfd_send_signal(self._process.pidfd, signal.SIGKILL)

    def outcome(self, ended: Exited) -> Outcome:
        """After its death, once: what it came to."""
        not_run = verdict(self._process.doubt)
        said = _last_words(self._said)
        close_all([self._said, self._process.doubt, self._process.pidfd])
        if not_run:
            return Outcome(not_run)
        if ended.signal:
            return Outcome(f"its trial start was ended by signal {ended.signal}, after {LIMIT_S:g} s at the latest")
        if ended.status:
            return Outcome(_reason(said) or f"its trial start ended with status {ended.status}")
        return _judged(said)


def perform(fd: int, code: str, *, with_brain: bool) -> int:
    """In the child: try, say, leave. `code`: the digest of what a keeper has loaded; `fd`: what it would be handed."""
    try:
        estate = reexec.read(fd)
        Settings.from_json(estate.settings)
        for path in build_id.files():
            compile(path.read_bytes(), path, "exec", dont_inherit=True)
        if with_brain:
            _try_brain(estate.remembered)
    except (WireError, ValueError, SyntaxError, ImportError, OSError) as error:
        print(f"{type(error).__name__}: {error}")  # noqa: T201 - its output is what the keeper reads
        return exit_codes.REFUSED
    print(json.dumps({"code": code, "wire": WIRE_VERSION, "version": mmsup.__version__}))  # noqa: T201 - as above
    return exit_codes.DONE


def _try_brain(remembered: str) -> None:
    importlib.import_module("mmsup.supervisor.controller")  # the libraries of a brain are no keeper's
    from_text = importlib.import_module("mmsup.supervisor.state.checkpoint").from_text
    if remembered and from_text(remembered) is None:
        raise WireError(f"it cannot read what the running brain remembers: {_NEEDS_RESTART}")


def _spawn() -> Spawn:
    return Spawn(
        token=REHEARSE,
        argv=tuple(reexec.command(REHEARSE)),
        env=dict(os.environ),
        cwd=".",
        procs_files=(),
        listeners=(),
        tallies=False,
        oom_score_adj=0,
        note="",
    )


def _judged(said: list[str]) -> Outcome:
    with contextlib.suppress(ValueError, LookupError, TypeError):
        told: Any = json.loads(said[-1])  # another version's words, checked here
        if told["wire"] != WIRE_VERSION:
            text = f"version {told['version']} speaks wire {told['wire']}, the running one {WIRE_VERSION}"
            return Outcome(f"{text}: {_NEEDS_RESTART}")
        return Outcome(code=str(told["code"]))
    return Outcome("its trial start did not say what it is")


def _last_words(fd: int) -> list[str]:
    with contextlib.suppress(BlockingIOError):
        return os.read(fd, SAID_BYTES).decode(errors="replace").split("\n")[:-1]
    return []


def _reason(said: list[str]) -> str:
    """The last line, and the place where Python found a fault of syntax."""
    lines = [each.strip() for each in said if each.strip()]
    place = next((each for each in reversed(lines) if each.startswith("File ")), "")
    last = lines[-1] if lines else ""
    return f"{last} ({place})" if place else last
