"""Why a call of another model gave no result, as the code of the calling model sees it."""

from __future__ import annotations

from typing import Final

PASSED_ON: Final = frozenset({"queue_full", "no_buffer", "deadline_exceeded", "cancelled"})
"""Codes that a request fails with if its model does not catch them: they say the same of it as of the call."""


class CallError(Exception):
    """`code`: one of the codes of errors (`unknown_model`, `worker_crashed`, `deadline_exceeded`, `call_loop`, ...);
    `model`: the one that was called; `retryable`: whether another call may succeed."""

    def __init__(self, code: str, text: str, *, model: str = "", retryable: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.model = model
        self.retryable = retryable

    @property
    def own_code(self) -> str:
        """The code of a request whose model did not catch this."""
        return self.code if self.code in PASSED_ON else "inference_failed"
