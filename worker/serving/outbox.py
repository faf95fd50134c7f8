"""Replies on their way: all that one loop turn has to say to one gateway goes in one frame."""

from __future__ import annotations

from mmsup.ipc.messages.data import Reply
from mmsup.ipc.transport.codec import pack_some
from mmsup.ipc.transport.control_channel import Closed
from mmsup.ipc.transport.data_channel import FRAME_LIMIT_BYTES
from mmsup.worker.serving.gateway_links import Link


class Outbox:
    """Replies by the link that they go to."""

    def __init__(self) -> None:
        self.replies: dict[Link, list[Reply]] = {}
        """What is not yet sent."""

    def put(self, link: Link, reply: Reply) -> None:
        """Say this with the next flush."""
        replies = self.replies.get(link)
        if replies is None:
            self.replies[link] = [reply]
        else:
            replies.append(reply)

    def flush(self) -> list[Link]:
        """Send what can be sent; the links that are over."""
        gone: list[Link] = []
        for link in list(self.replies):
            try:
                if _send(link, self.replies[link]):
                    del self.replies[link]
            except Closed:
                gone.append(link)
                del self.replies[link]
        return gone

    def drop(self, link: Link) -> None:
        """Nobody waits for these."""
        self.replies.pop(link, None)


def _send(link: Link, replies: list[Reply]) -> bool:
    while replies:
        frame, count = pack_some(replies, FRAME_LIMIT_BYTES)
        if not link.send(frame):
            return False
        del replies[:count]
    return True
