"""A model's code may end the main thread of its worker and leave other threads behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.build import write_python
from harness.server import serving
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow
CODE = """
import ctypes
import threading

class Model:
    def infer(self, inputs):
        threading.Thread(target=threading.Event().wait).start()
        ctypes.CDLL(None).syscall(60, 0)
"""


def test_a_worker_whose_main_thread_has_ended_is_a_hang_and_no_broken_reply(tmp_path: Path) -> None:
    write_python(tmp_path, "m", CODE, (TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),))
    with serving(tmp_path) as server:
        http = server.http()
        try:
            status, reply = http.infer("m", x=("FP32", [1], [1.0]))
        finally:
            http.close()
        assert (status >= 500, reply["code"]) == (True, "worker_hung"), reply
