"""Commands of gateways: also the state of a thousand models fits into the reply."""

from __future__ import annotations

import asyncio
from typing import Any

from mmsup.ipc.messages.gateway_control import CommandReply, CommandRequest
from mmsup.ipc.messages.packed_result import unpack
from mmsup.ipc.transport.codec import encode
from mmsup.supervisor.api.gateway_requests import REPLY_LIMIT, answer


class ManyModels:
    def __init__(self, count: int) -> None:
        row = {"state": "asleep", "reason": "not asked for yet; its next request loads it", "versions": {"1": "asleep"}}
        self.result = {"models": [{"name": f"model_{number}", **row} for number in range(count)]}

    async def handle(self, command: str, *_: Any) -> Any:
        assert command == "status"
        return self.result


def test_the_state_of_many_models_fits_into_one_reply() -> None:
    for count in (1, 3000):
        replies, models = list[CommandReply](), ManyModels(count)
        asyncio.run(answer(models, "none", CommandRequest(1, "status", {}), replies.append))  # type: ignore[arg-type]
        (reply,) = replies
        assert (reply.code, unpack(reply.result)) == ("", models.result)
        assert len(encode(reply)) <= REPLY_LIMIT
