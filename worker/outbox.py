"""Replies on their way: all that one loop turn has to say to one gateway goes in one frame."""

from __future__ import annotations

from typing import Final

from mmsup.ipc.channel import PeerGone, WorkerEnd
from mmsup.ipc.codec import pack_frame
from mmsup.ipc.messages import Reply

FRAME_RECORDS: Final = 256
"""Replies a frame at most: with every output inline it stays near a megabyte."""


class Outbox:
    """Replies by the identity of their gateway."""

    def __init__(self, end: WorkerEnd) -> None:
        self._end = end
        self._replies: dict[bytes, list[Reply]] = {}

    def __bool__(self) -> bool:
        return bool(self._replies)

    def put(self, identity: bytes, reply: Reply) -> None:
        """Say this with the next flush."""
        replies = self._replies.get(identity)
        if replies is None:
            self._replies[identity] = [reply]
        else:
            replies.append(reply)

    def flush(self) -> list[bytes]:
        """Send what can be sent; the gateways that are not there any more. A send may consume the edge of something
        that arrived: receive until dry afterwards."""
        gone: list[bytes] = []
        for identity in list(self._replies):
            try:
                if self._send(identity, self._replies[identity]):
                    del self._replies[identity]
            except PeerGone:
                gone.append(identity)
                del self._replies[identity]
        return gone

    def drop(self, identity: bytes) -> None:
        """A gateway is gone: nobody waits for these."""
        self._replies.pop(identity, None)

    def _send(self, identity: bytes, replies: list[Reply]) -> bool:
        while replies:
            if not self._end.send(identity, pack_frame(replies[:FRAME_RECORDS])):
                return False
            del replies[:FRAME_RECORDS]
        return True
