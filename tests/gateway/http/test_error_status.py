"""Every error code has an HTTP status, and no error body reveals internals of the machine."""

from __future__ import annotations

import json
import time

import pytest

from mmsup.gateway.http import error_status
from mmsup.ipc.errors import (
    AWAITING_ROOM,
    ERROR_CLASSES,
    CallerError,
    MmsupError,
    ModelError,
    ServerError,
    WorkerError,
    make_error,
)

CODES = [code for family in ERROR_CLASSES for code in family.codes]


def test_every_code_has_a_status_and_every_status_a_code() -> None:
    assert set(error_status.STATUS) == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_a_callers_error_is_4xx_and_no_other_is(code: str) -> None:
    is_callers = code in CallerError.codes and code not in ("not_implemented", "http_version")
    assert (400 <= error_status.STATUS[code] < 500) == (is_callers or code == "cancelled")


@pytest.mark.parametrize("code", CODES)
def test_retry_after_stands_where_it_is_our_state_that_passes(code: str) -> None:
    """503 always; 507 where room can come, but not for a model that is larger than its cap."""
    expected = error_status.STATUS[code] == 503 or code in AWAITING_ROOM
    assert ("Retry-After" in error_status.headers(make_error(code, "x"))) == expected


@pytest.mark.parametrize(("given", "told"), [(None, "1"), (0.0, "1"), (0.2, "1"), (1.5, "2"), (7, "7")])
def test_retry_after_is_whole_seconds_and_at_least_one(given: float | None, told: str) -> None:
    assert error_status.headers(ServerError("queue_full", "x", retry_after_s=given))["Retry-After"] == told


def test_a_body_names_code_model_request_and_whether_to_retry() -> None:
    error = WorkerError("worker_crashed", "it died", model="bert")
    assert json.loads(error_status.body(error, "r1")) == {
        "error": "it died",
        "code": "worker_crashed",
        "model": "bert",
        "request_id": "r1",
        "retryable": True,
    }


def test_a_body_leaves_out_what_is_not_known() -> None:
    assert json.loads(error_status.body(ServerError("internal", "x"))) == {
        "error": "x",
        "code": "internal",
        "retryable": False,
    }


TRACE = """Traceback (most recent call last):
  File "/home/me/m/1/model.py", line 3, in infer
    1/0
ZeroDivisionError: division by zero"""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("cannot open /home/me/models/bert/1/model.onnx: gone", "cannot open <path>: gone"),
        ("map /dev/shm/abc failed", "map <path> failed"),
        ("tensor at 0x7f3a00 of pid 4121", "tensor at <address> of pid"),
        (TRACE, "ZeroDivisionError: division by zero"),
        ("N/A [1/2] 3 / 4 ./ ../ a/b ~ ...", "N/A [1/2] 3 / 4 ./ ../ a/b ~ ..."),
        ("no weights at file:///srv/m/key.pem nor ../conf/m.yaml", "no weights at <url> nor <path>"),
        ("('s3://user:pw@bucket/x'), postgres://u:p'w@h/db.", "('<url>'), <url>."),
        ("no ./m.yaml, ../../m.yaml, ~/m.yaml or ~me/m.yaml", "no <path>, <path>, <path> or <path>"),
        ("no 'conf/m.yaml', conf//a/b.onnx:3 nor m/1/model.py.", "no '<path>', <path>:3 nor <path>."),
        ("m/s, 3/4.5, text/plain of BAAI/bge-v1.5: x/Add:0", "m/s, 3/4.5, text/plain of BAAI/bge-v1.5: x/Add:0"),
        ("/etc/m/" * 3, "<path>"),
        ("gone.../srv//m", "gone...<path>"),
        ("two\nlines\x1b[31m", "two lines [31m"),
    ],
)
def test_model_errors_are_redacted(said: str, told: str) -> None:
    assert error_status.text(ModelError("inference_failed", said)) == told


@pytest.mark.parametrize(
    "unit", ["a", "a-", "/", "./", "../", "~", "~a", "-/", "://", "'", ".", "a:", "://'", "a/", "a.b/"]
)
def test_a_long_error_of_a_model_does_not_hold_up_the_gateway(unit: str) -> None:
    started = time.process_time()
    error_status.redact(unit * 200_000)
    assert time.process_time() - started < 5


def test_a_tensor_that_looks_like_a_path_keeps_its_name_in_a_callers_error() -> None:
    assert error_status.text(CallerError("bad_request", "input '/conv1/out' is wrong")) == "input '/conv1/out' is wrong"


def test_a_text_is_cut_to_its_bound() -> None:
    assert len(error_status.text(ModelError("inference_failed", "x" * 10_000))) == error_status.TEXT_LIMIT


def test_half_a_surrogate_pair_in_an_error_does_not_prevent_the_response() -> None:
    error: MmsupError = CallerError("bad_request", "name '\ud800'")
    assert b"name" in error_status.body(error)
