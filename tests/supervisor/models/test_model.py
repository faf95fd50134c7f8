from __future__ import annotations

import pytest

from mmsup.ipc.messages.gateway_control import VersionState
from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.supervisor.config.config_error import ConfigError
from mmsup.supervisor.models.model import Model, default_version
from mmsup.supervisor.repository.scanner import ModelEntry, missing_model


def test_the_route_of_a_model_with_very_many_invalid_versions_fits_into_one_message() -> None:
    broken = {str(number): "holds no model.onnx, and so on, in many words" for number in range(1, 5000)}
    model = Model("m", ModelEntry("m", errors=(ConfigError("m", "many"),), invalid_versions=broken), wanted=True)
    route = model.route()
    assert len(encode(route)) < MESSAGE_LIMIT
    assert [each.version for each in route.versions] == [route.default]


def test_a_wanted_model_without_revision_and_entry_is_absent() -> None:
    model = Model("m", None, wanted=True)
    assert (model.state(), model.reason()) == ("absent", "")
    assert model.route().versions == ()


def test_a_model_that_no_repository_holds_is_failed_with_a_reason() -> None:
    model = Model("m", missing_model("m"), wanted=True)
    assert model.state() == "failed"
    assert "no repository holds this model" in model.reason()


def version(number: str, state: str, code: str = "") -> VersionState:
    return VersionState(number, state, code, "", 0.0, None, None)


@pytest.mark.parametrize(
    ("newest", "default"),
    [
        (version("3", "ready"), "3"),
        (version("3", "absent"), "3"),
        (version("3", "loading"), "3"),
        (version("3", "backoff", "model_restarting"), "3"),
        (version("3", "loading", "model_restarting"), "3"),
        (version("3", "backoff", "model_failed"), "1"),
        (version("3", "loading", "model_failed"), "1"),
        (version("3", "failed", "crash_loop"), "1"),
        (version("3", "quarantined", "model_restarting"), "1"),
    ],
)
def test_a_client_that_names_no_version_never_sees_an_older_one_only_because_the_newest_is_being_started(
    newest: VersionState, default: str
) -> None:
    assert default_version([version("1", "ready"), newest]) == default


def test_if_no_version_can_serve_a_request_is_told_of_the_newest() -> None:
    assert default_version([version("1", "failed", "model_failed"), version("3", "failed", "crash_loop")]) == "3"
    assert not default_version([])
