"""The models that every compared server runs: arrays in, arrays out. Imports only numpy and onnxruntime.

Where the server batches, the arrays have a leading batch axis.
"""

import collections
import ctypes
import itertools
import os
import time

import numpy as np


class Scale:
    """y = 2x + 1: negligible work, so that only the server is measured."""

    def __call__(self, x):
        return x * np.float32(2) + np.float32(1)


class Mean:
    """The mean of all elements: a large input, a tiny output."""

    def __call__(self, x):
        return x.mean(dtype=np.float32).reshape(1)


class Double:
    """y = 2x: a large input and a large output."""

    def __call__(self, x):
        return x * np.float32(2)


class FaultyModel:
    """y = x, unless x[0] is the number of a fault: then the process that runs the model has that fault, with the
    amount x[1]."""

    def __call__(self, x):
        first, *rest = x.reshape(-1)[:2]
        place = int(first) - FIRST_FAULT
        if 0 <= place < len(FAULTS):
            list(FAULTS.values())[place](float(rest[0]))
        return x


def allocate(mebibytes):
    """Touch so many MiB of memory."""
    held = []
    while len(held) * 64 < mebibytes:
        held.append(b"x" * (64 << 20))
    raise MemoryError


def fail(_amount):
    """Raise an ordinary exception."""
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
"""By the modes of chaos's fault model, numbered in this order from FIRST_FAULT."""


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
    """The model that the harness selects."""
    return MODELS[os.environ["MODEL"]]()
