"""Exit codes, of the command line and of the processes among themselves."""

from __future__ import annotations

from typing import Final

SUCCESS: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
ALREADY_RUNNING: Final = 3
"""Another server holds the state directory or the runtime directory."""
NO_SERVER: Final = 4

LOAD_FAILED: Final = 65
"""A worker said why its model cannot be loaded, then left."""
DEVICE_LOST: Final = 70
"""A worker met a CUDA error that its context does not survive."""
KEEPER_LOST: Final = 71
"""A process found its keeper gone."""
