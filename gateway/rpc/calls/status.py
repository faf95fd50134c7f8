"""Errors as gRPC: the status code of each error code, and the trailers that carry it. Pure.

Codes: https://grpc.github.io/grpc/core/md_doc_statuscodes.html. UNKNOWN is never sent.
"""

from __future__ import annotations

import math
from typing import Final

from mmsup.gateway.http import error_status
from mmsup.ipc.errors import MmsupError
from mmsup.ipc.rpc.header_literals import block_of

OK: Final = 0
CANCELLED: Final = 1
INVALID_ARGUMENT: Final = 3
DEADLINE_EXCEEDED: Final = 4
NOT_FOUND: Final = 5
ALREADY_EXISTS: Final = 6
PERMISSION_DENIED: Final = 7
RESOURCE_EXHAUSTED: Final = 8
FAILED_PRECONDITION: Final = 9
ABORTED: Final = 10
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

STATUS: Final[dict[str, int]] = {
    # the caller's
    "bad_request": INVALID_ARGUMENT,
    "forbidden": PERMISSION_DENIED,
    "unknown_model": NOT_FOUND,
    "unknown_version": NOT_FOUND,
    "bad_version": INVALID_ARGUMENT,
    "unknown_path": UNIMPLEMENTED,
    "unknown_region": NOT_FOUND,
    "method_not_allowed": UNIMPLEMENTED,
    "body_timeout": DEADLINE_EXCEEDED,
    "conflict": ABORTED,
    "too_large": RESOURCE_EXHAUSTED,
    "unsupported_media": UNIMPLEMENTED,
    "request_quarantined": FAILED_PRECONDITION,
    "sequence_unknown": INVALID_ARGUMENT,
    "not_found": NOT_FOUND,
    "already_exists": ALREADY_EXISTS,
    "not_implemented": UNIMPLEMENTED,
    "http_version": INTERNAL,
    # the model's
    "inference_failed": INTERNAL,
    "load_failed": INTERNAL,
    "config_mismatch": INTERNAL,
    "load_timeout": DEADLINE_EXCEEDED,
    "does_not_fit": RESOURCE_EXHAUSTED,
    "model_failed": UNAVAILABLE,
    "crash_loop": UNAVAILABLE,
    "call_loop": INTERNAL,
    "unsupported": UNIMPLEMENTED,
    "model_unavailable": UNAVAILABLE,
    # the worker's
    "worker_crashed": UNAVAILABLE,
    "worker_oom": UNAVAILABLE,
    "worker_sigbus": UNAVAILABLE,
    "worker_hung": DEADLINE_EXCEEDED,
    "bad_worker_reply": INTERNAL,
    "gpu_oom": UNAVAILABLE,
    "gpu_fault": UNAVAILABLE,
    "insufficient_gpu_memory": RESOURCE_EXHAUSTED,
    "model_loading": UNAVAILABLE,
    "model_restarting": UNAVAILABLE,
    "sequence_lost": UNAVAILABLE,
    # ours
    "queue_full": UNAVAILABLE,
    "no_buffer": UNAVAILABLE,
    "deadline_exceeded": DEADLINE_EXCEEDED,
    "cancelled": CANCELLED,
    "draining": UNAVAILABLE,
    "unavailable": UNAVAILABLE,
    "internal": INTERNAL,
    "too_many_files": RESOURCE_EXHAUSTED,
    "insufficient_memory": RESOURCE_EXHAUSTED,
    "evicted": UNAVAILABLE,
}
MESSAGE_LIMIT_BYTES: Final = 4096
CHARACTER_BYTES: Final = 12
"""Of one that is not plain, at most: a text that is too long is cut where it fits in any case."""
_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {ord("%")}


def trailers(code: int, text: str = "", *more: tuple[bytes, bytes]) -> bytes:
    """The block of trailers with this status, and whatever follows it."""
    headers = [(b"grpc-status", b"%d" % code)]
    if text:
        headers.append((b"grpc-message", encoded(text)))
    return block_of([*headers, *more])


OK_TRAILERS: Final = trailers(OK)


def error_trailers(error: MmsupError) -> bytes:
    """With `grpc-retry-pushback-ms` where a later call may succeed, and the server knows when."""
    code = STATUS[error.code]
    more = []
    if code == UNAVAILABLE and error.retryable:
        wait_s = max(1, math.ceil(error.retry_after_s or 1))
        more.append((b"grpc-retry-pushback-ms", b"%d" % (wait_s * 1000)))
    return trailers(code, error_status.text(error), (b"mmsup-code", error.code.encode()), *more)


def message(error: MmsupError) -> str:
    """The text of an error for a remote client."""
    return error_status.text(error)


def encoded(text: str) -> bytes:
    """Percent-encoded as the protocol wants a message: bytes of UTF-8 outside of 0x20 to 0x7e, and %."""
    made = b"".join(bytes((each,)) if each in _PLAIN else b"%%%02X" % each for each in text.encode())
    return made if len(made) <= MESSAGE_LIMIT_BYTES else encoded(text[: MESSAGE_LIMIT_BYTES // CHARACTER_BYTES])
