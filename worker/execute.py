"""Running the model: alone or as a batch, with what is owed to each caller when it does not go well.

A batch of several that raises is run again one by one, so that only the guilty request fails. Device memory that ran
out is given back and asked for once more, by halves where there is a batch axis. Every other fault of a device ends
the process: DeviceLost goes through to `__main__`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from mmsup.ipc.array import Array, datatype_of
from mmsup.ipc.page import Activity, PageWriter
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.worker.engines.contract import Engine
from mmsup.worker.engines.cuda import DeviceFault
from mmsup.worker.failure import Failure
from mmsup.worker.gather import Arrays, gather, rows, split
from mmsup.worker.guard import DeviceLost, guarded
from mmsup.worker.results import Output, outputs_of


class Execution:
    """One loaded engine."""

    def __init__(self, engine: Engine, spec: ModelSpec, metadata: Metadata, page: PageWriter) -> None:
        self.engine = engine
        self.spec = spec
        self.metadata = metadata
        self._page = page
        self._datatypes = {each.name: each.datatype for each in metadata.outputs}
        self._all = tuple(self._datatypes)

    def run(self, jobs: Sequence[Arrays], outputs: Sequence[str]) -> list[Arrays | Failure]:
        """One outcome for each job, in order; jobs of more than one run together."""
        if len(jobs) == 1:
            return [self.run_once(jobs[0], outputs)]
        job = guarded(lambda: gather(jobs), self.spec)  # a batch may not fit where each of its parts does
        whole = job if isinstance(job, Failure) else self._try(job, outputs)
        if isinstance(whole, Failure):
            if whole.device is DeviceFault.NONE:
                return [self.run_once(each, outputs) for each in jobs]
            return [whole] * len(jobs)
        sizes = [rows(each) for each in jobs]
        fault = self._fault(whole, outputs, sum(sizes))
        if fault is not None:
            return [fault] * len(jobs)
        return [*split(whole, sizes)]

    def run_once(self, job: Arrays, outputs: Sequence[str] = ()) -> Arrays | Failure:
        """The outcome of one job."""
        made = self._try(job, outputs)
        if isinstance(made, Failure):
            return made
        return self._fault(made, outputs, rows(job)) or made

    def outputs(self, arrays: Arrays) -> tuple[Output, ...] | Failure:
        """The bytes of a good outcome. Guarded: elements of an array of objects are the model's own."""
        return guarded(lambda: outputs_of(arrays), self.spec)

    def _try(self, job: Arrays, outputs: Sequence[str]) -> Arrays | Failure:
        made = self._infer(job, outputs)
        if not isinstance(made, Failure) or made.device is not DeviceFault.MEMORY:
            return made
        self.engine.shrink()
        size = rows(job)
        if not self.spec.max_batch_size or size < 2:
            return self._infer(job, outputs)
        halves: list[Arrays] = []
        for half in split(job, [size // 2, size - size // 2]):
            made = self._infer(half, outputs)
            if isinstance(made, Failure):
                return made
            halves.append(made)
        return gather(halves)

    def _infer(self, job: Arrays, outputs: Sequence[str]) -> Arrays | Failure:
        wanted = outputs or self._all
        self._page.enter(Activity.BUSY, time.monotonic_ns())
        made = guarded(lambda: self.engine.infer(job, wanted), self.spec)
        if not isinstance(made, Failure):
            return {name: made[name] for name in wanted if name in made}
        if made.device is DeviceFault.LOST:
            raise DeviceLost(made.text)
        return made

    def _fault(self, made: Mapping[str, Array], outputs: Sequence[str], size: int) -> Failure | None:
        """What is wrong with the outputs, by what the model declares."""
        for name in outputs or self._all:
            array = made.get(name)
            text = "is declared, but was not given" if array is None else self._output_fault(name, array, size)
            if text:
                return Failure("inference_failed", f"model '{self.spec.name}': output '{name}' {text}")
        return None

    def _output_fault(self, name: str, array: Array, size: int) -> str:
        datatype, declared = datatype_of(array), self._datatypes.get(name)
        if datatype != declared:
            return f"is declared as {declared}, but is {datatype or array.dtype}"
        if self.spec.max_batch_size and (not array.ndim or array.shape[0] != size):
            return f"has shape {list(array.shape)} for a batch of {size}"
        return ""
