"""A server at work: started on its core in a folder of its own, right in its answers before anything is measured, gone
at the end with all that it started and wrote."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from types import TracebackType

import leftovers
import numpy as np
import tree
from drivers.peer import Peer, ServerPlace, free_port
from network import OnnxNetwork
from places import HERE
from wire import RequestBytes
from work import MAX_BATCH, MAX_DELAY_S, Array, Scene

STOP_S = 15.0
UNRESPONSIVE_S = 15.0
"""A server that gives the same wrong answer for so long will not learn. Refused connections do not count."""
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "JAVA_HOME")
_THREADS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
"""One core is one thread: a pool of them would only fight over it."""
_WRONG = "wrong:"


class StartError(Exception):
    """The server did not start, or does not answer what it should."""


class WrongAnswerError(StartError):
    """It answers, and wrongly."""


class Server:
    """A peer, serving a scene."""

    def __init__(
        self, peer: Peer, scene: Scene, environment: Path, network: OnnxNetwork, before: Sequence[str]
    ) -> None:
        """`before`: words before its command, that say on which core it runs, say."""
        self._shm, self._litter = leftovers.names(), leftovers.litter(peer.leftover_patterns)
        self.folder = Path(tempfile.mkdtemp(prefix="mmsup_bench_"))
        place = ServerPlace(self.folder, free_port(), environment / "bin", HERE / "apps", network.file)
        self.port, self._peer, self._scene = place.port, peer, scene
        self._inputs = scene.inputs()
        self._right = [expected_answer(scene, x, network) for x in self._inputs]
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
        """What it serves."""
        return self._scene.names

    @property
    def has_ended(self) -> bool:
        """Whether the process that was started is gone."""
        return self._process.poll() is not None

    def start_again(self) -> None:
        """End what is left of it, start it anew in the same place; returns when it is right in its answers."""
        self._stop()
        self._process = self._started()
        self.wait_until_correct(self._peer.start_s)  # its clients do not wait for it: it is asked more than it can take

    def _stop(self) -> None:
        tree.stop(self._process.pid, STOP_S)
        self._process.returncode = self._process.returncode or 0  # reaped there

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        leftovers.remove_litter(self._peer.leftover_patterns, self._litter)
        if left := leftovers.remove(self._shm):
            print(f"{self._peer.name} left in /dev/shm: {', '.join(left)}; removed", file=sys.stderr)

    def wait_until_correct(self, stuck_s: float = UNRESPONSIVE_S) -> None:
        """Every model answers every input as it should."""
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
        """What is not as it should be; empty if all is."""
        for place, request in enumerate(self.requests()):
            try:
                status, body = request.ask(self.port)
            except ConnectionRefusedError:
                return f"nobody listens at {time.monotonic():.0f}"
            except (OSError, HTTPException) as error:
                return f"{type(error).__name__} {error}"
            if status != 200:
                return f"status {status}: {body[:300].decode(errors='replace')}"
            if fault := self.fault(place, body):
                return fault
        return ""

    def requests(self) -> Iterator[RequestBytes]:
        """Each input to each model in turn."""
        for x in self._inputs:
            for model in self._scene.names:
                yield self._peer.request(self._scene, model, x)

    def fault(self, place: int, body: bytes) -> str:
        """Why a body does not answer the request at this place; empty if it does."""
        expected = self._right[place // self._scene.models]
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

    def log(self) -> str:
        """The end of what it has said."""
        return self._log.read_text(errors="replace")[-900:].strip()


def expected_answer(scene: Scene, x: Array, network: OnnxNetwork) -> Array:
    """The answer to an input, computed here."""
    if scene.model == "mlp":
        return network(x)
    if scene.model == "mean":
        return np.full(1, x.mean(dtype=np.float64), np.float32)
    return x if scene.model == "harmful" else x * np.float32(2) + np.float32(scene.model == "scale")


def _portable_command(command: Sequence[str], place: ServerPlace) -> str:
    """The command with its folders by name, as a person can read it and no machine differs in it."""
    text = shlex.join(command)
    names = {place.folder: "FOLDER", place.bin.parent: "ENV", place.apps: "apps"}
    for folder, name in names.items():
        text = text.replace(str(folder), name)
    return text.replace(str(place.port), "PORT")


def _environ(peer: Peer, scene: Scene, place: ServerPlace) -> Mapping[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    asked = {
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
    path = {"PATH": f"{place.bin}:{kept.get('PATH', os.defpath)}"}
    return {**kept, **path, **_THREADS, **asked, **peer.environ(place)}
