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


class Harmful:
    """y = 2x + 1, unless x begins with the number of a harm: then that is done to the process that runs this."""

    def __call__(self, x):
        harm = HARMS.get(int(x.reshape(-1)[0]))
        if harm is not None:
            harm()
        return x * np.float32(2) + np.float32(1)


def allocate():
    """Touch memory until somebody ends it; the bound is for a machine where nobody does."""
    held = []
    while len(held) < 128:
        held.append(b"x" * (64 << 20))
    raise MemoryError


HARMS = {
    1000001: lambda: ctypes.string_at(0),
    1000002: os.abort,
    1000003: allocate,
    1000004: lambda: time.sleep(3600),
    1000005: lambda: collections.deque(itertools.repeat(0), maxlen=0),
}
"""A segmentation fault, an abort, too much memory, a hang, a hang in C that holds the interpreter's lock."""


class Mlp:
    """A network in onnxruntime, on one thread."""

    def __init__(self):
        import onnxruntime  # noqa: PLC0415 - half a second, for one model in four

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL_FILE"], options, ["CPUExecutionProvider"])

    def __call__(self, x):
        return self.session.run(["y"], {"x": x})[0]


MODELS = {"scale": Scale, "mean": Mean, "double": Double, "mlp": Mlp, "harmful": Harmful}


def make():
    """The model that the harness asks for."""
    return MODELS[os.environ["MODEL"]]()
