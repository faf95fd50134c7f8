"""Replies on their way: all that one loop turn has to say to one gateway goes in one frame."""

from __future__ import annotations

from mmsup.ipc.messages.data import InferReply
from mmsup.ipc.transport.codec import pack_limited
from mmsup.ipc.transport.control_channel import ChannelClosed
from mmsup.ipc.transport.data_channel import FRAME_LIMIT_BYTES
from mmsup.worker.serving.gateway_links import GatewayLink


class Outbox:
    """Replies by the link that they go to."""

    def __init__(self) -> None:
        self.replies: dict[GatewayLink, list[InferReply]] = {}
        """What is not yet sent."""

    def add(self, link: GatewayLink, reply: InferReply) -> None:
        """Say this with the next flush."""
        replies = self.replies.get(link)
        if replies is None:
            self.replies[link] = [reply]
        else:
            replies.append(reply)

    def flush(self) -> list[GatewayLink]:
        """Send what can be sent; the links that are over."""
        gone: list[GatewayLink] = []
        for link in list(self.replies):
            try:
                if _send(link, self.replies[link]):
                    del self.replies[link]
            except ChannelClosed:
                gone.append(link)
                del self.replies[link]
        return gone

    def discard(self, link: GatewayLink) -> None:
        """Nobody waits for these."""
        self.replies.pop(link, None)


def _send(link: GatewayLink, replies: list[InferReply]) -> bool:
    while replies:
        frame, count = pack_limited(replies, FRAME_LIMIT_BYTES)
        if not link.send(frame):
            return False
        del replies[:count]
    return True
