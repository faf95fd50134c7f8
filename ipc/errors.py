"""The errors that cross a process border, by whose fault they are.

    MmsupError
    ├── CallerError   the request is wrong, or asks for what is not there
    ├── ModelError    the model's own code or artefact failed
    ├── WorkerError   the process died, hung, ran out of memory, or is not up now
    └── ServerError   a bound of ours was reached, or a bug of ours

On the wire an error is its code, a text and a few fields; `error_of` makes the class again.
Which HTTP status a code has is known by `gateway/http/error_status.py` alone.
"""

from __future__ import annotations

from typing import ClassVar, Final


class MmsupError(Exception):
    """An error with a code of the catalogue below, and a text fit for a remote client."""

    codes: ClassVar[dict[str, bool]] = {}

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
        self.model = model
        self.retry_after_s = retry_after_s
        self.retryable = type(self).codes[code] if retryable is None else retryable


class CallerError(MmsupError):
    """The caller's fault: sending the same again will fail again."""

    codes: ClassVar[dict[str, bool]] = {
        "bad_request": False,
        "unknown_model": False,
        "unknown_version": False,
        "bad_version": False,
        "unknown_path": False,
        "method_not_allowed": False,
        "forbidden": False,
        "conflict": True,
        "body_timeout": True,
        "too_large": False,
        "unsupported_media": False,
        "not_implemented": False,
        "request_quarantined": False,
    }


class ModelError(MmsupError):
    """The model's fault: its code raised, or its artefact cannot be loaded."""

    codes: ClassVar[dict[str, bool]] = {
        "inference_failed": False,
        "load_failed": False,
        "load_timeout": True,
        "does_not_fit": False,
        "model_failed": False,
        "crash_loop": True,
    }


class WorkerError(MmsupError):
    """A worker's fault: it died with the request, hung, or is not serving at this moment."""

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
    }


class ServerError(MmsupError):
    """Ours: a bound was reached, a deadline passed, we are stopping, or a bug."""

    codes: ClassVar[dict[str, bool]] = {
        "queue_full": True,
        "no_buffer": True,
        "deadline_exceeded": True,
        "cancelled": True,
        "draining": True,
        "unavailable": True,
        "internal": False,
    }


ERROR_CLASSES: Final = (CallerError, ModelError, WorkerError, ServerError)


def make_error(
    code: str,
    text: str,
    *,
    model: str = "",
    retry_after_s: float | None = None,
    retryable: bool | None = None,
) -> MmsupError:
    """The error that a peer described by its code; a code we do not know is a bug of ours."""
    for family in ERROR_CLASSES:
        if code in family.codes:
            return family(code, text, model=model, retry_after_s=retry_after_s, retryable=retryable)
    return ServerError("internal", text, model=model)
