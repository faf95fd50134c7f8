"""Errors as HTTP responses: the HTTP status of each error code, headers, JSON body. Pure."""

from __future__ import annotations

import math
import re
from typing import Final

import orjson

from mmsup.ipc.errors import CallerError, MmsupError

STATUS: Final[dict[str, int]] = {
    # the caller's
    "bad_request": 400,
    "forbidden": 403,
    "unknown_model": 404,
    "unknown_version": 404,
    "bad_version": 404,
    "unknown_path": 404,
    "unknown_region": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "conflict": 409,
    "too_large": 413,
    "unsupported_media": 415,
    "request_quarantined": 422,
    "sequence_unknown": 400,
    "not_found": 404,
    "already_exists": 409,
    "not_implemented": 501,
    "http_version": 505,
    # the model's
    "inference_failed": 500,
    "load_failed": 500,
    "config_mismatch": 500,
    "load_timeout": 504,
    "does_not_fit": 507,
    "model_failed": 503,
    "crash_loop": 503,
    "call_loop": 500,
    "unsupported": 501,
    "model_unavailable": 503,
    # the worker's
    "worker_crashed": 503,
    "worker_oom": 503,
    "worker_sigbus": 503,
    "worker_hung": 504,
    "bad_worker_reply": 502,
    "gpu_oom": 503,
    "gpu_fault": 503,
    "insufficient_gpu_memory": 507,
    "model_loading": 503,
    "model_restarting": 503,
    "sequence_lost": 503,
    # ours
    "queue_full": 503,
    "no_buffer": 503,
    "deadline_exceeded": 504,
    "cancelled": 499,
    "draining": 503,
    "unavailable": 503,
    "internal": 500,
    "too_many_files": 507,
    "insufficient_memory": 507,
    "evicted": 503,
}
CLOSING: Final = frozenset({"body_timeout", "too_large", "draining"})
"""After these the connection is closed, since the rest of the request would be read for nothing."""
UNAVAILABLE: Final = 503
NO_ROOM: Final = 507
"""Passes where it is retryable: another model leaves, or memory of a device comes back."""
TEXT_LIMIT: Final = 1000
_TRACEBACK: Final = "Traceback (most recent call last)"
_REDACTIONS: Final = (
    (re.compile(r"(?<![\w+.-])[\w+.-]*://\S*(?<![\"'`)\]}>.,;:])"), "<url>"),
    (re.compile(r"(?<![\w./~])(?:\.\.?|~\w*)(?:/+[\w.@+~-]+)+/*"), "<path>"),  # relative to a folder or a home
    (re.compile(r"(?<![\w/])(?:/+[\w.@+~-]+){2,}/*"), "<path>"),
    (re.compile(r"\b0x[0-9a-fA-F]+"), "<address>"),
    (re.compile(r"\bpid[ =:]*\d+"), "pid"),
)
_SLASHED_WORD: Final = re.compile(r"(?<![\w.@+~/<>-])[\w@+-][\w.@+~-]*+(?:/++[\w.@+~-]++)++/*+")
_FILE_SUFFIX: Final = re.compile(r"\w\.[A-Za-z]\w*$")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f]+")


def headers(error: MmsupError) -> dict[str, str]:
    made: dict[str, str] = {}
    status = STATUS[error.code]
    if status == UNAVAILABLE or (status == NO_ROOM and error.retryable):
        made["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or 1)))
    if error.code == "unsupported_media":
        made["Accept-Encoding"] = "gzip, deflate, identity"
    if error.code in CLOSING:
        made["Connection"] = "close"
    return made


def body(error: MmsupError, request_id: str = "") -> bytes:
    made: dict[str, str | bool] = {"error": text(error), "code": error.code}
    if error.model:
        made["model"] = error.model
    if request_id:
        made["request_id"] = request_id
    made["retryable"] = error.retryable
    return orjson.dumps(made)


def text(error: MmsupError) -> str:
    """The message of an error for a remote client.

    A caller's error refers to what the caller sent (a tensor may be called `/conv1/out`) and is unchanged. All others
    may quote a model or a library: paths, URLs, addresses, process ids and tracebacks are removed.
    """
    message = error.text if isinstance(error, CallerError) else redact(error.text)
    message = _UNPRINTABLE.sub(" ", message).encode("utf-8", "replace").decode()
    return message if len(message) <= TEXT_LIMIT else message[: TEXT_LIMIT - 1] + "…"


def redact(message: str) -> str:
    """Without paths, URLs, addresses, process ids and tracebacks, in time linear in the message."""
    before, traceback, after = message.partition(_TRACEBACK)
    if traceback:
        lines = [each for each in after.splitlines() if each.strip()]
        message = before + (lines[-1].strip() if lines else "")
    for pattern, replacement in _REDACTIONS:
        message = pattern.sub(replacement, message)
    return _SLASHED_WORD.sub(_without_file, message)


def _without_file(word: re.Match[str]) -> str:
    """A relative path without its first dot (`conf/x.yaml`) is told from `N/A` and `m/s` by the suffix of its file."""
    path = word[0].rstrip(".")
    return "<path>" + word[0][len(path) :] if _FILE_SUFFIX.search(path.rstrip("/")) else word[0]
