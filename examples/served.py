"""`mmsup serve` as a child, for demo.py: started on free ports, watched until it is ready, stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mmsup.supervisor.cli.control_client import call_server

START_S = 180.0
"""Far above any start: it fires only when something is broken."""
STOP_S = 60.0


class Server:
    """`mmsup serve` in a process of its own, with everything it writes in one temporary folder."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.runtime_dir = folder / "run"
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(folder / "notify"))
        self._notified.settimeout(1.0)
        self._log = folder / "log"
        command = [sys.executable, "-m", "mmsup.supervisor.cli", "serve", "--http-port=0", "--metrics-port=0"]
        command += [
            f"--model-repository={repository}",
            f"--runtime-dir={self.runtime_dir}",
            f"--state-dir={folder / 'state'}",
        ]
        environ = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify")}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environ)

    def wait_ready(self) -> None:
        """Until the server says READY, as it would to systemd."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            try:
                if b"READY=1" in self._notified.recv(4096).splitlines():
                    return
            except TimeoutError:
                if self.process.poll() is not None:
                    break
        raise SystemExit(f"the server did not start:\n{self.log()}")

    def log(self) -> str:
        """All that it has said so far."""
        return self._log.read_text(errors="replace")

    def ask(self, verb: str, **arguments: object) -> Any:
        """What `mmsup ctl` would ask."""
        return call_server(str(self.runtime_dir), verb, arguments)

    @property
    def address(self) -> str:
        """Where it serves HTTP."""
        return str(self.ask("status")["addresses"]["http"])

    def worker(self, model: str) -> dict[str, Any]:
        """The one worker of a model, as `ctl status` has it."""
        models = {each["name"]: each for each in self.ask("status")["models"]}
        worker: dict[str, Any] = models[model]["instances"][0]
        return worker

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)

    def close(self) -> None:
        """Whatever happened: nothing goes on."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._notified.close()
