"""A model that takes over its worker: it changes the replies, or writes where it may and may not.

It changes the process that it runs in, as any code of a model can. `mode` names the fault of the next reply.
"""

from __future__ import annotations

import re
from pathlib import Path

from engines.build import write_python
from mmsup.ipc.specs import ModelSpec, TensorSpec

CODE = '''
import dataclasses, gc, os, signal, sys, threading, time

import numpy as np

from mmsup.ipc.messages.data import Cancel, InferReply, ReplySignature
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.transport import codec
from mmsup.worker.serving import outbox, reply_writer

honest = outbox.pack_records
NEXT, LATE = [], []


def words(*specs):
    return codec.pack_signature(ReplySignature(specs))


def y(datatype="FP32", shape=(4,), name="y"):
    return TensorSpec(name, datatype, shape)


def moved(segment=0, offset=0, size=0):
    def fault(reply):
        places = [(p[0] + segment, p[1] + offset, p[2] + size) for p in reply.locations if isinstance(p, tuple)]
        assert places, "this fault is about memory"
        return [dataclasses.replace(reply, locations=tuple(places))]
    return fault


def replied(*specs, data=bytes(16)):
    return lambda reply: [dataclasses.replace(reply, signature=words(*specs), locations=(data,) * len(specs))]


def late(reply):
    LATE.append(reply)
    return []


FAULTS = {
    "offset": moved(offset=1 << 40),
    "offset before": moved(offset=-(1 << 62)),
    "offset wraps": moved(offset=(1 << 64) - (1 << 20)),
    "length": moved(size=1 << 40),
    "length short": moved(size=-4),
    "length negative": moved(size=-(1 << 60)),
    "segment": moved(segment=1),
    "datatype": replied(y("FP31")),
    "datatype longer": replied(y("FP64")),
    "shape": replied(y(shape=(1 << 62, 1 << 62))),
    "shape negative": replied(y(shape=(-4,))),
    "rank": replied(y(shape=(1,) * 100_000)),
    "twice": replied(y(), y()),
    "undeclared": replied(*[y(shape=(1,), name=f"n{number}") for number in range(15_000)], data=b""),
    "time": lambda reply: [dataclasses.replace(reply, infer_ns=(1 << 64) - 1)],
    "negative time": lambda reply: [dataclasses.replace(reply, queue_ns=-1)],
    "code": lambda reply: [InferReply(reply.id, "request_quarantined", "an error of the server's")],
    "records": lambda reply: [InferReply(reply.id ^ (1 << 40) ^ number, "cancelled", "") for number in range(5_000)],
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


def pack_faulty(records, limit_bytes):
    records = codec.unpack_frame(honest(records, limit_bytes)[0])
    late, LATE[:] = list(LATE), []
    if not NEXT:
        frame = codec.pack_frame([*records, *late])
        return frame, len(records)
    frame_or_replies = FAULTS[NEXT.pop()](records[-1])
    if isinstance(frame_or_replies, list):
        frame_or_replies = codec.pack_frame([*records[:-1], *frame_or_replies, *late])
    return frame_or_replies, len(records)


outbox.pack_records = pack_faulty


def torn(share):
    """The next output is written in part."""
    def place(outputs, view, segment, offset):
        size = int(len(view) * share)
        view[:size] = b"\\xff" * size
        os.kill(os.getpid(), signal.SIGKILL)
    reply_writer.place_outputs = place


def arenas():
    links = [each for each in gc.get_objects() if type(each).__name__ == "GatewayLink"]
    return [each._arena for each in links if hasattr(each, "_arena")]


def scribble():
    """Overwrites all shared memory that is writable, for a while."""
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        for arena in arenas():
            for segment in arena.segments():
                view, writable = arena.extent(segment)
                if writable:
                    view[:] = os.urandom(len(view))


def scribble_page():
    """Overwrites the status page, which controller and gateways read."""
    (page,) = [each for each in gc.get_objects() if type(each).__name__ == "ServingLoop"][0]._page,
    for at in range(len(page.words)):
        page.words[at] = 1 << 63


def wipe_page():
    """As if no request had ever started here; then it dies."""
    (page,) = [each for each in gc.get_objects() if type(each).__name__ == "ServingLoop"][0]._page,
    for at in range(6, len(page.words)):
        page.words[at] = 0
    os.kill(os.getpid(), signal.SIGKILL)


def busy_to_come():
    """A run whose start is in the future, and which hangs."""
    (page,) = [each for each in gc.get_objects() if type(each).__name__ == "ServingLoop"][0]._page,
    page.words[1] = page.words[2] = 1 << 62
    while True:
        time.sleep(1)


class Model:
    def infer(self, inputs):
        first = inputs["x"].reshape(-1)[0]
        mode = list(FAULTS)[int(-first) - 1] if first < 0 else "ok"
        if "mode" in inputs:
            mode = inputs["mode"][0].decode()
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
        elif mode in FAULTS:
            NEXT.append(mode)
        return {"y": inputs["x"]}
'''


def write_hostile_model(repository: Path, name: str, *, has_mode: bool = True, **options: object) -> ModelSpec:
    """It returns `y = x`, unless `mode` names a fault of the table above, or without it the first value is
    `fault_value` of one."""
    inputs = [TensorSpec("x", "FP32", (-1,))]
    if has_mode:
        inputs.append(TensorSpec("mode", "BYTES", (1,), optional=True))
    return write_python(repository, name, CODE, inputs, (TensorSpec("y", "FP32", (-1,)),), 0, options)


def fault_value(fault: str) -> float:
    """The first value of a request that lets the model fail so, and whose bytes are otherwise known."""
    return -1.0 - re.findall(r'^    "([a-z\' ]+)": ', CODE, re.MULTILINE).index(fault)
