"""The stages in order, with planned times and the reasons why some take longer. Pure.

The plan is a prototype's: head, words, msgpack, ZeroMQ, an echo model, 32 connections, tensors of 64 bytes. Reasons
were found by timing parts alone and by leaving parts out; figures in them are those of docs/benchmarks/stages.md.
"""

from __future__ import annotations

from typing import Final

from inside.stage import Stage

_TAKEN: Final = ("known", "made")
_RECEIVED: Final = ("unpack", "form", "count", "binary write")
_STAGES: Final = ("binary take", "binary send", "binary wake")
_ORDINARY: Final = tuple(f"ordinary {each}" for each in _STAGES)

GATEWAY: Final = (
    Stage("gateway: a request taken", "binary take", why="the next two, but for the end of the admission"),
    Stage(
        "· recognised by its bytes",
        "known",
        plan_us=(0.8,),
        why="head and JSON compared with those of the last known request of the connection, and the route plain",
    ),
    Stage("·· another than the last one", "looked up", why="head found, its JSON copied to be a key"),
    Stage(
        "· admitted, and made into a record and an entry",
        "made",
        why="bounds of the model and of all; constant bytes, id, deadline and tensor joined; what a deadline, a death "
        "and a client that leaves find",
    ),
    Stage(
        "· the rest",
        plus=("binary take",),
        minus=_TAKEN,
        why="the turn of the model, the state of the connection, the flush put on the loop",
    ),
    Stage("gateway: joined and sent", "binary send", why="one frame for all, in bounds of size and number"),
    Stage("· records joined", "pack", why="they were packed when they were taken"),
    Stage("gateway: received, checked, answered", "binary wake", why="the next four, and the end of the admission"),
    Stage("· frame read", "unpack", why="msgpack"),
    Stage("· form of the reply", "form", why="a worker is not trusted: every field by type, range and size"),
    Stage("· counting", "count", why="histogram, sums and counts, added for all replies of an iteration at once"),
    Stage(
        "· reply put together",
        "binary write",
        plan_us=(0.1,),
        why="the Date header, and head, JSON and tensors joined into one piece; the plan is for the head alone",
    ),
    Stage("· the rest", plus=("binary wake",), minus=_RECEIVED, why="found by its id; the state of the connection"),
    Stage("msgpack both ways", plus=("pack", "unpack"), plan_us=(0.33,), why="nothing is packed one by one any more"),
    Stage("pair: a frame sent and one received, bare", "pair, gateway", why="the kernel's share of the link"),
    Stage("link both ways, with msgpack", plus=("pack", "unpack", "pair, gateway"), plan_us=(2.1, 3.1)),
    Stage(
        "gateway in user space: taken, sent, answered",
        plus=_STAGES,
        plan_us=(4.8,),
        why="no prototype has: admission and bounds, counting, validated replies, requests in flight with deadlines "
        "and an owner for each request, connections with states and timers",
    ),
    Stage(
        "the same of ordinary requests",
        plus=_ORDINARY,
        why="parsed heads and JSON from a cache, a message and a request of its own for each, every reply a message",
    ),
    Stage("TCP: received and sent, bare calls", "tcp", why="the kernel's share of the client's connection"),
    Stage("TCP by a bare protocol on uvloop, and the pair", plus=("loop", "pair, gateway"), plan_us=(5.0, 7.0)),
    Stage("gateway: all stages, and TCP on uvloop", plus=(*_STAGES, "loop"), plan_us=(12.0,)),
    Stage(
        "gateway of a whole server, by /proc",
        "whole gateway, binary",
        plan_us=(12.0,),
        why="an average, of processes that sleep and wake and lose their caches to others, beside shortest times",
    ),
    Stage(
        "· in user space",
        plus=("whole gateway, binary",),
        minus=("whole gateway in the kernel, binary",),
        plan_us=(4.8,),
        why="as for the stages in user space, with uvloop's own share, and as an average",
    ),
    Stage("· in the kernel", "whole gateway in the kernel, binary", plan_us=(7.2,)),
)
JSON: Final = (
    Stage("JSON: a request taken", "json take", why="as above, with the next for the words"),
    Stage("· text cut at its numbers", "json cut", why="the text around them is known and not read again"),
    Stage("· numbers read", "json numbers", why="by orjson, then checked for type and range and written as FP32"),
    Stage("JSON: packed and sent", "json send", why="as above"),
    Stage("JSON: received, checked, answered", "json wake", why="as above, and the numbers of the reply written"),
    Stage(
        "the same of ordinary requests",
        plus=tuple(f"ordinary json {each}" for each in ("take", "send", "wake")),
        why="taken, sent, answered",
    ),
    Stage("gateway of a whole server, JSON, by /proc", "whole gateway, json", why="taken, sent, answered, and TCP"),
)
WORKER: Final = (
    Stage("worker: received and kept", "hear", why="the next two, and one poll"),
    Stage("· frame read", "requests unpacked", why="msgpack"),
    Stage("· recognised by their bytes", "requests taken", why="the signature, and the type and size of each field"),
    Stage("worker: run and answered", "serve", why="all that follows"),
    Stage("· replies packed", "replies packed", why="msgpack"),
    Stage("· the model, alone and warm", "model", why="y = 2x + 1 in numpy, called as a user's class"),
    Stage("· the model, in its turn", plus=("serve",), minus=("serve, no model",), why="what a constant answer saves"),
    Stage(
        "· the rest, but for the model",
        plus=("serve, no model",),
        minus=("replies packed",),
        why="arrays over the record, outputs checked and copied, clocks, the status page's ring, the pair",
    ),
    Stage("pair: a frame received and one sent, bare", "pair, worker", why="the kernel's share"),
    Stage(
        "worker: all but the model",
        plus=("hear", "serve, no model"),
        plan_us=(5.2, 5.6),
        why="not in the prototype: deadlines, a guard around user code, checked outputs, a status page that says which "
        "requests had begun",
    ),
    Stage(
        "the same of ordinary requests",
        plus=("ordinary hear", "ordinary serve, no model"),
        why="each a message, a request in a queue with classes of priority, and a message as its reply",
    ),
    Stage(
        "worker of a whole server, by /proc, but for the model",
        plus=("whole worker, binary", "serve, no model"),
        minus=("serve",),
        plan_us=(5.2, 5.6),
        why="an average, as for the gateway",
    ),
)
STAGES: Final = (*GATEWAY, *JSON, *WORKER)
