"""What a server is asked to do while one point of it fails: each operation with what must be so before it.

An operation ends in exactly one outcome for whoever asked: right, an error that says what it is, or, where a gateway
or the keeper died, a connection that was cut. Anything else fails here.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from engines.build import write_fault_model, write_identity_onnx
from harness.failpoint_file import FailpointFile
from harness.server import Http, Server, eventually
from mmsup.supervisor.cli.control_client import ServerRefused

VICTIM = "victim"
BYSTANDER = "bystander"
HANG_LIMIT_S = 0.5
LARGE = 20_000
"""Elements of an FP32 tensor that needs shared memory."""
ANSWER_S = 60.0
FILED_S = 1.0
"""Within which a death is written down, unless whoever would have done so is dead."""


@dataclass(frozen=True)
class Outcome:
    """What whoever asked got. `cut`: no answer at all."""

    text: str
    right: bool = False
    cut: bool = False


@dataclass
class Stage:
    """One server, with the range that its processes are armed by."""

    server: Server
    points: FailpointFile
    edition: int = 0

    def is_wanted(self) -> bool:
        """Whether the victim is wanted, as it stands on the disk; nothing there is the rule, which does not want it."""
        try:
            text = (self.server.state_dir / "wanted.json").read_text()
        except FileNotFoundError:
            return False
        models = json.loads(text)["models"]
        return VICTIM in models and models[VICTIM]["up"] is True

    def is_up(self) -> bool:
        return bool(self.server.model(VICTIM)["state"] == "ready")

    def is_down(self) -> bool:
        return not self.server.model(VICTIM)["instances"]

    def write(self) -> None:
        """Another content of the victim."""
        self.edition += 1
        with (self.server.repository / VICTIM / "1" / "model.py").open("a") as file:
            file.write(f"EDITION = {self.edition}\n")

    def up(self) -> None:
        self.server.ctl("load", name=VICTIM)
        assert infer(self, 3).right

    def down(self) -> None:
        self.server.ctl("unload", name=VICTIM)
        eventually(self.is_down, "the victim is down")


@dataclass(frozen=True)
class Operation:
    """Something that is asked of a server. `prepare` comes before the order, `run` after it."""

    name: str
    prepare: Callable[[Stage], None]
    run: Callable[[Stage], Outcome]
    wanted_after: bool | None = None
    """What it asks for: the victim up, or down; None: neither."""
    cuts: bool = False
    """It ends the gateway, and with it everybody's connections."""
    renews: bool = False
    """All processes are followed by others."""
    survives: tuple[str, ...] = ()
    """Roles: its outcome is right even if one of these dies."""


def call(stage: Stage, method: str, path: str, body: object, is_right: Callable[[Any], bool]) -> Outcome:
    """One call over HTTP."""
    client = Http(stage.server.address(), ANSWER_S)
    try:
        status, reply = client.json(method, path, body)
    except (ConnectionResetError, BrokenPipeError, HTTPException) as error:
        return Outcome(repr(error), cut=True)
    finally:
        client.close()
    if status == 200:
        assert is_right(reply), f"wrong bytes: {str(reply)[:200]}"
        return Outcome("200", right=True)
    assert 400 <= status < 600, f"{status} is no outcome"
    assert reply["error"], f"no words with {status}: {reply}"
    assert reply["code"], f"no code with {status}: {reply}"
    for inside in (str(stage.server.root), "Traceback", "pid"):
        assert inside not in reply["error"], f"what is inside gets out: {reply}"
    return Outcome(f"{status} {reply['code']}: {reply['error']}")


def infer(stage: Stage, elements: int, mode: str = "ok") -> Outcome:
    row = [float(each % 97) for each in range(elements)]
    inputs = [{"name": "x", "datatype": "FP32", "shape": [elements], "data": row}]
    body = {"inputs": [*inputs, {"name": "mode", "datatype": "BYTES", "shape": [1], "data": [mode]}]}

    def is_right(reply: Any) -> bool:
        return {"y": row} == {each["name"]: each["data"] for each in reply["outputs"] if each["name"] == "y"}

    return call(stage, "POST", f"/v2/models/{VICTIM}/infer", body, is_right)


def repository_verb(stage: Stage, verb: str) -> Outcome:
    return call(stage, "POST", f"/v2/repository/models/{VICTIM}/{verb}", {}, lambda _: True)


def reload(stage: Stage) -> Outcome:
    stage.write()
    return repository_verb(stage, "load")


def hang(stage: Stage) -> Outcome:
    """A worker that stops: condemned, killed, replaced; what it had not begun goes to the next one."""
    os.kill(stage.server.pid(VICTIM), signal.SIGSTOP)
    return infer(stage, 3)


def crash(stage: Stage) -> Outcome:
    """A worker that dies while it is idle, and whose death is written down."""
    before = len(bundles(stage))
    os.kill(stage.server.pid(VICTIM), signal.SIGKILL)
    outcome = infer(stage, 3)
    with contextlib.suppress(AssertionError):
        eventually(lambda: len(bundles(stage)) > before, "the death is written down", FILED_S)
    return outcome


def bundles(stage: Stage) -> list[str]:
    """Those of the victim's deaths that were written or lost."""
    events = stage.server.events(model=VICTIM)
    return [each["event"] for each in events if each["event"] in ("bundle_written", "bundle_lost")]


def poison(stage: Stage) -> Outcome:
    """A request that ends its worker, twice; then it is refused, until that is forgotten."""
    for _ in range(2):
        outcome = infer(stage, 3, "abort")
        assert not outcome.right
    refused = infer(stage, 3, "abort")
    try:
        stage.server.ctl("quarantine_clear", model=VICTIM)
    except ServerRefused:  # its brain died before it had answered: whoever wants it asks again
        stage.server.ctl("quarantine_clear", model=VICTIM)
    return Outcome(refused.text, right="request_quarantined" in refused.text, cut=outcome.cut or refused.cut)


def restart_controller(stage: Stage) -> Outcome:
    """Another brain takes over."""
    old = stage.server.status()["brain"]["pid"]
    os.kill(old, signal.SIGKILL)
    eventually(lambda: stage.server.status()["brain"]["pid"] != old, "another brain")
    return Outcome("another brain", right=True)


def restart_gateway(stage: Stage) -> Outcome:
    """Another gateway serves on the same socket."""
    (old,) = [each["pid"] for each in stage.server.status()["gateways"]]
    os.kill(old, signal.SIGKILL)
    return infer(stage, 3)


def upgrade(stage: Stage) -> Outcome:
    """Every process is followed by another one, and the keeper by another program."""
    try:
        result = stage.server.ctl("upgrade", ticket=secrets.token_hex(8), force=True)
    except ServerRefused as refused:
        return Outcome(f"{refused.code}: {refused.text}")
    return Outcome(f"upgraded: {result}", right=True)


def nothing(_: Stage) -> None:
    """The victim is down."""


OPERATIONS = (
    Operation("load", nothing, lambda stage: repository_verb(stage, "load"), wanted_after=True),
    Operation("infer", Stage.up, lambda stage: infer(stage, 3)),
    Operation("infer with shared memory", Stage.up, lambda stage: infer(stage, LARGE)),
    Operation("unload", Stage.up, lambda stage: repository_verb(stage, "unload"), wanted_after=False),
    Operation("reload", Stage.up, reload, wanted_after=True),
    Operation("hang", Stage.up, hang),
    Operation("crash", Stage.up, crash),
    Operation("poison", Stage.up, poison, survives=("brain",)),
    Operation("another brain", Stage.up, restart_controller),
    Operation("another gateway", Stage.up, restart_gateway, cuts=True),
    Operation("upgrade", Stage.up, upgrade, renews=True, survives=("brain", "gateway")),
)
"""Those that leave the server running; start and stop are operations of their own kind."""


def repository(folder: Path) -> Path:
    """Bystander and victim."""
    folder.mkdir(exist_ok=True)
    write_identity_onnx(folder, BYSTANDER)
    write_fault_model(folder, VICTIM, hang_limit=f"{HANG_LIMIT_S}s")
    return folder
