"""Workers that are forked and workers that are executed, side by side on one server: a model sees no difference."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import same_answers

from engines.build import write_python
from harness.server import Server, serving
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow
TEXT = (TensorSpec("facts", "BYTES", (1,)),)
ONE = (TensorSpec("x", "FP32", (-1,)),)
FACTS = """
import gc, json, os, random, resource, signal, sys, tempfile, threading, time
import numpy

class Model:
    def infer(self, inputs):
        facts = {
            "argv": [each.partition("=")[0] for each in sys.argv],
            "orig_argv": [each.partition("=")[0] for each in sys.orig_argv],
            "main": sys.modules["__main__"].__file__,
            "flags": [sys.flags.safe_path, sys.dont_write_bytecode, sys.stdout.encoding, sys.stdout.errors,
                      sys.stdout.line_buffering, sys.stdin.read()],
            "path": [each for each in sys.path if each],
            "environ": dict(sorted(os.environ.items())),
            "umask": os.umask(0o077),
            "folder": os.path.basename(os.getcwd()),
            "temporary": tempfile.gettempdir() == os.environ["TMPDIR"],
            "session": os.getsid(0) == os.getpid() == os.getpgid(0),
            "thread": threading.get_native_id() == os.getpid(),
            "main_thread": threading.main_thread() is threading.current_thread(),
            "threads": [threading.active_count(), len(os.listdir("/proc/self/task"))],
            "handlers": sorted(int(each) for each in signal.valid_signals()
                               if signal.getsignal(each) not in (signal.SIG_DFL, signal.SIG_IGN)),
            "ignored": sorted(int(each) for each in signal.valid_signals()
                              if signal.getsignal(each) is signal.SIG_IGN),
            "limits": [resource.getrlimit(each) for each in range(16) if each != resource.RLIMIT_RTTIME],
            "nice": os.getpriority(os.PRIO_PROCESS, 0),
            "zone": time.tzname,
            "gc": gc.isenabled(),
            "files": sorted(int(each) for each in os.listdir("/proc/self/fd"))[:3],
            "engines": sorted({"torch", "onnxruntime"} & set(sys.modules)),
        }
        return {"facts": numpy.array([json.dumps(facts).encode()], dtype=object)}
"""
DRAWS = """
import random, uuid
import numpy, torch
class Model:
    def infer(self, inputs):
        drawn = f"{random.random()} {numpy.random.rand()} {torch.initial_seed()} {uuid.uuid4()}"
        for seed in (random.seed, numpy.random.seed, torch.manual_seed):
            seed(7)
        seeded = f"{random.random()} {numpy.random.rand()} {torch.rand(1).item()}"
        texts = [each.encode() for each in (drawn, seeded)]
        return {"facts": numpy.array(texts, dtype=object)}
"""
IMPORTS_TORCH = """
class Model:
    def load(self, context):
        import torch
    def infer(self, inputs):
        return {"y": inputs["x"]}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    with serving(repository, "--model-control-mode", "explicit", "--zygotes", "eager") as running:
        running.await_zygote()
        yield running
        assert running.stop() == 0, running.log()


@contextlib.contextmanager
def loaded(
    server: Server,
    name: str,
    code: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    **settings: Any,  # of its mmsup.yaml
) -> Iterator[str]:
    """A model with this code. How it was started."""
    write_python(server.repository, name, code, inputs, outputs, settings=settings)
    server.ctl("load", name=name)
    (instance,) = server.ctl("show", name=name)["instances"]
    yield str(instance["start"])
    server.ctl("unload", name=name)
    shutil.rmtree(server.repository / name)


def call(server: Server, name: str, x: Any = (1.0,)) -> dict[str, Any]:  # rows of numbers; outputs by name
    http = server.http()
    try:
        given = np.asarray(x, dtype=np.float32)
        status, reply = http.infer(name, x=("FP32", list(given.shape), given.reshape(-1).tolist()))
        assert status == 200, reply
        return {each["name"]: each["data"] for each in reply["outputs"]}
    finally:
        http.close()


def test_a_model_sees_the_same_world_forked_and_executed(server: Server) -> None:
    seen = []
    for start in ("zygote", "exec"):
        settings = {"start": start, "env": {"A": "b", "OMP_NUM_THREADS": "1"}}
        with loaded(server, "facts", FACTS, ONE, TEXT, **settings) as how:
            assert how.startswith("forked" if start == "zygote" else "exec"), how
            facts = json.loads(call(server, "facts")["facts"][0])
            for name in ("HOME", "TMPDIR", "MMSUP_WORKER"):
                assert facts["environ"].pop(name)
            for name in ("argv", "orig_argv"):
                facts[name] = [each for each in facts[name] if "#" not in each]
            seen.append(facts)
    assert seen[0] == seen[1]


def test_forked_workers_draw_random_numbers_as_executed_ones_do(server: Server) -> None:
    found = []
    for start in ("zygote", "zygote", "exec"):
        facts = (TensorSpec("facts", "BYTES", (2,)),)
        with loaded(server, "draws", DRAWS, ONE, facts, preload="torch", start=start) as how:
            assert how.startswith("forked" if start == "zygote" else "exec"), how
            found.append(call(server, "draws")["facts"])
    drawn = [number for each in found for number in each[0].split()]
    assert len(set(drawn)) == len(drawn)
    assert len({each[1] for each in found}) == 1, "what follows a seed that the model sets"


@pytest.mark.parametrize(
    ("env", "word"),
    [
        ({"LD_BIND_NOW": "1"}, "LD_BIND_NOW"),
        ({"MALLOC_ARENA_MAX": "1"}, "MALLOC_ARENA_MAX"),
        ({"PYTHONHASHSEED": "1"}, "PYTHONHASHSEED"),
    ],
)
def test_a_variable_that_needs_a_new_program_gets_one_and_ctl_show_says_so(
    server: Server, env: dict[str, str], word: str
) -> None:
    with loaded(server, "needs_exec", FACTS, ONE, TEXT, env=env) as how:
        assert how == f"exec: its env has {word}, which takes effect when a program starts"
        assert json.loads(call(server, "needs_exec")["facts"][0])["environ"][word] == "1"


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_workers_with_two_threads_answer_the_same_forked_and_executed(server: Server, kind: str) -> None:
    names = (f"{kind}_zygote", f"{kind}_exec")
    for name in names:
        same_answers.write_model(server.repository, name, kind, name.partition("_")[2])
        server.ctl("load", name=name)
        (instance,) = server.ctl("show", name=name)["instances"]
        assert instance["start"].startswith("forked" if name is names[0] else "exec"), instance
    found = same_answers.compare(server.address(), names, 100)
    assert (found.requests, found.is_good) == (100, True), found
    for name in names:
        server.ctl("unload", name=name)


def test_a_class_that_imports_torch_is_forked_of_torch_the_next_time(server: Server) -> None:
    with loaded(server, "learns", IMPORTS_TORCH, ONE, (TensorSpec("y", "FP32", (-1,)),)) as how:
        assert how.startswith("forked: of zygote 1, which has imported numpy")
        server.ctl("unload", name="learns")
        server.ctl("load", name="learns")
        (instance,) = server.ctl("show", name="learns")["instances"]
        assert re.match("forked: of zygote [0-9]+, which (has imported|imports) torch", instance["start"])
        assert call(server, "learns", [3.0])["y"] == [3.0]
