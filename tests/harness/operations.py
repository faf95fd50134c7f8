"""The operations that a server performs while one failpoint fires, each with its preparation.

The caller gets exactly one outcome: a correct result, an error with a code, or, where a gateway or the keeper died, a
connection that was cut. Anything else fails here.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from engines.build import write_fault_model, write_identity_onnx
from harness.failpoint_file import FailpointFile
from harness.known_traffic import answer_of, request_body
from harness.server import Http, Server, eventually
from mmsup.supervisor.cli.ctl.control_client import ServerRefused

VICTIM = "victim"
GROUP = ("member", "beside")
"""Models that share a process."""
BREAKER = "breaker"
"""One of their group whose load ends it."""
MOVER = "mover"
"""One that sleeps in host memory."""
BYSTANDER = "bystander"
HANG_LIMIT_S = 0.5
LARGE = 20_000
"""Elements of an FP32 tensor that needs shared memory."""
ANSWER_S = 60.0
FILED_S = 1.0
"""Within which a crash report is written, unless the controller has died."""


@dataclass(frozen=True)
class Outcome:
    """The result that the caller got. `cut`: the connection ended without an answer."""

    text: str
    right: bool = False
    cut: bool = False


@dataclass
class Stage:
    """One server and the failpoint file of its processes."""

    server: Server
    points: FailpointFile
    edition: int = 0
    models: tuple[str, ...] = (VICTIM,)
    """Of the operation; the first one is its victim."""

    @property
    def victim(self) -> str:
        return self.models[0]

    def is_wanted(self, model: str = "") -> bool:
        """Whether the desired state on the disk has a model loaded, the victim; without a file it has not."""
        try:
            text = (self.server.state_dir / "wanted.json").read_text()
        except FileNotFoundError:
            return False
        models = json.loads(text)["models"]
        name = model or self.victim
        return name in models and models[name]["up"] is True

    def is_as_wanted(self, model: str) -> bool:
        found = self.server.model(model)
        return found["state"] in ("ready", "asleep") if self.is_wanted(model) else not found["instances"]

    def write(self) -> None:
        """Change the code of the victim."""
        self.edition += 1
        with (self.server.repository / self.victim / "1" / "model.py").open("a") as file:
            file.write(f"EDITION = {self.edition}\n")

    def up(self) -> None:
        self.server.ctl("load", name=self.victim)
        assert infer(self, 3).right

    def all_up(self) -> None:
        for model in self.models:
            self.server.ctl("load", name=model)
            assert infer(self, 3, model=model).right

    def down(self) -> None:
        for model in self.models:
            self.server.ctl("unload", name=model)
        eventually(lambda: all(map(self.is_as_wanted, self.models)), f"{self.models} are down")


@dataclass(frozen=True)
class Operation:
    """`prepare` runs before the failure is ordered, `run` after it."""

    name: str
    prepare: Callable[[Stage], None]
    run: Callable[[Stage], Outcome]
    wanted_after: bool | None = None
    """The desired state that it sets: victim loaded, unloaded, or None."""
    cuts: bool = False
    """It ends the gateway and so cuts all connections."""
    renews: bool = False
    """It replaces every process."""
    survives: tuple[str, ...] = ()
    """Roles whose death must not change its outcome."""
    models: tuple[str, ...] = (VICTIM,)
    """Those that it is about; the first one is its victim."""


DONE = Outcome("200", right=True)


def call(stage: Stage, method: str, path: str, body: object, is_right: Callable[[Any], bool]) -> Outcome:
    """One call over HTTP."""
    return exchange(stage, lambda client: client.json(method, path, body), is_right)


def exchange(stage: Stage, send: Callable[[Http], tuple[int, Any]], is_right: Callable[[Any], bool]) -> Outcome:
    """Send something on a new connection: `send` returns the status and the answer, decoded."""
    client = Http(stage.server.address(), ANSWER_S)
    try:
        status, reply = send(client)
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


def infer(stage: Stage, elements: int, mode: str = "ok", model: str = "") -> Outcome:
    row = [float(each % 97) for each in range(elements)]
    inputs = [{"name": "x", "datatype": "FP32", "shape": [elements], "data": row}]
    body = {"inputs": [*inputs, {"name": "mode", "datatype": "BYTES", "shape": [1], "data": [mode]}]}

    def is_right(reply: Any) -> bool:
        return {"y": row} == {each["name"]: each["data"] for each in reply["outputs"] if each["name"] == "y"}

    return call(stage, "POST", f"/v2/models/{model or stage.victim}/infer", body, is_right)


def known(stage: Stage, number: int = 0) -> Outcome:
    """A request of a kind that the gateway has learned in `up_and_known`, with other values."""
    row = [float(number), 2.0, 3.0, 4.0]
    body, headers = request_body("binary", row)

    def send(client: Http) -> tuple[int, Any]:
        status, given, reply = client.send("POST", f"/v2/models/{VICTIM}/infer", body, headers)
        found = {name.lower(): value for name, value in given.items()}
        return status, answer_of(found, reply)[1] if status == 200 else json.loads(reply)

    return exchange(stage, send, lambda values: values == row)


def up_and_known(stage: Stage) -> None:
    stage.up()
    for number in range(1, 4):
        assert known(stage, number).right


def repository_verb(stage: Stage, verb: str, model: str = "") -> Outcome:
    return call(stage, "POST", f"/v2/repository/models/{model or stage.victim}/{verb}", {}, lambda _: True)


def reload(stage: Stage) -> Outcome:
    stage.write()
    return repository_verb(stage, "load")


def hang(stage: Stage) -> Outcome:
    """Stop a worker with SIGSTOP: it is found to hang, killed and replaced; queued requests go to the next one."""
    os.kill(stage.server.pid(stage.victim), signal.SIGSTOP)
    return infer(stage, 3)


def crash(stage: Stage) -> Outcome:
    """Kill an idle worker and wait for its crash report."""
    before = len(bundles(stage))
    os.kill(stage.server.pid(stage.victim), signal.SIGKILL)
    outcome = infer(stage, 3)
    with contextlib.suppress(AssertionError):
        eventually(lambda: len(bundles(stage)) > before, "the death is written down", FILED_S)
    return outcome


def bundles(stage: Stage) -> list[str]:
    """Events about crash reports of the victim, written or lost."""
    events = stage.server.events(model=stage.victim)
    return [each["event"] for each in events if each["event"] in ("bundle_written", "bundle_lost")]


def insist(stage: Stage, verb: str, **arguments: str) -> None:
    """A command whose controller may die before it has answered: whoever wants it asks again."""
    try:
        stage.server.ctl(verb, **arguments)
    except ServerRefused:
        stage.server.ctl(verb, **arguments)


def poison(stage: Stage) -> Outcome:
    """Send a request that kills its worker twice and is refused then, and clear the quarantine."""
    for _ in range(2):
        outcome = infer(stage, 3, "abort")
        assert not outcome.right
    refused = infer(stage, 3, "abort")
    insist(stage, "quarantine_clear", model=VICTIM)
    return Outcome(refused.text, right="request_quarantined" in refused.text, cut=outcome.cut or refused.cut)


def restart_controller(stage: Stage) -> Outcome:
    """Kill the controller and wait for the next one."""
    old = stage.server.status()["brain"]["pid"]
    os.kill(old, signal.SIGKILL)
    eventually(lambda: stage.server.status()["brain"]["pid"] != old, "another brain")
    return Outcome("another brain", right=True)


def restart_gateway(stage: Stage) -> Outcome:
    """Kill the gateway; the next one serves on the same socket."""
    (old,) = [each["pid"] for each in stage.server.status()["gateways"]]
    os.kill(old, signal.SIGKILL)
    return infer(stage, 3)


def upgrade(stage: Stage) -> Outcome:
    """Upgrade: every process is replaced, and the keeper re-executes itself."""
    try:
        result = stage.server.ctl("upgrade", ticket=secrets.token_hex(8), force=True)
    except ServerRefused as refused:
        return Outcome(f"{refused.code}: {refused.text}")
    return Outcome(f"upgraded: {result}", right=True)


def load_group(stage: Stage) -> Outcome:
    """Start the process of a group with its first model, and load the others into it."""
    return next((each for model in stage.models if not (each := repository_verb(stage, "load", model)).right), DONE)


def unload_group(stage: Stage) -> Outcome:
    """Unload all models of a group; its process ends with the last."""
    found = (repository_verb(stage, "unload", model) for model in reversed(stage.models))
    return next((each for each in found if not each.right), DONE)


def hang_group(stage: Stage) -> Outcome:
    """A model hangs and is ended, and with it the process: who waited for the other one is answered by the next."""
    with ThreadPoolExecutor(1, "hanging") as other:
        hanging = other.submit(infer, stage, 3, "hang")
        eventually(lambda: hanging.done() or _is_running(stage), "it runs")
        outcome = infer(stage, 3, model=stage.models[1])
        hanging.result(ANSWER_S)
    return outcome


def _is_running(stage: Stage) -> bool:
    return any(each["running"] for each in stage.server.model(stage.victim)["instances"])


def break_group(stage: Stage) -> Outcome:
    """Load a model that ends the process of its group: the others come back without it."""
    broken = repository_verb(stage, "load", BREAKER)
    assert not broken.right, broken
    insist(stage, "unload", name=BREAKER)
    return infer(stage, 3, model=stage.models[1])


def sleep_and_wake(stage: Stage) -> Outcome:
    """Put a model to sleep in host memory, and wake it by a request."""
    put_to_sleep(stage)
    return infer(stage, 3)


def put_to_sleep(stage: Stage) -> None:
    insist(stage, "sleep", name=stage.victim)
    eventually(lambda: stage.server.model(stage.victim)["state"] == "asleep", "it is asleep")


def up_and_asleep(stage: Stage) -> None:
    stage.up()
    put_to_sleep(stage)
    eventually(lambda: [each["state"] for each in stage.server.model(stage.victim)["instances"]] == ["offloaded"], "it")


def wake_by_another_controller(stage: Stage) -> Outcome:
    """Kill the controller while a model sleeps in host memory; the next one has it back from there."""
    restart_controller(stage)
    return infer(stage, 3)


def nothing(_: Stage) -> None:
    """No preparation: the victim is unloaded."""


OPERATIONS = (
    Operation("load", nothing, lambda stage: repository_verb(stage, "load"), wanted_after=True),
    Operation("infer", Stage.up, lambda stage: infer(stage, 3)),
    Operation("infer a known request", up_and_known, known),
    Operation("infer with shared memory", Stage.up, lambda stage: infer(stage, LARGE)),
    Operation("unload", Stage.up, lambda stage: repository_verb(stage, "unload"), wanted_after=False),
    Operation("reload", Stage.up, reload, wanted_after=True),
    Operation("hang", Stage.up, hang),
    Operation("crash", Stage.up, crash),
    Operation("poison", Stage.up, poison, survives=("brain",)),
    Operation("another brain", Stage.up, restart_controller),
    Operation("another gateway", Stage.up, restart_gateway, cuts=True),
    Operation("upgrade", Stage.up, upgrade, renews=True, survives=("brain", "gateway")),
    Operation("sleep in host memory", Stage.up, sleep_and_wake, models=(MOVER,)),
    Operation(
        "unload from host memory", up_and_asleep, lambda stage: repository_verb(stage, "unload"), models=(MOVER,)
    ),
    Operation("another brain beside host memory", up_and_asleep, wake_by_another_controller, models=(MOVER,)),
    Operation("load a group", nothing, load_group, models=GROUP),
    Operation("unload a group", Stage.all_up, unload_group, models=GROUP),
    Operation("hang in a group", Stage.all_up, hang_group, models=GROUP),
    Operation("break a group", Stage.all_up, break_group, models=GROUP),
    Operation("another brain of a group", Stage.all_up, restart_controller, models=GROUP),
)
"""The operations that leave the server running; start and stop are separate."""


def repository(folder: Path) -> Path:
    """Write the models of a trial: bystander, victim, one that can sleep in host memory, and a group."""
    folder.mkdir(exist_ok=True)
    write_identity_onnx(folder, BYSTANDER)
    write_fault_model(folder, VICTIM, hang_limit=f"{HANG_LIMIT_S}s")
    for name in GROUP:
        write_fault_model(folder, name, group="shared", hang_limit=f"{HANG_LIMIT_S}s")
    write_fault_model(folder, MOVER, held_by="numpy", sleep="host-memory", hang_limit=f"{HANG_LIMIT_S}s")
    write_fault_model(folder, BREAKER, group="shared", on_load="exit", on_load_amount=3)
    return folder
