"""The configuration of an uploaded model: what it may say where no code may be sent."""

from __future__ import annotations

import json

import pytest

from mmsup.ipc.errors import CallerError
from mmsup.supervisor.uploads.upload_config import upload_config


def with_parameter(key: str) -> str:
    return json.dumps({"maxBatchSize": 8, "parameters": {key: {"stringValue": "/bin/env"}}})


@pytest.mark.parametrize("key", ["mmsup_python", "mmsup_env", "EXECUTION_ENV_PATH"])
def test_a_parameter_that_may_run_a_program_is_code(key: str) -> None:
    with pytest.raises(
        CallerError, match=f"'{key}' of its config may run any program: .*--allow-code-uploads"
    ) as found:
        upload_config("m", with_parameter(key), may_hold_code=False)
    assert found.value.code == "forbidden"
    assert key in upload_config("m", with_parameter(key), may_hold_code=True)


def test_other_parameters_are_kept() -> None:
    assert "max_batch_size: 8" in upload_config("m", with_parameter("threads"), may_hold_code=False)


def test_what_is_no_configuration_is_refused() -> None:
    with pytest.raises(CallerError, match="failed to load 'm': parameter config is no model configuration"):
        upload_config("m", "[]", may_hold_code=True)
