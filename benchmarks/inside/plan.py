"""The stages in order, with planned times and the reasons why some take longer. Pure.

The plan is a prototype's: head, words, msgpack, ZeroMQ, an echo model, 32 connections, tensors of 64 bytes. Reasons
were found by timing parts alone and by leaving parts out; figures in them are those of docs/benchmarks/stages.md.
"""

from __future__ import annotations

from typing import Final

from inside.stage import Stage

_TAKEN: Final = ("head", "errand", "admit", "binary read")
_RECEIVED: Final = ("unpack", "fault", "count", "binary write")
_STAGES: Final = ("binary take", "binary send", "binary wake")

GATEWAY: Final = (
    Stage("gateway: a request taken", "binary take", why="the next five, but for the end of the admission"),
    Stage(
        "· head found, its plan looked up",
        "head",
        plan_us=(0.6,),
        why="the blank line is searched and the head copied to be a key",
    ),
    Stage(
        "· request and timer made", "errand", why="a request of its own that can fail, be cancelled, be counted once"
    ),
    Stage("· admission, and its end", "admit", why="route, version, bound of the queue, choice of a worker, deadline"),
    Stage(
        "· signature looked up",
        "binary read",
        plan_us=(0.2,),
        why="the words are copied out of the body and hashed together with the head's plan, and the version and the "
        "metadata that they were read for must still be those of the model",
    ),
    Stage(
        "· the rest",
        plus=("binary take",),
        minus=_TAKEN,
        why="memory for the body, the record, an entry in flight, the state of the connection and its turns",
    ),
    Stage("gateway: packed and sent", "binary send", why="one frame for all, in bounds of size and number"),
    Stage("· pack_frame", "pack", why="one tuple for each record, then msgpack"),
    Stage("gateway: received, checked, answered", "binary wake", why="the next five, and the end of the admission"),
    Stage("· unpack_frame", "unpack", why="msgpack takes 0.2 of it; the rest is the type of each field and a record"),
    Stage("· fault_of", "fault", why="a worker is not trusted: number and size of the outputs, against its words"),
    Stage("· counting", "count", why="nine counters in memory that outlives the process, two clocks, a histogram"),
    Stage(
        "· reply put together",
        "binary write",
        plan_us=(0.1,),
        why="the Date header, for which the clock is read each time (0.2), and head, JSON and tensors joined into one "
        "piece; the plan is for the head alone, the difference between two of its figures",
    ),
    Stage(
        "· the rest",
        plus=("binary wake",),
        minus=_RECEIVED,
        why="the entry settled, the end of the request and of its admission, the state of the connection",
    ),
    Stage(
        "msgpack both ways",
        plus=("pack", "unpack"),
        plan_us=(0.33,),
        why="of the reading msgpack itself takes 0.2; each field of a reply is checked by type, since a worker is not "
        "trusted, and made into a record, where the prototype used the bare list",
    ),
    Stage("pair: a frame sent and one received, bare", "pair, gateway", why="the kernel's share of the link"),
    Stage("link both ways, with msgpack", plus=("pack", "unpack", "pair, gateway"), plan_us=(2.1, 3.1)),
    Stage(
        "gateway in user space: taken, sent, answered",
        plus=_STAGES,
        plan_us=(4.8,),
        why="no prototype has: admission and bounds, timers and counting, validated replies, requests in flight with "
        "deadlines and an owner for each request, connections with states and timers",
    ),
    Stage("TCP: received and sent, bare calls", "tcp", why="the kernel's share of the client's connection"),
    Stage("TCP by a bare protocol on uvloop, and the pair", plus=("loop", "pair, gateway"), plan_us=(5.0, 7.0)),
    Stage("gateway: all stages, and TCP on uvloop", plus=(*_STAGES, "loop"), plan_us=(12.0,)),
    Stage(
        "gateway of a whole server, by /proc",
        "whole gateway, binary",
        plan_us=(12.0,),
        why="of 32 connections seven to nine requests met in a turn (counted once), so the sum at 8 a turn is what "
        "compares; what is above that was not traced: an average, of processes that sleep and wake and lose their "
        "caches to others, stands beside shortest times",
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
    Stage(
        "· text read",
        "json read",
        plan_us=(0.7,),
        why="the plan is orjson alone (0.6 of this); the text is cut at its numbers by a regular expression, and each "
        "number is checked for type and range and written as FP32 into an order of its own",
    ),
    Stage("·· text cut at its numbers", "json cut", why="the text around them is known and not read again"),
    Stage("·· numbers read, checked, written as FP32", "json numbers", why="orjson takes a tenth of it"),
    Stage("JSON: packed and sent", "json send", why="as above"),
    Stage("JSON: received, checked, answered", "json wake", why="as above, with the next for the reply"),
    Stage("· reply written", "json write", why="the numbers as shortest text that reads back the same; orjson is 0.6"),
    Stage("gateway of a whole server, JSON, by /proc", "whole gateway, json", why="taken, sent, answered, and TCP"),
)
WORKER: Final = (
    Stage("worker: received and queued", "hear", why="the next two, and one poll"),
    Stage("· unpack_frame", "requests unpacked", why="each field checked by type, made into a record"),
    Stage(
        "· queued, and taken out", "queue", why="classes of priority, bounds, no id twice; words known by their bytes"
    ),
    Stage("worker: run and answered", "serve", why="all that follows"),
    Stage("· inputs as arrays", "job", why="views, each of the size that its words say"),
    Stage(
        "· engine called, but for the model", plus=("run",), minus=("model",), why="guard, status page, checked outputs"
    ),
    Stage("· outputs as bytes, reply made", "answer", why="small ones go inline; their words are known"),
    Stage("· replies packed", "replies packed", why="one tuple for each record, then msgpack"),
    Stage(
        "· the rest, but for the model",
        plus=("serve, no model", "model"),
        minus=("job", "run", "answer", "replies packed"),
        why="queue, deadline, times, pace, the status page's ring and counters, the pair, caches that are not warm",
    ),
    Stage("· the model, alone and warm", "model", why="y = 2x + 1 in numpy, called as a user's class"),
    Stage("· the model, in its turn", plus=("serve",), minus=("serve, no model",), why="what a constant answer saves"),
    Stage("pair: a frame received and one sent, bare", "pair, worker", why="the kernel's share"),
    Stage(
        "worker: all but the model",
        plus=("hear", "serve, no model"),
        plan_us=(5.2, 5.6),
        why="not in the prototype: classes of priority, deadlines, a guard around user code, checked outputs, a status "
        "page that says which requests had begun",
    ),
    Stage(
        "worker of a whole server, by /proc, but for the model",
        plus=("whole worker, binary", "serve, no model"),
        minus=("serve",),
        plan_us=(5.2, 5.6),
        why="seven to nine requests meet in a turn, not 32; then as for the gateway",
    ),
)
STAGES: Final = (*GATEWAY, *JSON, *WORKER)
