"""A model that takes its worker over: it changes what the worker says, or writes where it may and may not.

It reaches into the process that it runs in, as any code of a model can. `mode` names the lie of the answer to come.
"""

from __future__ import annotations

from pathlib import Path

from engines.build import write_python
from mmsup.ipc.specs import ModelSpec, TensorSpec

LIAR = '''
import dataclasses, gc, os, signal, sys, threading, time

import numpy as np

from mmsup.ipc.messages.data import Cancel, InferReply, ReplySignature
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.transport import codec
from mmsup.worker.serving import outbox, request_handler

honest = outbox.pack_limited
LIES, LATE = [], []


def words(*specs):
    return codec.pack_signature(ReplySignature(specs))


def y(datatype="FP32", shape=(4,), name="y"):
    return TensorSpec(name, datatype, shape)


def moved(segment=0, offset=0, size=0):
    def lie(reply):
        places = [(p[0] + segment, p[1] + offset, p[2] + size) for p in reply.locations if isinstance(p, tuple)]
        assert places, "this lie is about memory"
        return [dataclasses.replace(reply, locations=tuple(places))]
    return lie


def said(*specs, data=bytes(16)):
    return lambda reply: [dataclasses.replace(reply, signature=words(*specs), locations=(data,) * len(specs))]


def late(reply):
    LATE.append(reply)
    return []


TELL = {
    "offset": moved(offset=1 << 40),
    "offset before": moved(offset=-(1 << 62)),
    "offset wraps": moved(offset=(1 << 64) - (1 << 20)),
    "length": moved(size=1 << 40),
    "length short": moved(size=-4),
    "length negative": moved(size=-(1 << 60)),
    "segment": moved(segment=1),
    "datatype": said(y("FP31")),
    "datatype longer": said(y("FP64")),
    "shape": said(y(shape=(1 << 62, 1 << 62))),
    "shape negative": said(y(shape=(-4,))),
    "rank": said(y(shape=(1,) * 100_000)),
    "twice": said(y(), y()),
    "words": lambda reply: [dataclasses.replace(reply, signature=b"\\xc1")],
    "places": lambda reply: [dataclasses.replace(reply, locations=())],
    "need": lambda reply: [InferReply(reply.id, needed_bytes=1 << 60)],
    "nothing": lambda reply: [InferReply(reply.id)],
    "garbage": lambda reply: os.urandom(200),
    "nested": lambda reply: b"\\x91" * 100_000,
    "a drop": lambda reply: [Cancel(reply.id)],
    "lost": lambda reply: [],
    "doubled": lambda reply: [reply, reply],
    "unknown": lambda reply: [dataclasses.replace(reply, id=reply.id ^ (1 << 40)), reply],
    "another's": lambda reply: [dataclasses.replace(reply, id=reply.id + 1), reply],
    "late": late,
}


def lying(records, limit_bytes):
    records = list(records)
    late, LATE[:] = list(LATE), []
    if not LIES:
        frame = codec.pack_frame([*records, *late])
        return frame, len(records)
    told = TELL[LIES.pop()](records[-1])
    if isinstance(told, list):
        told = codec.pack_frame([*records[:-1], *told, *late])
    return told, len(records)


outbox.pack_limited = lying


def torn(share):
    """The next output is written so far, and no farther."""
    def place(outputs, view, segment, offset):
        size = int(len(view) * share)
        view[:size] = b"\\xff" * size
        os.kill(os.getpid(), signal.SIGKILL)
    request_handler.place_outputs = place


def arenas():
    return [each._arena for each in gc.get_objects() if type(each).__name__ == "GatewayLink" and hasattr(each, "_arena")]


def scribble():
    """Over all memory that is shared with gateways and that can be written, for a while."""
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        for arena in arenas():
            for segment in arena.segments():
                view, writable = arena.extent(segment)
                if writable:
                    view[:] = os.urandom(len(view))


def scribble_page():
    """Over the status page, which supervisor and gateways read."""
    (page,) = [each for each in gc.get_objects() if type(each).__name__ == "ServingLoop"][0]._page,
    for at in range(len(page._words)):
        page._words[at] = 1 << 63


def wipe_page():
    """Nothing has ever begun here; then it dies."""
    (page,) = [each for each in gc.get_objects() if type(each).__name__ == "ServingLoop"][0]._page,
    for at in range(6, len(page._words)):
        page._words[at] = 0
    os.kill(os.getpid(), signal.SIGKILL)


def busy_to_come():
    """A run that begins in a hundred years, and hangs."""
    (page,) = [each for each in gc.get_objects() if type(each).__name__ == "ServingLoop"][0]._page,
    page._words[1] = page._words[2] = 1 << 62
    while True:
        time.sleep(1)


class Model:
    def infer(self, inputs):
        mode = inputs["mode"][0].decode() if "mode" in inputs else "ok"
        if mode == "scribble":
            threading.Thread(target=scribble, daemon=True).start()
        elif mode.startswith("torn "):
            torn(float(mode.split()[1]))
        elif mode == "page":
            scribble_page()
        elif mode == "busy to come":
            busy_to_come()
        elif mode == "wipe":
            wipe_page()
        elif mode in TELL:
            LIES.append(mode)
        return {"y": inputs["x"]}
'''


def write_liar(repository: Path, name: str, **options: object) -> ModelSpec:
    """It answers `y = x`, unless `mode` says a lie of the table above."""
    inputs = (TensorSpec("x", "FP32", (-1,)), TensorSpec("mode", "BYTES", (1,), optional=True))
    return write_python(repository, name, LIAR, inputs, (TensorSpec("y", "FP32", (-1,)),), 0, options)
