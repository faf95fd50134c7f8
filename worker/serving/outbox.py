"""Replies that wait to be sent: all that one loop iteration has for one gateway goes into one frame."""

from __future__ import annotations

import contextlib
from typing import Any

from mmsup.ipc.messages.data import InferReply
from mmsup.ipc.transport.codec import pack_records, plain_record
from mmsup.ipc.transport.control_channel import ChannelClosed
from mmsup.ipc.transport.data_channel import FRAME_LIMIT_BYTES
from mmsup.worker.serving.gateway_links import GatewayLink

PlainReply = list[Any]
"""The fields of an InferReply in the order in which they are packed."""


class Outbox:
    def __init__(self) -> None:
        self.replies: dict[GatewayLink, list[PlainReply]] = {}
        """Unsent replies by the link that they go to."""

    def add(self, link: GatewayLink, reply: InferReply) -> None:
        """Have a reply sent by the next flush."""
        self.unsent(link).append([*plain_record(reply)])

    def unsent(self, link: GatewayLink) -> list[PlainReply]:
        """The unsent replies to a link, to which others may be appended until the next flush."""
        return self.replies.setdefault(link, [])

    def send_some(self) -> None:
        """Send what the gateways take now, in the middle of a run that may last: all lists stay."""
        for link, replies in self.replies.items():
            with contextlib.suppress(ChannelClosed):  # `flush` meets it again
                while replies:
                    frame, count = pack_records(replies, FRAME_LIMIT_BYTES)
                    if not link.send(frame):
                        break
                    del replies[:count]

    def flush(self) -> list[GatewayLink]:
        """Send what the gateways take now; returns the links that turned out to be closed."""
        closed: list[GatewayLink] = []
        for link, replies in list(self.replies.items()):
            try:
                while replies:
                    frame, count = pack_records(replies, FRAME_LIMIT_BYTES)
                    if not link.send(frame):
                        break
                    del replies[:count]
                else:
                    del self.replies[link]
            except ChannelClosed:
                closed.append(link)
                del self.replies[link]
        return closed
