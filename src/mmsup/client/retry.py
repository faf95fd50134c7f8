"""Whether a call is tried once more, and when. Pure."""

from __future__ import annotations

from typing import Final

from mmsup.client.errors import ClientError, ServerRefused

FIRST_WAIT_S: Final = 0.05
LONGEST_WAIT_S: Final = 5.0


def next_wait_s(error: ClientError, tried: int, retries: int, left_s: float, jitter: float) -> float | None:
    """Seconds until the next try after `tried` failed ones; None if there is none. `retries`: how many more than the
    first are wanted. `left_s`: until the deadline of the call. `jitter`: between 0 and 1."""
    if tried > retries or not error.retryable:
        return None
    wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (tried - 1)) * (0.5 + jitter / 2)
    if isinstance(error, ServerRefused) and error.retry_after_s:
        wait_s = max(wait_s, error.retry_after_s)
    return wait_s if wait_s < left_s else None
