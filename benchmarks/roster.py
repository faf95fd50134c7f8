"""Every server that is compared, mmsup first."""

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
"""Those that are put under faults: each has a process for its models, and promises something of it."""


def split_names(text: str) -> tuple[str, ...]:
    """A list with commas, from the command line."""
    return tuple(text.split(","))


def installed(peer: Peer) -> Path:
    """The environment of a peer, made if it is not there; ours is the one that runs this."""
    if peer.program and not shutil.which(peer.program):
        raise InstallError(f"it needs {peer.program}, which is not on this machine")
    return Path(sys.prefix) if peer.key == OURS else environment(peer.requires or peer.key, peer.pythons)
