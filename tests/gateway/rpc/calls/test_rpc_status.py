"""Every error has a status of gRPC, and its text reaches the client as it is."""

from __future__ import annotations

from urllib.parse import unquote

import grpc
import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from mmsup.gateway.http import error_status
from mmsup.gateway.rpc.calls import status
from mmsup.ipc.errors import ERROR_CLASSES, CallerError, MmsupError, ModelError, ServerError, WorkerError, make_error

CODES = [code for family in ERROR_CLASSES for code in family.codes]
NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
EXPECTED = {
    400: {"INVALID_ARGUMENT"},
    403: {"PERMISSION_DENIED"},
    404: {"NOT_FOUND", "INVALID_ARGUMENT", "UNIMPLEMENTED"},
    405: {"UNIMPLEMENTED"},
    408: {"DEADLINE_EXCEEDED"},
    409: {"ABORTED", "ALREADY_EXISTS"},
    413: {"RESOURCE_EXHAUSTED"},
    415: {"UNIMPLEMENTED"},
    422: {"FAILED_PRECONDITION"},
    499: {"CANCELLED"},
    500: {"INTERNAL"},
    501: {"UNIMPLEMENTED"},
    502: {"INTERNAL"},
    503: {"UNAVAILABLE"},
    504: {"DEADLINE_EXCEEDED"},
    505: {"INTERNAL"},
    507: {"RESOURCE_EXHAUSTED"},
}
"""Of HTTP, to those of gRPC that mean the same."""


def sent(block: bytes) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in Decoder().decode(block, raw=True)}


def test_every_code_has_a_status_and_every_status_a_code() -> None:
    assert set(status.STATUS) == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_the_status_says_the_same_as_that_of_http_and_is_never_unknown(code: str) -> None:
    name = NAMES[status.STATUS[code]]
    assert name in EXPECTED[error_status.STATUS[code]]
    assert name not in ("UNKNOWN", "OK")


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("unknown_model", "NOT_FOUND"),
        ("bad_version", "INVALID_ARGUMENT"),
        ("unknown_path", "UNIMPLEMENTED"),
        ("request_quarantined", "FAILED_PRECONDITION"),
        ("too_large", "RESOURCE_EXHAUSTED"),
        ("does_not_fit", "RESOURCE_EXHAUSTED"),
        ("bad_worker_reply", "INTERNAL"),
        ("worker_hung", "DEADLINE_EXCEEDED"),
    ],
)
def test_codes_that_clients_go_by(code: str, name: str) -> None:
    assert NAMES[status.STATUS[code]] == name


def test_success_is_a_status_alone() -> None:
    assert sent(status.OK_TRAILERS) == {"grpc-status": "0"}


def test_trailers_of_an_error_say_status_text_and_code() -> None:
    assert sent(status.error_trailers(CallerError("bad_request", "100% wrong: é"))) == {
        "grpc-status": "3",
        "grpc-message": "100%25 wrong: %C3%A9",
        "mmsup-code": "bad_request",
    }


@pytest.mark.parametrize(("given_s", "told"), [(None, "1000"), (0.2, "1000"), (1.5, "2000"), (7, "7000")])
def test_a_later_call_is_told_when(given_s: float | None, told: str) -> None:
    trailers = sent(status.error_trailers(ServerError("queue_full", "x", retry_after_s=given_s)))
    assert trailers["grpc-retry-pushback-ms"] == told


@pytest.mark.parametrize(
    "error",
    [CallerError("bad_request", "x"), ServerError("internal", "x"), WorkerError("worker_oom", "x", retryable=False)],
)
def test_a_later_call_that_fails_again_is_told_nothing(error: MmsupError) -> None:
    assert "grpc-retry-pushback-ms" not in sent(status.error_trailers(error))


def test_what_a_model_says_is_told_without_what_is_inside() -> None:
    error = ModelError("inference_failed", "cannot open /srv/models/m/1/w.bin in pid 4711")
    shown = sent(status.error_trailers(error))["grpc-message"]
    assert unquote(shown) == status.message(error) == error_status.text(error)
    assert "/srv" not in shown
    assert "4711" not in shown


@given(st.text(max_size=60))
def test_a_text_is_plain_bytes_that_are_read_back(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    made = status.encoded(text)
    assert all(0x20 <= each < 0x7F for each in made)
    assert unquote(made.decode()) == text


@pytest.mark.parametrize(
    "text", ["é" * 999, "x" + "é" * 999, "€" * 999, "%" * 2999, "𝄞" * 999], ids=lambda text: text[:2]
)
def test_a_long_text_is_cut_between_its_characters(text: str) -> None:
    made = status.encoded(text)
    assert len(made) <= status.MESSAGE_LIMIT_BYTES
    shown = unquote(made.decode(), errors="strict")
    assert text.startswith(shown)
    assert len(shown) > 300


@pytest.mark.parametrize("code", CODES)
def test_the_trailers_of_any_error_fit_into_a_frame_and_what_clients_take(code: str) -> None:
    made = status.error_trailers(make_error(code, "é" * 100_000, retry_after_s=1e6))
    assert len(made) < 8192
    assert sum(len(name) + len(value) + 32 for name, value in sent(made).items()) < 8192
