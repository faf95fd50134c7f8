"""The list of compared servers, mmsup first."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from drivers.bentoml import BentoMl
from drivers.kserve import KServe
from drivers.litserve import LitServe
from drivers.mlserver import MlServer
from drivers.mmsup import Mmsup
from drivers.mosec import Mosec
from drivers.peer import Peer
from drivers.pytriton import PyTriton
from drivers.rayserve import RayServe
from drivers.torchserve import TorchServe
from drivers.triton import Triton
from environment import InstallError, environment

OURS = Mmsup.key
PEERS: tuple[Peer, ...] = (
    Mmsup(),
    Mosec(),
    Triton(),
    PyTriton(),
    TorchServe(),
    KServe(),
    LitServe(),
    MlServer(),
    BentoMl(),
    RayServe(),
)
BY_KEY = {peer.key: peer for peer in PEERS}
FAMOUS = "mmsup", "triton", "torchserve", "litserve", "mlserver", "mosec"
"""Servers that are tested with faults: each runs its models in processes of their own."""


def split_names(text: str) -> tuple[str, ...]:
    """Parse a comma-separated option."""
    return tuple(text.split(","))


def installed(peer: Peer) -> Path:
    """The server's environment, installed if missing; for mmsup the running one."""
    if peer.program and not shutil.which(peer.program):
        raise InstallError(f"it needs {peer.program}, which is not on this machine")
    return Path(sys.prefix) if peer.key == OURS else environment(peer.requires or peer.key, peer.pythons)
