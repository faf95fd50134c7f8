"""What each predictor of the worker's batching pays, against the same worker without it.

    python benchmarks/predictors.py [--seconds N] [concurrency quick-runs objective benefit shapes]

Every case runs real ONNX models on one thread. Its variants alternate in one run, so that a machine that grows slower
does so for all, and all times are CPU time, which other processes hardly change: latencies too are measured by a clock
of CPU time and of the time slept. The cost of a request includes that of its caller here.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import network
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from work import MLP_INPUTS, MLP_OUTPUTS

from mmsup.ipc.memory.status_page import StatusPageWriter, make_status_page
from mmsup.ipc.messages.data import Infer, InferSignature
from mmsup.ipc.messages.worker_control import AttachGateway
from mmsup.ipc.specs import Batching, ModelSpec, TensorSpec
from mmsup.ipc.transport.codec import pack_frame, pack_signature, unpack_frame
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.ipc.transport.data_channel import DataChannel
from mmsup.worker.batching.batch_policy import ConcurrencyEstimate
from mmsup.worker.engines.ort import OrtEngine
from mmsup.worker.execution import executor
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.executor import Executor
from mmsup.worker.execution.outputs import encode_outputs, place_outputs
from mmsup.worker.serving import loop, reply_writer, request_handler
from mmsup.worker.startup.controller_channel import WorkerControlChannel

MAX_BATCH = 16
DELAY_S, OBJECTIVE_S, THINK_NS = 0.002, 0.02, 3_000_000
IMAGE = (3, 224, 224)
WIDE = (65_536,)
RANDOM = np.random.default_rng(3)
Change = Callable[[loop.ServingLoop], None]
"""What a variant changes in a worker."""
Variant = Callable[[], int]
"""Runs requests, and returns how many."""


def save(file: Path, nodes: Sequence[Any], weights: Sequence[Any], shapes: Sequence[Sequence[int | str]]) -> Path:
    """A graph from `x` to `y` of these shapes, without their batch axis."""
    x, y = (helper.make_tensor_value_info("xy"[at], TensorProto.FLOAT, ["n", *shapes[at]]) for at in (0, 1))
    graph = helper.make_graph(nodes, "m", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), file)
    return file


def weight(name: str, *shape: int) -> Any:
    return numpy_helper.from_array(RANDOM.standard_normal(shape, dtype=np.float32) * np.float32(0.1), name)


def relu(file: Path, shape: Sequence[int | str]) -> Path:
    return save(file, [helper.make_node("Relu", ["x"], ["y"])], [], (shape, shape))


def convolutions(file: Path) -> Path:
    nodes, weights, name, channels = [], [], "x", 3
    for index, (more, step) in enumerate(((16, 4), (32, 2), (64, 2), (64, 2), (64, 2))):
        weights.append(weight(f"w{index}", more, channels, 3, 3))
        nodes.append(helper.make_node("Conv", [name, f"w{index}"], [f"c{index}"], strides=[step] * 2, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        name, channels = f"r{index}", more
    nodes.append(helper.make_node("GlobalAveragePool", [name], ["y"]))
    return save(file, nodes, weights, (IMAGE, (64, 1, 1)))


def wide_layer(file: Path) -> Path:
    return save(file, [helper.make_node("MatMul", ["x", "w"], ["y"])], [weight("w", *WIDE, 256)], (WIDE, (256,)))


def spec_of(file: Path, x: Sequence[int], y: Sequence[int], batching: Batching | None = None) -> ModelSpec:
    inputs, outputs = (TensorSpec("x", "FP32", tuple(x)),), (TensorSpec("y", "FP32", tuple(y)),)
    options = {"intra_op_thread_count": "1"}
    where = str(file.parent), file.name, "ort", "onnxruntime_onnx"
    batching = batching or Batching()
    return ModelSpec(file.stem, "1", *where, MAX_BATCH, inputs, outputs, parameters=options, batching=batching)


def load(spec: ModelSpec) -> tuple[Executor, StatusPageWriter]:
    engine, page = OrtEngine(), StatusPageWriter(make_status_page())
    return Executor(engine, spec, engine.load(spec), page), page


def alternate(title: str, variants: dict[str, Variant], seconds: float) -> None:
    """Print the median CPU time of a request of each variant."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for run in list(variants.values()) * 3:
        run()
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(found[next(iter(found))]) < 5:
        for name, run in variants.items():
            began = time.process_time()
            requests = run()
            found[name].append((time.process_time() - began) / requests * 1e6)
    costs = "   ".join(f"{name} {statistics.median(each):8.1f} us" for name, each in found.items())
    print(f"{title:34} {costs}", flush=True)


class CpuClock:
    """The clock of the workers here: the CPU time of this process, and the time that they would have slept. So neither
    a run nor a wait takes longer because other processes are busy."""

    def __init__(self) -> None:
        self._slept_ns = 0

    def monotonic_ns(self) -> int:
        return time.process_time_ns() + self._slept_ns

    def sleep_until(self, then_ns: float) -> None:
        self._slept_ns += max(int(then_ns) - self.monotonic_ns(), 0)


CLOCK = CpuClock()
for module in (loop, request_handler, reply_writer, executor):
    module.time = CLOCK  # type: ignore[attr-defined] # of all workers in this process


class Worker:
    """A worker's loop with a gateway's end of its socket pair, in this process."""

    def __init__(self, spec: ModelSpec, change: Change | None = None) -> None:
        near, far = ControlChannel.pair()
        ours, self._controller = ControlChannel.pair()
        lifeline, self._keeper = os.pipe()
        self._data = DataChannel(near.detach())
        shape = spec.inputs[0].shape
        self._signature = pack_signature(InferSignature((TensorSpec("x", "FP32", (1, *shape)),), (), {}))
        self._x = RANDOM.standard_normal(shape, dtype=np.float32).tobytes()
        self._ids = iter(range(1 << 40, 1 << 41))
        self._sent: dict[int, int] = {}
        self._due: list[float] = []
        """When callers send next."""
        engine, page = load(spec)
        self.loop = loop.ServingLoop(WorkerControlChannel(ours, lifeline), None, engine, page)
        self.loop._links.attach(AttachGateway(0, b"g"), far.detach())
        if change is not None:
            change(self.loop)

    def _send(self, count: int = 1) -> None:
        now_ns, ids = CLOCK.monotonic_ns(), [next(self._ids) for _ in range(count)]
        frame = pack_frame([Infer(each, self._signature, now_ns + 10**10, None, (self._x,)) for each in ids])
        assert self._data.send(frame), "the pair is full"
        self._sent |= dict.fromkeys(ids, now_ns)

    def _receive(self) -> list[tuple[int, int]]:
        """Latency in nanoseconds and batch size of each reply that has come."""
        replies, now_ns = unpack_frame(self._data.receive() or b"\x90"), CLOCK.monotonic_ns()
        assert all(each.signature for each in replies), "a request failed"
        return [(now_ns - self._sent.pop(each.id), each.batch) for each in replies]

    def exchange(self, count: int) -> int:
        """Send, serve and receive so many requests at once."""
        self._send(count)
        self.loop._receive_all(0)
        while self._sent:
            self.loop._run_queued()
            self._receive()
        return count

    def callers(self, count: int, requests: int, chance: random.Random) -> list[tuple[int, int]]:
        """A closed loop: each caller sends, waits for the reply, thinks up to THINK_NS, and sends again."""
        found: list[tuple[int, int]] = []
        self._due = [CLOCK.monotonic_ns() + chance.uniform(0, THINK_NS) for _ in range(count)]
        receive_all = self.loop._receive_all

        def send_due(timeout_s: float) -> bool:
            while self._due and min(self._due) <= CLOCK.monotonic_ns():
                self._due.remove(min(self._due))
                self._send()
            return receive_all(timeout_s)

        def wait(left_ns: int) -> None:
            CLOCK.sleep_until(min([CLOCK.monotonic_ns() + left_ns, *self._due]))

        self.loop._receive_all = send_due  # type: ignore[method-assign] # of this object, as is the next
        self.loop._wait_for_requests = wait  # type: ignore[method-assign]
        while self._due or self._sent:
            if not self._sent:
                wait(10**9)
            self.loop._receive_all(0)
            if self.loop._handler.queue.size:
                self.loop._run_queued()
            replies = self._receive()
            found += replies
            if len(found) < requests:
                self._due += [CLOCK.monotonic_ns() + chance.uniform(0, THINK_NS) for _ in replies]
        self.loop._receive_all = receive_all  # type: ignore[method-assign] # as it was
        return found


def live(title: str, variants: dict[str, tuple[ModelSpec, Change | None]], callers: int, seconds: float) -> None:
    """Print what requests cost and took, with as many callers; the variants are asked in turn."""
    chance = random.Random(5)
    workers = {name: Worker(*each) for name, each in variants.items()}
    cpu_s, found = dict.fromkeys(workers, 0.0), {name: list[tuple[int, int]]() for name in workers}
    for turn in range(12):
        for name, worker in workers.items():
            began = time.process_time()
            replies = worker.callers(callers, int(25 * seconds * callers**0.7), chance)
            if turn > 3:  # the objective has settled
                cpu_s[name] += time.process_time() - began
                found[name] += replies
    for name in workers:
        times = sorted(each / 1e6 for each, _ in found[name])
        cost, batch = cpu_s[name] / len(times) * 1e6, statistics.mean(each for _, each in found[name])
        p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
        print(
            f"{title:26} {name:19} {cost:6.0f} us   batch {batch:4.1f}   p50 {p50:4.1f} ms   p99 {p99:4.1f} ms",
            flush=True,
        )


def thin_layers(folder: Path, batching: Batching) -> ModelSpec:
    file = folder / "thin.onnx"
    if not file.exists():
        network.make(file)
    return spec_of(file, (MLP_INPUTS,), (MLP_OUTPUTS,), batching)


def concurrency(folder: Path, seconds: float) -> None:
    """The estimate of concurrent callers, against waiting for the whole delay, and against not waiting."""

    class Always(ConcurrencyEstimate):
        @property
        def expected(self) -> int:
            return MAX_BATCH

    def wait_always(serving: loop.ServingLoop) -> None:
        serving._handler.policy.concurrency = Always()

    delayed = thin_layers(folder, Batching(delay_s=DELAY_S))
    variants: dict[str, tuple[ModelSpec, Change | None]] = {
        "estimate": (delayed, None),
        "whole delay": (delayed, wait_always),
        "no delay": (thin_layers(folder, Batching()), None),
    }
    for callers in (1, 4, 16):
        live(f"concurrency, {callers} callers", variants, callers, seconds)


def quick_runs(folder: Path, seconds: float) -> None:
    """Several quick runs for one reply frame, against a frame for each run."""

    def never(serving: loop.ServingLoop) -> None:
        serving._handler.policy.has_time_for_run = lambda spent_ns: spent_ns < 0  # type: ignore[method-assign] # of this one

    single = relu(folder / "single.onnx", (16,))
    for batch, title in ((1, "no batches"), (4, "batches of 4")):
        spec = spec_of(single, (16,), (16,), Batching(max_rows=batch))
        workers = {"as measured": Worker(spec), "one run a frame": Worker(spec, never)}
        for count in (1, 8, 32):
            variants: dict[str, Variant] = {name: partial(each.exchange, count) for name, each in workers.items()}
            alternate(f"quick runs, {title}, {count} at once", variants, seconds)


def objective(folder: Path, seconds: float) -> None:
    """Batches for a stated latency, against a fixed delay, and against not waiting."""
    variants: dict[str, tuple[ModelSpec, Change | None]] = {
        "objective of 20 ms": (thin_layers(folder, Batching(objective_s=OBJECTIVE_S)), None),
        "delay of 2 ms": (thin_layers(folder, Batching(delay_s=DELAY_S)), None),
        "no delay": (thin_layers(folder, Batching()), None),
    }
    for callers in (1, 4, 16):
        live(f"objective, {callers} callers", variants, callers, seconds)


def run_batches(engine: Executor, jobs: Sequence[Arrays], views: Sequence[memoryview]) -> int:
    """Run jobs as one batch and place their outputs, ten times."""
    for _ in range(10):
        buffers = [engine.output_buffers(job, (), view) for job, view in zip(jobs, views, strict=True)]
        for result, view in zip(engine.run(jobs, (), buffers), views, strict=True):
            assert isinstance(result, dict), result.text
            place_outputs(encode_outputs(result), view, 0, 0)
    return 10 * len(jobs)


def requests(count: int, x: Sequence[int], y: Sequence[int]) -> tuple[list[Arrays], list[memoryview]]:
    jobs: list[Arrays] = [{"x": RANDOM.standard_normal((1, *x), dtype=np.float32)} for _ in range(count)]
    return jobs, [memoryview(bytearray(int(np.prod(y)) * 4 + 64)) for _ in jobs]


def benefit(folder: Path, seconds: float) -> None:
    """Large requests batched or not by measured runs, against always and never."""
    models = {
        "Relu, 602 KB": (relu(folder / "relu.onnx", IMAGE), IMAGE, IMAGE),
        "convolutions, 602 KB": (convolutions(folder / "conv.onnx"), IMAGE, (64, 1, 1)),
        "one wide layer, 262 KB": (wide_layer(folder / "wide.onnx"), WIDE, (256,)),
    }
    choices: dict[str, Callable[[int, int], int] | None] = {
        "as measured": None,
        "always": lambda *_: 0,
        "never": lambda _, jobs: jobs,
    }
    for title, (file, x, y) in models.items():
        for count in (4, 16):
            given = requests(count, x, y)
            variants: dict[str, Variant] = {}
            for name, choice in choices.items():
                engine, _ = load(spec_of(file, x, y))
                if choice is not None:
                    engine._batching_benefit.single_runs = choice  # type: ignore[assignment,method-assign] # of this object
                variants[name] = partial(run_batches, engine, *given)
            alternate(f"benefit, {title}, {count}", variants, seconds)


def shapes(folder: Path, seconds: float) -> None:
    """Outputs written where they are sent from, by shapes that were declared or learned, against copied ones."""
    for title, x in (("262 KB", WIDE), ("602 KB", IMAGE), ("12.6 MB", (3, 1024, 1024))):
        file = relu(folder / "open.onnx", [f"d{axis}" for axis in range(len(x))])
        given = requests(1, x, x)
        variants: dict[str, Variant] = {}
        for name, declared in (("declared", x), ("learned", (-1,) * len(x)), ("unknown", (-1,) * len(x))):
            engine, _ = load(spec_of(file, declared, declared))
            if name == "unknown":
                engine._shape_predictor.learn = lambda *_: None  # type: ignore[method-assign] # of this object
            variants[name] = partial(run_batches, engine, *given)
        alternate(f"output shapes, Relu, {title}", variants, seconds)


CASES = {
    "concurrency": concurrency,
    "quick-runs": quick_runs,
    "objective": objective,
    "benefit": benefit,
    "shapes": shapes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each line (4)")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (all)")
    options = parser.parse_args()
    gc.disable()  # as in a worker, whose loop collects between runs
    with tempfile.TemporaryDirectory(prefix="mmsup_bench_") as folder:
        for name in options.cases or CASES:
            CASES[name](Path(folder), options.seconds)


if __name__ == "__main__":
    main()
