"""An engine whose clients see other shapes than its model: `reshape` of a tensor in config.pbtxt.

Clients send and get `dims`, the model takes and gives `reshape: { shape: [...] }`, with as many elements. A size that
is left open (-1) is the same in both, in order; the batch axis stays in front.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.execution.engine import (
    NO_BUFFERS,
    Engine,
    OffloadingEngine,
    OutputBuffers,
    Response,
    Responses,
    as_offloading_engine,
    as_streaming_engine,
    completed_spec,
)
from mmsup.worker.execution.responses import mapped

Shape = tuple[int, ...]
Reshapes = dict[str, tuple[Shape, Shape]]
"""By tensor: the shape of clients, the shape of the model."""


def with_reshapes(engine: Engine, spec: ModelSpec) -> Engine:
    """The engine itself if nothing is to be reshaped."""
    inputs, outputs = _reshapes(spec, "input", spec.inputs), _reshapes(spec, "output", spec.outputs)
    return ReshapedEngine(engine, inputs, outputs) if inputs or outputs else engine


def reshaped(actual: Shape, source: Shape, target: Shape, batch_axes: int) -> Shape:
    """The shape of the same tensor on the other side, given the declared shapes of both. Pure."""
    own = actual[batch_axes:]
    open_sizes = iter([size for size, declared in zip(own, source, strict=True) if declared == -1])
    return (*actual[:batch_axes], *(next(open_sizes) if size == -1 else size for size in target))


class ReshapedEngine:
    """The engine of a model, with its inputs and outputs reshaped. Outputs are views where numpy allows it."""

    def __init__(self, engine: Engine, inputs: Reshapes, outputs: Reshapes) -> None:
        self.inner = engine
        self._inputs = inputs
        self._outputs = outputs
        self._batch_axes = 0
        self.completed_spec: ModelSpec | None = None

    @property
    def can_offload(self) -> bool:
        return as_offloading_engine(self.inner) is not None

    @property
    def calls(self) -> object:
        return getattr(self.inner, "calls", None)

    @property
    def is_streaming(self) -> bool:
        return as_streaming_engine(self.inner) is not None

    def load(self, spec: ModelSpec) -> Metadata:
        inner = replace(
            spec, inputs=_with_inner(spec.inputs, self._inputs), outputs=_with_inner(spec.outputs, self._outputs)
        )
        metadata = self.inner.load(inner)
        self._batch_axes = 1 if metadata.max_batch_size else 0
        completed = completed_spec(self.inner, inner)
        self.completed_spec = replace(spec, max_batch_size=completed.max_batch_size, batching=completed.batching)
        return replace(
            metadata,
            inputs=_with_outer(metadata.inputs, self._inputs),
            outputs=_with_outer(metadata.outputs, self._outputs),
        )

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        del buffers  # they have the shapes of clients
        return self._outer(self.inner.infer(self._inner(inputs), wanted))

    def respond(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> Responses:
        engine = as_streaming_engine(self.inner)
        assert engine is not None, "its engine answers once"
        return mapped(engine.respond(self._inner(inputs), wanted), self._outer)

    def _inner(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        given = dict(inputs)
        for name, (source, target) in self._inputs.items():
            if name in given:
                given[name] = given[name].reshape(reshaped(given[name].shape, source, target, self._batch_axes))
        return given

    def _outer(self, response: Response) -> dict[str, Array]:
        made = dict(response)
        for name, (target, source) in self._outputs.items():
            if name in made:
                if made[name].ndim != len(source) + self._batch_axes:
                    raise ValueError(
                        f"output '{name}' has shape {list(made[name].shape)}, and its `reshape` says {list(source)}"
                    )
                made[name] = made[name].reshape(reshaped(made[name].shape, source, target, self._batch_axes))
        return made

    def shrink(self) -> None:
        self.inner.shrink()

    def device_bytes(self) -> int:
        return self.inner.device_bytes()

    def offload(self) -> None:
        self._offloading().offload()

    def restore(self) -> None:
        self._offloading().restore()

    def _offloading(self) -> OffloadingEngine:
        engine = as_offloading_engine(self.inner)
        assert engine is not None, "its engine cannot be offloaded"
        return engine

    def unload(self) -> None:
        self.inner.unload()


def _reshapes(spec: ModelSpec, key: str, tensors: Iterable[TensorSpec]) -> Reshapes:
    """Those of the configuration; a tensor that mmsup.yaml declares otherwise keeps that shape."""
    shapes = {each.name: each.shape for each in tensors}
    declared: list[dict[str, Any]] = spec.config.get(key, [])  # JSON of the configuration
    return {
        each["name"]: (tuple(each.get("dims", ())), tuple(each["reshape"].get("shape", ())))
        for each in declared
        if "reshape" in each and shapes.get(each["name"]) == tuple(each.get("dims", ()))
    }


def _with_inner(tensors: Iterable[TensorSpec], reshapes: Reshapes) -> tuple[TensorSpec, ...]:
    return tuple(replace(each, shape=reshapes[each.name][1]) if each.name in reshapes else each for each in tensors)


def _with_outer(tensors: Iterable[TensorSpec], reshapes: Reshapes) -> tuple[TensorSpec, ...]:
    return tuple(replace(each, shape=reshapes[each.name][0]) if each.name in reshapes else each for each in tensors)
