"""The loop of a model whose requests are open side by side, among several models in a process."""

from __future__ import annotations

from mmsup.worker.hosting.member_loop import MemberLoop
from mmsup.worker.streaming.streaming_loop import StreamingLoop


class StreamingMemberLoop(MemberLoop, StreamingLoop):
    def due_ns(self, now_ns: int) -> int | None:
        return StreamingLoop.due_ns(self, now_ns)

    def close(self) -> None:
        super().close()
        self._streaming.streams.close()
