"""Runs `mmsup serve` as a child process for demo.py: starts it on free ports, waits until it is ready, stops it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mmsup.supervisor.cli.ctl.control_client import call_server

START_S = 180.0
"""Far above any start time."""
STOP_S = 60.0


class Server:
    """A server with all its files in one folder."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.runtime_dir = folder / "run"
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(folder / "notify"))
        self._notified.settimeout(1.0)
        self._log = folder / "log"
        command = [sys.executable, "-m", "mmsup.supervisor.cli", "serve"]
        command += [
            *("--http-port=0", "--grpc-port=0", "--metrics-port=0"),
            f"--model-repository={repository}",
            f"--runtime-dir={self.runtime_dir}",
            f"--state-dir={folder / 'state'}",
        ]
        environ = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify")}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environ)

    def wait_ready(self) -> None:
        """Wait for READY=1, as systemd does."""
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
        return self._log.read_text(errors="replace")

    def ask(self, verb: str, **arguments: object) -> Any:
        """Call the control socket, as `mmsup ctl` does."""
        return call_server(str(self.runtime_dir), verb, arguments)

    @property
    def address(self) -> str:
        """Its HTTP address."""
        return str(self.ask("status")["addresses"]["http"])

    def worker(self, model: str) -> dict[str, Any]:
        """The only worker of a model, from `ctl status`."""
        models = {each["name"]: each for each in self.ask("status")["models"]}
        worker: dict[str, Any] = models[model]["instances"][0]
        return worker

    def stop(self) -> int:
        """Stop by SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)

    def close(self) -> None:
        """Kill the server if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._notified.close()
