"""The models, for every server alike: arrays in, arrays out. Imported inside the servers: numpy and onnxruntime alone.

Where the server batches, the arrays have a leading batch axis.
"""

import collections
import ctypes
import itertools
import os
import time

import numpy as np


class Scale:
    """y = 2x + 1: next to nothing, so that only the server is measured."""

    def __call__(self, x):
        return x * np.float32(2) + np.float32(1)


class Mean:
    """The mean of all elements: much in, next to nothing out."""

    def __call__(self, x):
        return x.mean(dtype=np.float32).reshape(1)


class Double:
    """y = 2x: much in, as much out."""

    def __call__(self, x):
        return x * np.float32(2)


class FaultyModel:
    """y = x, unless x begins with the number of a harm: then that is done to the process that runs this, by as much as
    the next value says."""

    def __call__(self, x):
        first, *rest = x.reshape(-1)[:2]
        place = int(first) - FIRST_FAULT
        if 0 <= place < len(FAULTS):
            list(FAULTS.values())[place](float(rest[0]))
        return x


def allocate(mebibytes):
    """Touch memory until somebody ends it, or it is so much."""
    held = []
    while len(held) * 64 < mebibytes:
        held.append(b"x" * (64 << 20))
    raise MemoryError


def fail(_amount):
    """An exception like any other."""
    raise RuntimeError("asked to raise")


FIRST_FAULT = 1000001
FAULTS = {
    "segv": lambda _: ctypes.string_at(0),
    "abort": lambda _: os.abort(),
    "exit": lambda status: os._exit(int(status)),
    "raise": fail,
    "allocate": allocate,
    "hang": lambda _: time.sleep(3600),
    "spin": lambda _: collections.deque(itertools.repeat(0), maxlen=0),
    "sleep": time.sleep,
}
"""By the words of chaos's fault model; their numbers are in this order, from the first one on."""


class Mlp:
    """A network in onnxruntime, on one thread."""

    def __init__(self):
        import onnxruntime  # noqa: PLC0415 - half a second, for one model in four

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL_FILE"], options, ["CPUExecutionProvider"])

    def __call__(self, x):
        return self.session.run(["y"], {"x": x})[0]


MODELS = {"scale": Scale, "mean": Mean, "double": Double, "mlp": Mlp, "harmful": FaultyModel}


def make():
    """The model that the harness asks for."""
    return MODELS[os.environ["MODEL"]]()
