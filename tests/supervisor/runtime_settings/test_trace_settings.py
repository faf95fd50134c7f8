"""Trace settings of the server and of its models, as clients send and see them."""

from __future__ import annotations

import pytest

from mmsup.ipc.errors import CallerError
from mmsup.ipc.log_settings import LogSettings
from mmsup.supervisor.runtime_settings.runtime_settings import RuntimeSettings
from mmsup.supervisor.runtime_settings.trace_settings import updated_trace

DEFAULTS = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
}


def test_values_are_strings_and_null_goes_back_to_what_holds_for_all() -> None:
    settings = RuntimeSettings(LogSettings())
    assert settings.trace({}) == DEFAULTS
    for_all = {**DEFAULTS, "trace_rate": "7"}
    assert settings.trace({"trace_rate": 7}) == for_all
    own = settings.model_trace("m", {"trace_level": ["TIMESTAMPS"], "trace_count": "5"}, {"m"})
    assert own == {**for_all, "trace_level": ["TIMESTAMPS"], "trace_count": "5"}
    assert settings.model_trace("other", {}, {"m"}) == for_all
    assert settings.model_trace("m", {"trace_count": None}, {"m"})["trace_count"] == "-1"
    assert settings.trace({"trace_rate": None}) == DEFAULTS
    assert settings.model_trace("m", {"trace_level": None}, {"m"}) == DEFAULTS
    assert settings.record.model_traces == {}, "nothing is kept of a model without settings of its own"


def test_of_models_that_are_gone_nothing_is_kept() -> None:
    settings = RuntimeSettings(LogSettings())
    settings.model_trace("old", {"trace_rate": 1}, {"old", "new"})
    settings.model_trace("new", {"trace_rate": 1}, {"new"})
    assert list(settings.record.model_traces) == ["new"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trace_file", "x"), ("trace_rate", "0"), ("trace_rate", -1), ("trace_rate", "1.5"), ("trace_rate", True),
        ("trace_rate", "9" * 20), ("trace_rate", "²"), ("trace_rate", ""), ("trace_count", "-2"),
        ("trace_count", []), ("log_frequency", {}), ("trace_level", []), ("trace_level", "LOUD"),
        ("trace_level", [["OFF"]]), ("trace_level", 1), ("nope", "1"), ("trace_rate", "--1"), ("trace_rate", " 1"),
    ],
)  # fmt: skip
def test_what_is_not_valid_is_refused_by_its_name(key: str, value: object) -> None:
    with pytest.raises(CallerError) as refused:
        updated_trace({}, {key: value})
    assert (refused.value.code, f"'{key}'" in refused.value.text) == ("bad_request", True)


def test_off_is_off_whatever_stands_beside_it() -> None:
    assert updated_trace({}, {"trace_level": ["TENSORS", "OFF"]}) == {"trace_level": ("OFF",)}
    assert updated_trace({}, {"trace_level": "TENSORS"}) == {"trace_level": ("TENSORS",)}
