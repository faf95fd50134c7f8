"""Starts a compared server on its core in a temporary folder, checks its answers, and removes it with all its processes
and files."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from types import TracebackType

import leftovers
import numpy as np
import tree
import wire
from changing_request import ChangingRequest
from drivers.peer import Peer, ServerPlace, free_port
from generator import Sample
from network import OnnxNetwork
from places import HERE
from work import MAX_BATCH, MAX_DELAY_S, Array, Scene

STOP_S = 15.0
STILL_S = 0.5
AT_REST = 0.05
"""A server is at rest when its processes together use no more than this share of a core over STILL_S."""
REST_S = 20.0
"""A server that is not at rest by then is measured as it is, and the report says so."""
UNRESPONSIVE_S = 15.0
"""The same wrong answer for so long is final. Refused connections do not count."""
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "JAVA_HOME")
_THREADS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
"""One thread per pool, because the server has one core."""
_WRONG = "wrong:"


class StartError(Exception):
    """The server did not start, or its answers are invalid."""


class WrongAnswerError(StartError):
    """Its answers have wrong values."""


class Server:
    """A compared server that serves a scene."""

    def __init__(
        self, peer: Peer, scene: Scene, environment: Path, network: OnnxNetwork, before: Sequence[str]
    ) -> None:
        """`before`: prefix of its command, for instance to pin it to a core."""
        self._shm, self._litter = leftovers.names(), leftovers.litter(peer.leftover_patterns)
        self.folder = Path(tempfile.mkdtemp(prefix="mmsup_bench_"))
        place = ServerPlace(self.folder, free_port(), environment / "bin", HERE / "apps", network.file, free_port())
        self.port, self._peer, self._scene, self._place, self._network = place.port, peer, scene, place, network
        asked = [(each, x) for x in scene.inputs() for name in scene.names for each in peer.requests(scene, name, x)]
        self._asked = [request for request, _ in asked]
        self.requests = [ChangingRequest.of(request.encode(), x) for request, x in asked]
        self._log = self.folder / "log"
        try:
            self._words = [*before, *peer.command(scene, place)]
            self.command = _portable_command(self._words, place)
            self._environ = _environ(peer, scene, place)
            self._process = self._started()
        except BaseException:
            shutil.rmtree(self.folder)
            raise

    def __enter__(self) -> Server:
        return self

    def _started(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._words, cwd=self.folder, env=self._environ, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def models(self) -> list[str]:
        """Names of its models."""
        return self._scene.names

    @property
    def has_ended(self) -> bool:
        """Whether the started process has exited."""
        return self._process.poll() is not None

    def start_again(self) -> None:
        """Stop what is left of it and start it in the same folder; returns when its answers are right."""
        self._stop()
        self._process = self._started()
        self.wait_until_correct(self._peer.start_s)  # the load continues meanwhile, so that it may be overloaded

    def _stop(self) -> None:
        tree.stop(self._process.pid, STOP_S)
        self._process.returncode = self._process.returncode or 0  # reaped by tree.stop

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        leftovers.remove_litter(self._peer.leftover_patterns, self._litter)
        if left := leftovers.remove(self._shm):
            print(f"{self._peer.name} left in /dev/shm: {', '.join(left)}; removed", file=sys.stderr)

    def wait_until_correct(self, stuck_s: float = UNRESPONSIVE_S) -> None:
        """Returns when every model answers every input correctly."""
        began, why, since = time.monotonic(), "", time.monotonic()
        while time.monotonic() < began + self._peer.start_s and not (why and time.monotonic() > since + stuck_s):
            if self._process.poll() is not None:
                raise StartError(f"it ended with {self._process.returncode}: {self.log()}")
            if not (fault := self._first_fault()):
                return
            if fault != why:
                why, since = fault, time.monotonic()
            time.sleep(0.1)
        kind = WrongAnswerError if why.startswith(_WRONG) else StartError
        raise kind(f"no right answer: {why}; its log: {self.log()}")

    def _first_fault(self) -> str:
        """The first wrong answer as text; empty if all are right."""
        for place, request in enumerate(self._asked):
            try:
                status, body = request.send(self.port)
            except ConnectionRefusedError:
                return f"connection refused at {time.monotonic():.0f}"
            except (OSError, HTTPException) as error:
                return f"{type(error).__name__} {error}"
            if status != 200:
                return f"status {status}: {body[:300].decode(errors='replace')}"
            if fault := self.fault(Sample(place, 0, body)):
                return fault
        return ""

    def fault(self, sample: Sample) -> str:
        """Why a body is no right answer to its request; empty if it is."""
        message, x = self.requests[sample.request].sent(sample.serial)
        asked, told = wire.message_id(message), wire.json_id(sample.body)
        if asked and asked != told:
            return f"{_WRONG} it is of request {told!r} instead of {asked!r}"
        expected = expected_answer(self._scene, x, self._network)
        body = sample.body
        try:
            found = self._peer.answer(self._scene, body)
        except (ValueError, TypeError, LookupError, AssertionError) as error:
            return f"unreadable ({type(error).__name__} {error}): {body[:200]!r}"
        if found.size != expected.size:
            return f"{_WRONG} {found.size} values instead of {expected.size}"
        near = np.isclose(found.ravel(), expected.ravel(), rtol=1e-4, atol=1e-5)
        if not near.all():
            first = int(np.argmin(near))
            return f"{_WRONG} {found.ravel()[first]} instead of {expected.ravel()[first]} at {first} of {found.size}"
        return ""

    def wait_until_at_rest(self) -> str:
        """Returns when all its processes have come up and use no CPU; if they do not, what they use, as text."""
        limit = time.monotonic() + REST_S
        used = _used_share()
        while not (self._peer.is_settled(self._place) and used <= AT_REST):
            if time.monotonic() > limit:
                return f"not at rest: {used:.0%} of a core without a request"
            used = _used_share()
        return ""

    def known_requests(self) -> float | None:
        """How many requests it has recognised by their bytes, if it counts that."""
        return self._peer.known_requests(self._place)

    def log(self) -> str:
        """The end of its output."""
        return self._log.read_text(errors="replace")[-900:].strip()


def _used_share() -> float:
    """Share of a core that the server's processes use over some time."""
    before = tree.cpu()
    time.sleep(STILL_S)
    return tree.used_s(before, tree.cpu()) / STILL_S


def expected_answer(scene: Scene, x: Array, network: OnnxNetwork) -> Array:
    """The expected answer to an input."""
    if scene.model == "mlp":
        return network(x)
    if scene.model == "mean":
        return np.full(1, x.mean(dtype=np.float64), np.float32)
    return x if scene.model == "harmful" else x * np.float32(2) + np.float32(scene.model == "scale")


def _portable_command(command: Sequence[str], place: ServerPlace) -> str:
    """The command with placeholders for folders and port, the same on every machine."""
    text = shlex.join(command)
    names = {place.folder: "FOLDER", place.bin.parent: "ENV", place.apps: "apps"}
    for folder, name in names.items():
        text = text.replace(str(folder), name)
    return text.replace(str(place.port), "PORT").replace(str(place.metrics_port), "METRICS_PORT")


def _environ(peer: Peer, scene: Scene, place: ServerPlace) -> Mapping[str, str]:
    inherited = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    settings = {
        "NAMES": ",".join(scene.names),
        "PORT": str(place.port),
        "SHAPE": ",".join(str(each) for each in scene.shape),
        "BINARY": str(int(scene.binary)),
        "LARGE": str(int(scene.is_large)),
        "MAX_BATCH": str(MAX_BATCH * scene.batching),
        "MAX_DELAY_S": str(MAX_DELAY_S),
        "LIMIT_S": str(scene.limit_s),
        "MODEL": scene.model,
        "MODEL_FILE": str(place.network),
        "PYTHONPATH": str(place.apps),
        "TMPDIR": str(place.folder),
    }
    path = {"PATH": f"{place.bin}:{inherited.get('PATH', os.defpath)}"}
    return {**inherited, **path, **_THREADS, **settings, **peer.environ(place)}
