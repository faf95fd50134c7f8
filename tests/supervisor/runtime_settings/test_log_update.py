"""Changes of the log settings, as clients send them."""

from __future__ import annotations

from typing import Any

import pytest

from mmsup.ipc.errors import CallerError
from mmsup.ipc.log_settings import LogSettings
from mmsup.supervisor.runtime_settings.log_update import log_document, updated_log


def test_all_settings_are_shown_and_the_file_is_none() -> None:
    assert log_document(LogSettings(format="json", verbose_level=2)) == {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 2,
        "log_format": "json",
    }


def test_what_is_not_named_stays() -> None:
    changed = updated_log(LogSettings(warning=False), {"log_info": False, "log_verbose_level": 1})
    assert changed == LogSettings(info=False, warning=False, verbose_level=1)
    assert updated_log(changed, {}) == changed


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
def test_each_level_has_its_own_setting(level: str) -> None:
    key = {"debug": "log_verbose_level", "critical": "log_error"}.get(level, f"log_{level}")
    alone = {"log_info": False, "log_warning": False, "log_error": False, "log_verbose_level": 0}
    assert not updated_log(LogSettings(), alone).shows(level)
    on: Any = 1 if key == "log_verbose_level" else True  # by its key
    assert updated_log(LogSettings(), {**alone, key: on}).shows(level)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("log_file", "x"), ("log_file", ""), ("log_info", 1), ("log_info", None), ("log_error", "true"),
        ("log_verbose_level", -1), ("log_verbose_level", True), ("log_verbose_level", "1"), ("log_format", "xml"),
        ("log_format", ["json"]), ("log_verbose_level", 1 << 31), ("nope", 1), ("x" * 1000, 1),
    ],
)  # fmt: skip
def test_what_is_not_valid_is_refused_by_its_name(key: str, value: object) -> None:
    with pytest.raises(CallerError) as refused:
        updated_log(LogSettings(), {"log_info": False, key: value})
    assert (refused.value.code, key[:80] in refused.value.text) == ("bad_request", True)
    assert len(refused.value.text) < 300
