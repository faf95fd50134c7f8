"""Which device a model runs on where its configuration leaves it open.

Nothing said is `cpu` (ModelSpec's default), also on a machine with a GPU: an instance there takes memory from the
models that were put there, and a server that does so unasked surprises people. `auto` asks for it: for one model, or
for all under `defaults:` of the server's file.
"""

from __future__ import annotations


def resolved(device: str, gpus: int) -> str:
    """The device that `auto` means on a machine with so many GPUs; any other device means itself."""
    if device != "auto":
        return device
    return "cuda" if gpus else "cpu"
