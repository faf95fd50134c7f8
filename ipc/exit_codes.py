"""Exit codes of the command line and of worker and gateway processes."""

from __future__ import annotations

from typing import Final

SUCCESS: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
ALREADY_RUNNING: Final = 3
"""Another server has locked the state directory or the runtime directory."""
NO_SERVER: Final = 4

LOAD_FAILED: Final = 65
"""A worker reported why its model cannot be loaded."""
NO_WORKER_MODULES: Final = 66
"""A worker's interpreter lacks a module that every worker needs, or is too old."""
DEVICE_LOST: Final = 70
"""A worker met a CUDA error after which its context is unusable."""
KEEPER_LOST: Final = 71
"""The keeper has exited."""
ZYGOTE_OUTDATED: Final = 72
"""The files of a zygote's code have changed since it has imported them."""
ZYGOTE_UNFIT: Final = 73
"""A zygote cannot fork workers safely."""
