"""What may go wrong with a call.

ClientError           code, text, retryable, model
  ServerRefused       the server has answered with an error
  ConnectionFailed    there is no connection, or it ended before the answer was complete
  TimedOut            there was no answer in time
  InvalidReply        the answer is none of the protocol
"""

from __future__ import annotations


class ClientError(Exception):
    """`code` is one word for programs, as in the server's error bodies; `retryable`: another try may succeed."""

    code = "client"
    retryable = False

    def __init__(self, text: str, model: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.model = model


class ServerRefused(ClientError):  # noqa: N818 - named by what happened
    """`status`: of HTTP. `retry_after_s`: when the server wants to be asked again, 0 if it does not say."""

    def __init__(
        self, status: int, code: str, text: str, model: str = "", *, retryable: bool = False, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(text, model)
        self.status = status
        self.code = code
        self.retryable = retryable
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.text} ({self.status} {self.code})"


class ConnectionFailed(ClientError):  # noqa: N818 - as above
    """After `was_sent` the server may have done what was asked."""

    code = "connection_failed"
    retryable = True

    def __init__(self, text: str, model: str = "", *, was_sent: bool = False) -> None:
        super().__init__(text, model)
        self.was_sent = was_sent


class TimedOut(ClientError):  # noqa: N818 - as above
    code = "timed_out"


class InvalidReply(ClientError):  # noqa: N818 - as above
    code = "invalid_reply"
