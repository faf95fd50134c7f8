"""The fault model: a Python model that crashes, hangs, leaks or raises as its input says.

    source(on_load="raise")                                     its code
    write_fault_model(repository, "victim", memory="192MiB")    code and configuration, in a model repository

Inputs: `x` FP32 of any length; optional `mode` (BYTES) and `amount` (FP64). Outputs: `y`, a copy of `x`; `runs`, the
number of calls so far; with a revision also `life`: revision and process id. docs/chaos.md lists the modes. Any server
of Python classes with `load` and `infer` can serve it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

FAULT_MODEL: Final = '''"""A model that fails as its input says."""

import collections, ctypes, importlib, itertools, mmap, os, signal, subprocess, sys, tempfile, threading, time

import numpy as np


def harm(mode, amount):
    if mode == "raise":
        raise RuntimeError(f"asked to raise, see {__file__}")
    elif mode == "exit":
        os._exit(int(amount))
    elif mode == "sysexit":
        sys.exit(int(amount))
    elif mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif mode == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif mode == "segv":
        ctypes.string_at(0)
    elif mode == "abort":
        os.abort()
    elif mode == "fpe":
        os.kill(os.getpid(), signal.SIGFPE)
    elif mode == "bus":
        os.kill(os.getpid(), signal.SIGBUS)
    elif mode == "truncated":  # a mapped file that is cut short
        with tempfile.TemporaryFile() as file:
            file.truncate(4 * mmap.PAGESIZE)
            mapped = mmap.mmap(file.fileno(), 0)
            file.truncate(0)
            mapped[mmap.PAGESIZE]
    elif mode == "print":  # so many MiB
        for _ in range(int(amount)):
            print("x" * (1 << 20), flush=True)
    elif mode == "churn":  # so many processes, one after the other
        for _ in range(int(amount)):
            if (child := os.fork()) == 0:
                os._exit(0)
            os.waitpid(child, 0)
    elif mode == "sleep":
        time.sleep(amount)
    elif mode == "hold":  # until the test creates the file
        while True:
            try:
                os.unlink(os.path.join(os.path.dirname(__file__), "go"))
                break
            except FileNotFoundError:
                time.sleep(0.002)
    elif mode == "hang":
        while True:
            time.sleep(1)
    elif mode == "deadlock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    elif mode == "spin":  # in C, under the GIL, for ever
        collections.deque(itertools.repeat(0), maxlen=0)
    elif mode == "allocate":
        held = bytearray(int(amount) << 20)
        held[:: 4096] = b"x" * len(held[:: 4096])
    elif mode == "leak":
        LEAKED.append(b"x" * (int(amount) << 20))
    elif mode == "child":  # the memory is a child's
        code = f"held = bytearray({int(amount)} << 20); held[::4096] = b'x' * len(held[::4096])"
        subprocess.run([sys.executable, "-c", code], check=True)
    elif mode == "children":  # three hold so much each, until they are ended
        code = f"held = bytearray({int(amount)} << 20); held[::4096] = b'x' * len(held[::4096]); input()"
        started = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for _ in range(3)]
        [each.wait() for each in started]
    elif mode == "files":
        OPENED.extend(open(os.devnull) for _ in range(int(amount)))
    elif mode == "forks":  # a bomb: every child forks for ever, in a session of its own
        while True:
            if os.fork() == 0:
                os.setsid()
                while True:
                    try:
                        os.fork()
                    except OSError:
                        pass
    elif mode == "threads":  # until no more can be started
        while True:
            threading.Thread(target=threading.Event().wait, daemon=True).start()
    elif mode == "burn":  # processes in sessions of their own, each busy for ever
        for _ in range(int(amount)):
            subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    elif mode == "memory_error":
        raise MemoryError
    elif mode.startswith("at_"):  # at the next move of the model: at_offload_raise, at_restore_hang, …
        _, move, what = mode.split("_", 2)
        AT_MOVES[move] = what, amount
    elif mode != "ok":
        raise ValueError(f"no mode {mode}")


LEAKED, OPENED, AT_MOVES = [], [], {}
harm(ON_IMPORT, ON_LOAD_AMOUNT)


class Model:
    def load(self, context):
        harm(ON_LOAD, ON_LOAD_AMOUNT)
        self.context, self.directory = context, context.directory
        self.runs = 0

    def infer(self, inputs):
        x = inputs["x"]
        modes = [each.decode() for each in inputs["mode"].reshape(-1)] if "mode" in inputs else ["ok"]
        amounts = inputs["amount"].reshape(-1) if "amount" in inputs else itertools.repeat(0.0)
        self.runs += 1
        if modes[0] == "nothing":
            return {}
        if modes[0] == "list":
            return [x]
        if modes[0] == "datatype":
            return {"y": x.astype(np.float64), "runs": np.array([self.runs])}
        for mode, amount in zip(modes, amounts):
            if mode == "calling":  # it calls another model until it is killed in the middle
                threading.Timer(float(amount), os.kill, (os.getpid(), signal.SIGKILL)).start()
                while True:
                    self.context.infer(CALLED, {"x": x.reshape(1, -1)})
            if mode.startswith("call_"):  # another model is to do what follows
                shape = (len(x), 1) if BATCHED else (1,)
                told = np.full(shape, mode.removeprefix("call_").encode(), dtype=object)
                self.context.infer(CALLEE, {"x": x, "mode": told, "amount": np.full(shape, float(amount))})
                continue
            harm(mode, float(amount))
        extra = {"runs": np.array([self.runs])}
        if REVISION is not None:
            extra["life"] = np.array([REVISION, os.getpid()])
        if BATCHED:
            extra = {name: np.tile(each, (len(x), 1)) for name, each in extra.items()}
        return {"y": x, **extra}

    def unload(self):
        while os.path.exists(os.path.join(self.directory, "hold")):  # for tests
            time.sleep(0.005)
        print("unloaded", flush=True)


class Movable(Model):
    """It can sleep in host memory: what it answers with is somewhere else meanwhile."""

    def load(self, context):
        super().load(context)
        self.one = None
        self.restore()

    def infer(self, inputs):
        return super().infer({**inputs, "x": inputs["x"] * np.float32(self.one[-1])})

    def offload(self):
        self.one = None
        harm(*AT_MOVES.pop("offload", ("ok", 0)))

    def restore(self):
        harm(*AT_MOVES.pop("restore", ("ok", 0)))
        library = importlib.import_module(HELD_BY)
        self.one = library.ones(1 << 20, dtype=library.float32)


class Counting(Model):
    """Its `runs` are those of the sequence that a request belongs to."""

    def infer(self, inputs, sequences):
        made = super().infer(inputs)
        for each in sequences:
            each.state["runs"] = each.state.get("runs", 0) + 1
        runs = np.array([each.state["runs"] for each in sequences])
        return {**made, "runs": runs.reshape(-1, 1) if BATCHED else runs}


if HELD_BY:
    Model = Movable


class Streamed(Model):
    """The same in four parts, with what it does in the middle."""

    def infer(self, inputs):
        for place, part in enumerate(np.array_split(inputs["x"], 4)):
            if place == 2:
                answer = super().infer(inputs)
            elif place == 0:
                answer = super().infer({"x": inputs["x"]})
            yield {**answer, "y": part}


if STREAMED:
    Model = Streamed
if SEQUENCED:
    Model = Counting
'''

CALLED: Final = "healthy_1"
"""The model that mode `calling` calls: one of a run that is never to be hurt."""
NO_FAULT: Final = "ok"
"""The mode that does not fail."""
_CONFIG: Final = """\
name: "{name}"
backend: "python"
max_batch_size: {batch}
input [ {{ name: "x", data_type: TYPE_FP32, dims: [ -1 ] }} ]
input [ {{ name: "mode", data_type: TYPE_STRING, dims: [ 1 ], optional: true }} ]
input [ {{ name: "amount", data_type: TYPE_FP64, dims: [ 1 ], optional: true }} ]
output [ {{ name: "y", data_type: TYPE_FP32, dims: [ -1 ] }} ]
output [ {{ name: "runs", data_type: TYPE_INT64, dims: [ 1 ] }} ]
output [ {{ name: "life", data_type: TYPE_INT64, dims: [ 2 ] }} ]
"""

_ENSEMBLE: Final = """\
name: "{name}"
platform: "ensemble"
max_batch_size: {batch}
input [ {{ name: "x", data_type: TYPE_FP32, dims: [ -1 ] }} ]
input [ {{ name: "mode", data_type: TYPE_STRING, dims: [ 1 ] }} ]
input [ {{ name: "amount", data_type: TYPE_FP64, dims: [ 1 ] }} ]
output [ {{ name: "y", data_type: TYPE_FP32, dims: [ -1 ] }} ]
ensemble_scheduling {{
  step {{
    model_name: "{first}" model_version: -1
    input_map {{ key: "x" value: "x" }}
    output_map {{ key: "y" value: "made" }}
  }}
  step {{
    model_name: "{last}" model_version: -1
    input_map {{ key: "x" value: "made" }}
    input_map {{ key: "mode" value: "mode" }}
    input_map {{ key: "amount" value: "amount" }}
    output_map {{ key: "y" value: "y" }}
  }}
}}
"""


def source(
    *,
    on_import: str = NO_FAULT,
    on_load: str = NO_FAULT,
    on_load_amount: float = 0,
    batched: bool = False,
    streamed: bool = False,
    revision: int | None = None,
    held_by: str = "",
    sequenced: bool = False,
    callee: str = "",
) -> str:
    """The model's code. `on_import` and `on_load` are modes too; batched inputs have a leading batch axis. `streamed`:
    it answers in parts. `held_by`: it can sleep in host memory, and its weights are an array of this library (numpy or
    torch). `sequenced`: it counts the requests of each sequence. `callee`: the model that its modes `call_…` call."""
    constants = {
        "ON_IMPORT": on_import,
        "ON_LOAD": on_load,
        "ON_LOAD_AMOUNT": on_load_amount,
        "BATCHED": batched,
        "STREAMED": streamed,
        "REVISION": revision,
        "HELD_BY": held_by,
        "CALLED": CALLED,
        "SEQUENCED": sequenced,
        "CALLEE": callee,
    }
    lines = "".join(f"{key} = {value!r}\n" for key, value in constants.items())
    docstring, _, rest = FAULT_MODEL.partition("\n\n")
    return f"{docstring}\n\n{lines}\n{rest}"


def write_fault_model(
    repository: Path,
    name: str,
    *,
    revision: int = 1,
    on_load: str = NO_FAULT,
    on_load_amount: float = 0,
    batch: int = 0,
    streamed: bool = False,
    held_by: str = "",
    callee: str = "",
    **settings: Any,  # as YAML has it
) -> None:
    """Write the model into a repository, or another revision over the one that is there. `batch` is `max_batch_size`
    (0: no batch axis), `streamed`, `held_by` and `callee` as in `source`; `settings` go into its `mmsup.yaml`."""
    folder = repository / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    kind: dict[str, Any] = {"batched": bool(batch), "streamed": streamed, "held_by": held_by}  # of `source`
    kind |= {"callee": callee}
    kind["sequenced"] = "sequences" in settings
    code = source(on_load=on_load, on_load_amount=on_load_amount, revision=revision, **kind)
    _write_atomically(folder / "model.py", code)
    if settings:
        _write_atomically(folder.parent / "mmsup.yaml", json.dumps(settings) + "\n")  # JSON is YAML
    _write_atomically(folder.parent / "config.pbtxt", _CONFIG.format(name=name, batch=batch))


def write_ensemble(repository: Path, name: str, first: str, last: str, *, batch: int = 0) -> None:
    """Write an ensemble of two fault models: the first gets `x` alone, the last what that made, with the commands."""
    (repository / name / "1").mkdir(parents=True, exist_ok=True)
    _write_atomically(
        repository / name / "config.pbtxt", _ENSEMBLE.format(name=name, first=first, last=last, batch=batch)
    )


def _write_atomically(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
