"""A load that cannot begin is not tried again for each request."""

from __future__ import annotations

import random

from mmsup.ipc.errors import make_error
from mmsup.supervisor.on_demand.waker import RefusedWakes

NO_ROOM = make_error("does_not_fit", "no room", model="m")


def test_until_the_next_try_all_get_the_same_reason_and_the_time_of_that_try() -> None:
    refused = RefusedWakes(random.Random(1))
    assert refused.get("m", "a", 10.0) is None
    refused.put("m", "a", NO_ROOM, 10.0)
    found = refused.get("m", "a", 10.1)
    assert found is not None
    assert (found.code, found.text, found.retryable) == ("does_not_fit", "no room", NO_ROOM.retryable)
    assert found.retry_after_s is not None
    assert 0.2 < found.retry_after_s < 0.6
    assert refused.get("n", "a", 10.1) is None
    assert refused.get("m", "b", 10.1) is None, "other files are tried at once"


def test_the_pauses_grow_to_a_minute_and_end_with_a_load() -> None:
    refused, now_s, pauses = RefusedWakes(random.Random(1)), 0.0, list[float]()
    for _ in range(12):
        refused.put("m", "a", NO_ROOM, now_s)
        began = now_s
        while refused.get("m", "a", now_s) is not None:
            now_s += 0.05
        pauses.append(now_s - began)
    assert pauses[0] < 1
    assert 40 < pauses[-1] < 75
    refused.drop("m")
    assert refused.get("m", "a", now_s) is None
    refused.put("m", "a", NO_ROOM, now_s)
    assert refused.get("m", "a", now_s + 1) is None
