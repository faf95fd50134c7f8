"""Signals that a script, a profiler or a service manager sends to the wrong process end none of ours."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from engines.build import write_python
from harness.server import Server, eventually, serving
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.stray_signals import STRAY

pytestmark = pytest.mark.slow
SENT = sorted(STRAY - {signal.SIGPIPE, signal.SIGUSR2})
"""SIGPIPE is ignored by Python; SIGUSR2 has a worker write its stacks."""
CODE = '''
import signal
import subprocess

import numpy as np

CAUGHT = []
signal.signal(signal.SIGUSR1, lambda number, frame: CAUGHT.append(number))
SHOW = """
import signal
others = set(range(1, 65)) - {2, 13, 25, 32, 33}  # those are Python's own, and glibc's
print(sum(signal.getsignal(each) != signal.SIG_DFL for each in others))
"""

class Model:
    def infer(self, inputs):
        child = subprocess.run(["python3", "-c", SHOW], capture_output=True, text=True, check=True)
        return {"y": np.array([len(CAUGHT), int(child.stdout)], np.float32)}
'''


def answer(server: Server) -> list[float]:
    """How often the model's own handler has run; how many dispositions its child process has inherited."""
    http = server.http()
    try:
        status, reply = http.infer("listens", x=("FP32", [1], [1.0]))
    finally:
        http.close()
    assert status == 200, reply
    data = reply["outputs"][0]["data"]
    assert isinstance(data, list)
    return data


def test_signals_to_the_wrong_process_are_ignored_and_a_models_own_handler_works(tmp_path: Path) -> None:
    write_python(tmp_path, "listens", CODE, (TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (2,)),))
    with serving(tmp_path) as server:
        assert answer(server) == [0.0, 0.0]
        status = server.status()
        controller, gateway, worker = status["brain"]["pid"], status["gateways"][0]["pid"], server.pid("listens")
        for pid in (controller, gateway, worker):
            for number in SENT:
                os.kill(pid, number)
        os.kill(worker, signal.SIGUSR2)
        os.kill(server.process.pid, signal.SIGUSR1)

        def ignored() -> int:
            logs = [
                server.log(),
                *(each.read_text() for each in (server.state_dir / "logs").rglob("*") if each.is_file()),
            ]
            return sum(text.count("which means nothing to this process") for text in logs)

        eventually(lambda: ignored() >= 3 * len(SENT) - 1, f"a line for each: {ignored()}")
        assert answer(server) == [1.0, 0.0]
        after = server.status()
        assert (after["brain"]["pid"], after["gateways"][0]["pid"], server.pid("listens")) == (
            controller,
            gateway,
            worker,
        )
        assert "signal_ignored" in server.log()
        for event in ("worker_exit", "gateway_exit", "brain_exit"):
            assert not server.events(event)
        assert server.stop() == 0
        (line,) = [
            each
            for each in server.log().splitlines()
            if '"event": "stopping"' in each and "SIGTERM" in each and "draining" in each
        ]
        assert f"pid {os.getpid()} (" in line
