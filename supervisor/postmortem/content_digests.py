"""Digests of a worker's configuration and artifact, by which crashes of the same content can be recognised.

`configuration` is pure. `ArtifactDigests` reads files, and is called from the disk thread.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.transport.dataclass_codec import to_json

Json = dict[str, Any]  # one JSON object

MAX_FILES: Final = 4096
MAX_CONTENT_BYTES: Final = 16 << 20
"""Read of all files together, because a crash loop must not cost a core; beyond it size and time count."""
EDGE_BYTES: Final = 64 << 10
MAX_DIGESTS: Final = 256
_COMPILED: Final = "__pycache__"
"""Written by workers; not part of the artifact."""
_CONFIGURATION_FIELDS: Final = (
    "engine", "artefact", "max_batch_size", "device", "instances", "memory_bytes", "gpu_memory_bytes", "deadline_s",
    "hang_limit_s", "load_timeout_s", "max_queue", "max_queue_bytes", "retry_on_crash", "trusted", "python",
)  # fmt: skip
"""Fields that may explain a crash. Not parameters: they may be secrets, as values of the environment may."""


def configuration(spec: ModelSpec) -> Json:
    """The digest of the specification of a worker, and the fields that may explain a crash."""
    named = replace(spec, env=dict.fromkeys(sorted(spec.env), ""))
    return {
        "sha256": hashlib.sha256(to_json(named)).hexdigest(),
        "of": "the version's whole specification; of the environment the names, no values",
        **{name: getattr(spec, name) for name in _CONFIGURATION_FIELDS},
        "env": sorted(spec.env),
        "parameters": sorted(spec.parameters),
    }


class ArtifactDigests:
    """Digests of version directories; one whose files have not changed is not read again."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[Any, ...], Json]] = {}  # by folder: what identifies its files, the digest

    def digest(self, directory: str) -> Json:
        """Of all files of a version as they are now. Never raises: the result says what could not be read."""
        try:
            files = list(itertools.islice(_files(directory), MAX_FILES + 1))
            known = self._known.get(directory)
            if known is not None and known[0] == tuple(files):
                return known[1]
            made = _digest(directory, files)
        except OSError as error:
            return {"sha256": "", "of": f"nothing: the folder could not be read ({error.strerror})"}
        self._known[directory] = (tuple(files), made)
        while len(self._known) > MAX_DIGESTS:
            del self._known[next(iter(self._known))]
        return made


def _files(directory: str) -> Iterator[tuple[str, int, int]]:
    """Name below the folder, size, time."""
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(each for each in folders if each != _COMPILED)
        for name in sorted(names):
            path = os.path.join(folder, name)
            status = os.stat(path)
            yield os.path.relpath(path, directory), status.st_size, status.st_mtime_ns


def _digest(directory: str, files: list[tuple[str, int, int]]) -> Json:
    whole = hashlib.sha256()
    left = MAX_CONTENT_BYTES
    partly = 0
    for name, size, time_ns in files[:MAX_FILES]:
        # A file name is bytes to the kernel, and need not be text.
        whole.update(os.fsencode(name) + f"\0{size}\0".encode())
        if size <= left:
            left -= size
            _hash_file(whole, os.path.join(directory, name), size)
        else:
            partly += 1
            whole.update(f"{time_ns}\0".encode())
            _hash_file(whole, os.path.join(directory, name), EDGE_BYTES)
    which = f"the first {MAX_FILES} files" if len(files) > MAX_FILES else "all files"
    of = f"names, sizes and contents of {which} of the version"
    if partly:
        of += f", but of {partly} large ones the time and the first {EDGE_BYTES >> 10} KiB instead of the content"
    return {
        "sha256": whole.hexdigest(),
        "of": of,
        "files": len(files[:MAX_FILES]),
        "bytes": sum(size for _, size, _ in files),
    }


def _hash_file(whole: Any, path: str, size: int) -> None:  # hashlib's object has no public type
    # Opening a named pipe must not wait.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        while size > 0 and (data := os.read(fd, min(size, 1 << 20))):
            whole.update(data)
            size -= len(data)
    finally:
        os.close(fd)
