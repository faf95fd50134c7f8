"""What one worker's death costs the controller's event loop in checkpointing, by model and as one text of all models.

    python benchmarks/checkpoint.py [--models N] [--deaths N] [--json]

Makes the model set of a controller without processes and takes one instance through the states of a death: ready,
backoff, absent, starting, loading, warming, ready. After each, what a pass of the reconciler saves is saved: the
record of the model that has changed, those of the server and of the GPUs. Beside it the way of version 0.1: all records
of all models as one text, after each of the states. No message is sent; bytes are those of the texts that would be.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.ipc.transport.codec import encode
from mmsup.supervisor.controller.recovery import (
    GPUS_KEY,
    SERVER_KEY,
    GpuRecords,
    ServerRecord,
    model_key,
)
from mmsup.supervisor.instances.context import InstanceContext, WorkerFailure
from mmsup.supervisor.instances.instance import InstanceHooks, VersionRevision
from mmsup.supervisor.instances.lifecycle_events import InstanceState, Situation
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.model_records import model_record
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.revision import Revision, RevisionRole
from mmsup.supervisor.processes.backoff import Exit
from mmsup.supervisor.state.checkpoint import CheckpointWriter, to_text

STATES = (
    InstanceState.BACKOFF,
    InstanceState.ABSENT,
    InstanceState.STARTING,
    InstanceState.LOADING,
    InstanceState.WARMING,
    InstanceState.READY,
)
TENSORS = tuple(TensorSpec(f"input_{number}", "FP32", (-1, 768)) for number in range(4))
Figures = dict[str, float]


def model_set_of(count: int) -> ModelSet:
    """So many models of one instance each, as they are when they serve."""
    model_set = ModelSet()
    model_set.context, model_set.hooks = cast("InstanceContext", None), cast("InstanceHooks", None)
    for number in range(count):
        name = f"model_{number}"
        spec = ModelSpec(name, "1", f"/srv/models/{name}/1", "model.onnx", "ort", "onnxruntime_onnx", inputs=TENSORS)
        version = VersionRevision(spec, Metadata("onnx", 8, TENSORS, TENSORS))
        model = model_set.models[name] = Model(name, None, wanted=True)
        model.revisions.append(Revision(RevisionRole.ACTIVE, "", [version], f"{number:016x}"))
        model_set.add_instance(version).situation = Situation(wanted=True, state=InstanceState.READY)
    return model_set


def death_of(model: Model) -> Iterator[None]:
    """One death of its worker; yields after each change of state."""
    (instance,) = model.instances()
    for state in STATES:
        instance.situation = replace(instance.situation, state=state)
        if state is InstanceState.BACKOFF:
            instance.revision.exits.append(Exit(time.monotonic(), 100.0))
            instance.failure = WorkerFailure("model_restarting", f"worker {model.name} was killed by signal SIGKILL")
        if state is InstanceState.STARTING:
            instance.generation += 1
        if state is InstanceState.READY:
            instance.failure = None
        yield


def by_model(model_set: ModelSet) -> tuple[Callable[[str], None], list[int]]:
    """Saves what a pass over this model saves; the list gets the bytes of each text."""
    sent: list[int] = []
    writer = CheckpointWriter(lambda key, text: sent.append(len(key) + len(text)), lambda _key, _length: None, {})

    def save(name: str) -> None:
        writer.save(SERVER_KEY, ServerRecord(1.0, is_announced=True, next_instance_id=model_set.next_instance_id))
        writer.save(model_key(name), model_record(model_set.models[name]))
        writer.save(GPUS_KEY, GpuRecords(()))

    for name in model_set.models:
        save(name)
    sent.clear()
    return save, sent


def as_one_text(model_set: ModelSet) -> tuple[Callable[[str], None], list[int]]:
    """Saves all models, whichever has changed, unless the text is the same."""
    sent: list[int] = []
    last = b""

    def save(_name: str) -> None:
        nonlocal last
        records = [model_record(each) for each in model_set.models.values()]
        text = base64.b85encode(zlib.compress(b"".join(map(encode, records)), 1))
        if text != last:
            last = text
            sent.append(len(text))

    save("")
    sent.clear()
    return save, sent


def measure(count: int, deaths: int, way: Callable[[ModelSet], tuple[Callable[[str], None], list[int]]]) -> Figures:
    """Medians of a death."""
    model_set = model_set_of(count)
    save, sent = way(model_set)
    names = list(model_set.models)
    took_ms: list[float] = []
    bytes_: list[int] = []
    messages: list[int] = []
    for number in range(deaths):
        name = names[number * 7 % count]
        total_ns = 0
        for _ in death_of(model_set.models[name]):
            started_ns = time.perf_counter_ns()
            save(name)
            total_ns += time.perf_counter_ns() - started_ns
        took_ms.append(total_ns / 1e6)
        bytes_.append(sum(sent))
        messages.append(len(sent))
        sent.clear()
    figures = {"ms": statistics.median(took_ms), "bytes": statistics.median(bytes_)}
    return figures | {"messages": statistics.median(messages)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=500, help="models in the set (500)")
    parser.add_argument("--deaths", type=int, default=20, help="deaths that are measured (20)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    ways: dict[str, Any] = {"by model": by_model, "as one text": as_one_text}
    found = {name: measure(options.models, options.deaths, way) for name, way in ways.items()}
    if options.json:
        print(json.dumps({"models": options.models, "ways": found}, indent=1))
        return
    print(f"{options.models} models, one death, medians of {options.deaths}")
    print(f"{'':14}{'ms':>10}{'bytes':>10}{'messages':>10}")
    for name, figures in found.items():
        print(f"{name:14}{figures['ms']:10.2f}{figures['bytes']:10.0f}{figures['messages']:10.0f}")
    (record,) = [model_record(each) for each in model_set_of(1).models.values()]
    assert record is not None
    print(f"one model's record: {len(to_text(record))} characters")


if __name__ == "__main__":
    main()
