"""Orders that were read before, by the words of their requests, and the last reply to each. Pure.

The same words mean the same order as long as the model is what it was: same version, same metadata. Of a request with
blobs the words are its JSON part; of one in JSON, the text around its numbers (skeleton.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from mmsup.gateway.infer.handler import Order
from mmsup.gateway.infer.response_template import Familiar
from mmsup.gateway.protocol import json_template, json_tensors
from mmsup.gateway.protocol.inference_job import Given, Run
from mmsup.gateway.protocol.json_tensors import Unfit
from mmsup.ipc.specs import Metadata
from mmsup.ipc.two_generation_cache import Halves


class Known:
    """One order."""

    __slots__ = ("order", "reply", "version")

    def __init__(self, order: Order, version: str) -> None:
        self.order = order
        self.version = version
        self.reply: Familiar | None = None
        """The words of the last reply, if other outputs can be put into them."""


class KnownText(Known):
    """One order in JSON, but for the numbers."""

    __slots__ = ("_places",)

    def __init__(self, order: Order, version: str, names: Sequence[str]) -> None:
        run = order.run
        words = run.packed()
        inputs = [Given(each.name, each.datatype, each.shape) for each in run.inputs]
        bare = Run(inputs, run.outputs, run.parameters, run.priority, run.room, words=words)
        super().__init__(order.without_numbers(bare), version)
        self._places = [names.index(each.name) for each in inputs]

    def with_numbers(self, lists: Sequence[bytes]) -> Order | None:
        """The same order of other numbers; None if these do not fit, which the long way words."""
        values = json_template.values(lists)
        if values is None:
            return None
        run = self.order.run
        inputs: list[Given] = []
        try:
            for each, place in zip(run.inputs, self._places, strict=True):
                data = json_tensors.to_bytes(values[place], each.datatype, each.shape)
                inputs.append(Given(each.name, each.datatype, each.shape, data=data))
        except Unfit:
            return None
        return self.order.with_run(Run(inputs, run.outputs, run.parameters, run.priority, run.room, words=run.packed()))


class Orders:
    """All that a gateway knows."""

    def __init__(self) -> None:
        self._known: Halves[Hashable, Known] = Halves()

    def get(self, words: Hashable, version: str, metadata: Metadata) -> Known | None:
        """The order of these words, if the model is what it was."""
        known = self._known.young.get(words) or self._known.get(words)
        if known is None or known.order.metadata is not metadata or known.version != version:
            return None
        return known

    def put(self, words: Hashable, known: Known) -> None:
        """Know this order from now on."""
        self._known.put(words, known)
