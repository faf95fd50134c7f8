"""The errors that cross a process border, classified by whose fault they are.

    MmsupError
    ├── CallerError   the request is invalid, or names something that does not exist
    ├── ModelError    the model's code raised, or its file cannot be loaded
    ├── WorkerError   the worker process died, hung, ran out of memory, or is not up now
    └── ServerError   a limit of the server was reached, a deadline passed, it is stopping, or a bug in it

On the wire an error is its code, a text and a few fields; `make_error` restores the class. The HTTP status of each code
is in `gateway/http/error_status.py` only.
"""

from __future__ import annotations

from typing import ClassVar, Final


class MmsupError(Exception):
    """An error with one of the codes below and a text for a remote client."""

    codes: ClassVar[dict[str, bool]] = {}
    """Code to whether a request that failed with it may be retried."""

    def __init__(
        self,
        code: str,
        text: str,
        *,
        model: str = "",
        retry_after_s: float | None = None,
        retryable: bool | None = None,
    ) -> None:
        assert code in type(self).codes, f"{code!r} is not a code of {type(self).__name__}"
        super().__init__(text)
        self.code = code
        self.text = text
        self.operator_text = text
        """The same for the server's operator, who may see values of the configuration."""
        self.model = model
        self.retry_after_s = retry_after_s
        self.retryable = type(self).codes[code] if retryable is None else retryable


class CallerError(MmsupError):
    codes: ClassVar[dict[str, bool]] = {
        "bad_request": False,
        "unknown_model": False,
        "unknown_version": False,
        "bad_version": False,
        "unknown_path": False,
        "unknown_region": False,
        "method_not_allowed": False,
        "forbidden": False,
        "conflict": True,
        "body_timeout": True,
        "too_large": False,
        "unsupported_media": False,
        "not_implemented": False,
        "http_version": False,
        "request_quarantined": False,
        "sequence_unknown": False,
        "not_found": False,
        "already_exists": False,
    }


class ModelError(MmsupError):
    codes: ClassVar[dict[str, bool]] = {
        "inference_failed": False,
        "load_failed": False,
        "config_mismatch": False,
        "load_timeout": True,
        "does_not_fit": False,
        "model_failed": False,
        "crash_loop": True,
        "call_loop": False,
        "unsupported": False,
        "model_unavailable": True,
    }


class WorkerError(MmsupError):
    codes: ClassVar[dict[str, bool]] = {
        "worker_crashed": True,
        "worker_oom": True,
        "worker_sigbus": True,
        "worker_hung": True,
        "bad_worker_reply": True,
        "gpu_oom": True,
        "gpu_fault": True,
        "insufficient_gpu_memory": True,
        "model_loading": True,
        "model_restarting": True,
        "sequence_lost": False,
    }


class ServerError(MmsupError):
    codes: ClassVar[dict[str, bool]] = {
        "queue_full": True,
        "no_buffer": True,
        "deadline_exceeded": True,
        "cancelled": True,
        "draining": True,
        "unavailable": True,
        "internal": False,
        "too_many_files": True,
        "insufficient_memory": True,
        "evicted": True,
    }


MODEL_CODES: Final = frozenset(
    {
        *("bad_request", "inference_failed", "gpu_oom", "gpu_fault", "sequence_unknown"),
        *("queue_full", "no_buffer", "deadline_exceeded", "cancelled"),
        *("not_found", "already_exists", "unsupported", "model_unavailable"),
    }
)
"""The codes with which a worker may answer a request. All others are for the controller and the gateways to give: they
say what became of a process, or what the server allows."""
SEQUENCE_ID_NEEDED: Final = "inference request to model '{model}' must specify a non-zero or non-empty correlation ID"
AWAITING_ROOM: Final = frozenset({"insufficient_gpu_memory", "insufficient_memory", "too_many_files"})
"""Codes of a load that is tried again as soon as there is room: requests to the model are answered with them too."""
ERROR_CLASSES: Final = (CallerError, ModelError, WorkerError, ServerError)


def make_error(
    code: str, text: str, *, model: str = "", retry_after_s: float | None = None, retryable: bool | None = None
) -> MmsupError:
    """The error with this code; an unknown code becomes `internal`."""
    for family in ERROR_CLASSES:
        if code in family.codes:
            return family(code, text, model=model, retry_after_s=retry_after_s, retryable=retryable)
    return ServerError("internal", text, model=model)


def sequence_start_text(number: int | str, model: str) -> str:
    """Of the refusal of a request whose sequence is not live."""
    text = f"inference request for sequence {number} to model '{model}' must specify the START flag"
    return f"{text} on the first request of the sequence"
