"""The key of a request in the response cache: equal for requests that must get equal results, and for no others. Pure.

Which workers serve the model is part of it: those of another revision are others. So nothing of one revision is ever
found for another, and what a worker that was replaced or has died has made is not found again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from mmsup.gateway.protocol.request_fingerprint import Tensor
from mmsup.ipc.paths import WorkerId

DIGEST_BYTES: Final = 32


def cache_key(
    model: tuple[str, str],
    workers: Iterable[WorkerId],
    inputs: Iterable[Tensor],
    outputs: Iterable[str],
    parameters: Mapping[str, Any],  # scalars
) -> bytes:
    """`model`: name and version. `workers`: all that serve it. `outputs`: names of those that are wanted, none for
    all. Takes about 1 ms per MiB of inputs."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    _update(digest, *(each.encode() for each in model), repr(sorted(workers)).encode())
    _update(digest, repr(sorted(outputs)).encode("utf-8", "surrogatepass"))
    _update(digest, repr(sorted(parameters.items())).encode("utf-8", "surrogatepass"))
    for each in sorted(inputs, key=lambda each: each.name):
        _update(digest, each.name.encode(), each.datatype.encode(), repr(each.shape).encode(), each.data)
    return digest.digest()


def _update(digest: hashlib.blake2b, *parts: bytes | memoryview) -> None:
    """Add each part with its length before it, so that no two lists of parts give the same text."""
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
