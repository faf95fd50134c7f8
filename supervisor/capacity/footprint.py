"""How much memory a worker of a model version needs, and how long its load takes: measured, or guessed until it is."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from typing import Final

from mmsup.ipc.specs import ModelSpec

ENGINE_BYTES: Final = {"custom": 20 << 20, "ort": 48 << 20, "pytorch": 150 << 20}
"""Host memory of a worker with a model of no size, by engine: Python 3.11, torch 2.13, onnxruntime 1.32."""
FORKED_BYTES: Final = 12 << 20
"""The same of a worker that is forked of a zygote; measured are 5 to 9 MiB."""
_IMPORTED_ENGINES: Final = {"torch": "pytorch", "onnxruntime": "ort"}
"""Engines whose libraries a Python class imports, by what its file was seen to import."""
LOAD_FACTOR: Final = 1.5
"""Of the bytes of the artifact: weights, and part of the file that is read beside them."""
FIRST_GROWTH: Final = 1.1
"""By so much at most a worker's first requests raise its need; what it grows by beyond that may be a leak."""
CUDA_CONTEXT_BYTES: Final = 512 << 20
"""What a CUDA context takes of its device before the first weight is there, where nothing was measured."""
MAX_FILES: Final = 256
"""Files of a version that are counted for a guess."""
SAME: Final = 0.05
"""Two measurements that differ by less are the same."""


@dataclass(frozen=True, slots=True, order=True)
class FootprintKey:
    model: str
    version: str
    engine: str
    device: str
    """As the model's configuration says it."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes and seconds of one worker; 0 is not measured. `gpu_` is of the device, all others of the host."""

    load_peak_bytes: int = 0
    """The most that was held until it was ready."""
    settled_bytes: int = 0
    """Held when it had become ready."""
    serving_peak_bytes: int = 0
    """The most that was held since."""
    gpu_load_peak_bytes: int = 0
    gpu_settled_bytes: int = 0
    gpu_serving_peak_bytes: int = 0
    load_s: float = 0.0
    """From the request to start it until it was ready."""
    offloaded_bytes: int = 0
    """Held while its model was in host memory."""
    gpu_offloaded_bytes: int = 0
    """The same of its device: the context, as a rule."""
    restore_s: float = 0.0
    """How long the way back took."""
    is_forked: bool = False
    """It was forked of a zygote, whose pages it shares."""

    def is_near(self, other: Footprint) -> bool:
        """Whether nothing differs by more than a few per cent."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__slots__)
        return all(abs(mine - theirs) <= SAME * max(mine, theirs) for mine, theirs in pairs)

    @property
    def used_bytes(self) -> int:
        """Held when the first requests have been answered. What it grows by beyond that may be a leak."""
        return min(self.serving_peak_bytes, round(self.settled_bytes * FIRST_GROWTH))

    def followed_by(self, later: Footprint) -> Footprint:
        """This one, corrected by a later worker of the same files: its load counts, and the higher peak of service. One
        that was started in another way replaces it."""
        if self.is_forked is not later.is_forked:
            return later
        return replace(
            later,
            serving_peak_bytes=max(self.serving_peak_bytes, later.serving_peak_bytes),
            gpu_load_peak_bytes=later.gpu_load_peak_bytes or self.gpu_load_peak_bytes,
            gpu_settled_bytes=later.gpu_settled_bytes or self.gpu_settled_bytes,
            gpu_serving_peak_bytes=max(self.gpu_serving_peak_bytes, later.gpu_serving_peak_bytes),
            load_s=later.load_s or self.load_s,
            offloaded_bytes=later.offloaded_bytes or self.offloaded_bytes,
            gpu_offloaded_bytes=later.gpu_offloaded_bytes or self.gpu_offloaded_bytes,
            restore_s=later.restore_s or self.restore_s,
        )

    def with_move(self, moved: Footprint) -> Footprint:
        """This one with what was measured of a move to host memory or back. Of two ways back the mean counts: one that
        a busy machine has delayed must not decide for good."""
        times_s = [each for each in (self.restore_s, moved.restore_s) if each]
        return replace(
            self,
            offloaded_bytes=moved.offloaded_bytes or self.offloaded_bytes,
            gpu_offloaded_bytes=moved.gpu_offloaded_bytes or self.gpu_offloaded_bytes,
            restore_s=sum(times_s) / len(times_s) if times_s else 0.0,
        )


@dataclass(frozen=True, slots=True)
class Need:
    """What a load takes of one pool of memory."""

    needed_bytes: int
    """The most that it holds at one time while it loads. Growth in service is counted once it is there."""
    least_bytes: int = 0
    """What it holds for good once it is ready; it cannot live with less."""
    is_measured: bool = True

    @property
    def settled_bytes(self) -> int:
        return self.least_bytes or self.needed_bytes

    def times(self, count: int) -> Need:
        """Of so many workers."""
        return Need(self.needed_bytes * count, self.least_bytes * count, self.is_measured)

    def beside(self, held_bytes: int) -> Need:
        """Of a worker that holds so much of it already."""
        return Need(max(self.needed_bytes - held_bytes, 0), max(self.least_bytes - held_bytes, 0), self.is_measured)


NO_NEED: Final = Need(0)


def footprint_key(spec: ModelSpec) -> FootprintKey:
    return FootprintKey(spec.name, spec.version, spec.engine, spec.device)


def uses_gpu(spec: ModelSpec) -> bool:
    return spec.device != "cpu"


def host_need(
    spec: ModelSpec, measured: Footprint | None, artifact_bytes: int, *, is_forked: bool | None = None
) -> Need:
    """Host memory of one worker. A guess goes by what a Python class imports, and is bounded by the model's own cap.
    `is_forked`: how it will be started; None if that is not known. What was measured of the other way is as good as
    nothing: it differs by all that is imported."""
    is_same_way = measured is not None and is_forked in (None, measured.is_forked)
    if measured is not None and measured.settled_bytes and is_same_way:
        most_bytes = max(measured.load_peak_bytes, measured.settled_bytes, measured.used_bytes)
        return Need(most_bytes, measured.settled_bytes)
    base = FORKED_BYTES if is_forked else ENGINE_BYTES.get(_IMPORTED_ENGINES.get(spec.imports, spec.engine), 0)
    guess = base + round(artifact_bytes * LOAD_FACTOR)
    guess = guess if spec.memory_bytes is None else min(guess, spec.memory_bytes)
    return Need(guess, guess, is_measured=False)


def gpu_need(
    spec: ModelSpec, measured: Footprint | None, artifact_bytes: int, context_bytes: int = CUDA_CONTEXT_BYTES
) -> Need:
    """Memory of its device that one worker takes, its CUDA context included; nothing for a model on the CPU.
    `context_bytes`: what a context takes of that device."""
    if not uses_gpu(spec):
        return NO_NEED
    if measured is not None and measured.gpu_settled_bytes:
        return Need(max(measured.gpu_load_peak_bytes, measured.gpu_settled_bytes), measured.gpu_settled_bytes)
    guess = spec.gpu_memory_bytes or context_bytes + round(artifact_bytes * LOAD_FACTOR)
    return Need(guess, guess, is_measured=False)


def artifact_bytes(directory: str) -> int:
    """The bytes of the files in the folder of a version, of the first MAX_FILES; 0 if it cannot be read."""
    sizes: list[int] = []
    for folder, _, names in os.walk(directory):
        for name in names[: MAX_FILES - len(sizes)]:
            with contextlib.suppress(OSError):
                sizes.append(os.stat(os.path.join(folder, name)).st_size)
        if len(sizes) >= MAX_FILES:
            break
    return sum(sizes)
