"""Sends requests to many models, as a closed and as an open loop, and keeps every reply for a later comparison."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from small_models import INPUTS, OUTPUTS, SmallModel

TIMEOUT_S = 150.0
"""Longer than the server's default deadline: what is not answered by then is lost."""
VARIANTS = 4096
"""Different inputs; requests take them in turn."""
MOST_CONNECTIONS = 2048
REPLY_BYTES = OUTPUTS * 4


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one request."""

    model: int
    variant: int
    """Which input it had."""
    due_s: float
    """When it was to be sent, by the monotonic clock; in an open loop latency counts from then."""
    took_s: float
    status: int
    """0 without a reply."""
    is_cold: bool
    """Whether it waited for its model to be loaded, as the server says."""
    body: bytes
    """Of a result the tensor, else the words of the error."""


class Connection:
    """One kept connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, message: bytes) -> tuple[int, bool, bytes]:
        """Status, whether the model was cold, body."""
        self._writer.write(message)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        at = head.index(b"\r\ncontent-length: ") + 18
        body = await self._reader.readexactly(int(head[at : head.index(b"\r\n", at)]))
        status = int(head[9:12])
        return status, b"\r\nx-mmsup-cold: 1" in head, body[-REPLY_BYTES:] if status == 200 else body

    @property
    def is_closed(self) -> bool:
        """By the server."""
        return self._reader.at_eof()

    def close(self) -> None:
        self._writer.transport.abort()


class DensityClient:
    """Asks the models of one server."""

    def __init__(self, address: tuple[str, int], models: Sequence[SmallModel], seed: int) -> None:
        self._address = address
        self._heads = [model.request() for model in models]
        self._models = models
        draw = np.random.default_rng((seed, 11))
        self._inputs = draw.uniform(-1, 1, (VARIANTS, INPUTS)).astype(np.float32)
        self._tensors = [row.tobytes() for row in self._inputs]
        self._variants = itertools.count()
        self._idle: list[Connection] = []
        self.replaced = 0
        """Kept connections that the server closed when a request was on its way to it."""
        self._open = asyncio.Semaphore(MOST_CONNECTIONS)
        self.on_begin: Callable[[int], None] = lambda _: None
        self.on_end: Callable[[int], None] = lambda _: None
        """Called with the model of each request, before it and after its reply."""

    def close(self) -> None:
        """Close its idle connections."""
        for each in self._idle:
            each.close()
        self._idle.clear()

    async def ask(self, model: int, due_s: float) -> Reply:
        """One request; whatever becomes of it is in the reply."""
        variant = next(self._variants) % VARIANTS
        self.on_begin(model)
        try:
            async with asyncio.timeout(TIMEOUT_S), self._open:
                status, is_cold, body = await self._send(self._heads[model] + self._tensors[variant])
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            status, is_cold, body = 0, False, f"{type(error).__name__} {error}".encode()
        self.on_end(model)
        return Reply(model, variant, due_s, time.monotonic() - due_s, status, is_cold, body)

    async def _send(self, message: bytes) -> tuple[int, bool, bytes]:
        """Over a kept connection if there is one. The server closes those that are idle for long: one that it closed
        before it answered anything is replaced, as any client of HTTP does."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed:
                try:
                    return await self._send_over(connection, message)
                except (asyncio.IncompleteReadError, ConnectionResetError) as error:
                    if getattr(error, "partial", b""):
                        raise
                    self.replaced += 1
        return await self._send_over(Connection(*await asyncio.open_connection(*self._address)), message)

    async def _send_over(self, connection: Connection, message: bytes) -> tuple[int, bool, bytes]:
        try:
            found = await connection.ask(message)
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return found

    async def one_by_one(self, models: Iterable[int]) -> list[Reply]:
        """Each request after the reply to the one before."""
        return [await self.ask(model, time.monotonic()) for model in models]

    async def closed_loop(self, models: Sequence[int], connections: int, run_s: float) -> list[Reply]:
        """So many clients that ask the models of a sequence in turn, over and over, each when it has its reply."""
        upcoming, end_s = itertools.cycle(models), time.monotonic() + run_s
        replies: list[Reply] = []

        async def client() -> None:
            while (now_s := time.monotonic()) < end_s:
                replies.append(await self.ask(next(upcoming), now_s))

        await asyncio.gather(*(client() for _ in range(connections)))
        return replies

    async def open_loop(self, models: Sequence[int], at_s: Sequence[float]) -> list[Reply]:
        """Each request at its time from now, whatever became of the others; in the order of sending."""
        began_s = time.monotonic()
        tasks = []
        async with asyncio.TaskGroup() as group:
            for model, offset_s in zip(models, at_s, strict=True):
                if (wait_s := began_s + offset_s - time.monotonic()) > 0:
                    await asyncio.sleep(wait_s)
                tasks.append(group.create_task(self.ask(model, began_s + offset_s)))
        return [task.result() for task in tasks]

    def faults(self, replies: Iterable[Reply]) -> Iterator[str]:
        """Why replies are not right: refused, lost, or not the answer of their own model to their own input."""
        answered: dict[int, list[Reply]] = defaultdict(list)
        for reply in replies:
            if reply.status != 200:
                words = reply.body[:300].decode(errors="replace")
                yield f"{self._models[reply.model].name}: {reply.status} after {reply.took_s:.2f} s: {words}"
            elif len(reply.body) != REPLY_BYTES:
                yield f"{self._models[reply.model].name}: a result of {len(reply.body)} bytes"
            else:
                answered[reply.model].append(reply)
        for model, found in answered.items():
            yield from self._wrong(self._models[model], found)

    def _wrong(self, model: SmallModel, replies: Sequence[Reply]) -> Iterator[str]:
        expected = model.answers(self._inputs[[reply.variant for reply in replies]])
        found = np.frombuffer(b"".join(reply.body for reply in replies), np.float32).reshape(expected.shape)
        near = np.isclose(found, expected, rtol=1e-3, atol=1e-3).all(axis=1)
        for place in np.flatnonzero(~near):
            yield f"{model.name}: wrong answer {found[place][:3]} instead of {expected[place][:3]}"
