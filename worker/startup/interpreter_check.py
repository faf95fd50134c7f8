"""Ends a worker whose interpreter lacks what every worker imports, with what is to be installed as its last line."""

from __future__ import annotations

import os
import sys

from mmsup.ipc import exit_codes
from mmsup.ipc.worker_requirements import WORKER_MODULES, interpreter_problem, missing_modules


def exit_if_lacking() -> None:
    """Called before anything is imported that may not be there; without it nothing could be sent to the controller."""
    text = interpreter_problem(sys.version_info[:2], missing_modules(WORKER_MODULES), sys.executable)
    if text:
        os.write(sys.stderr.fileno(), f"{text}\n".encode())
        os._exit(exit_codes.NO_WORKER_MODULES)
