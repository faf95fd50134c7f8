from __future__ import annotations

from typing import cast

import pytest

from mmsup.ipc.messages.gateway_control import VersionState
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.supervisor.config.config_error import ConfigError
from mmsup.supervisor.instances.context import InstanceContext, WorkerFailure
from mmsup.supervisor.instances.instance import Instance, InstanceHooks, VersionRevision
from mmsup.supervisor.instances.lifecycle_events import InstanceState, Situation
from mmsup.supervisor.models.model import Model, default_version, failure_reason, fit_message
from mmsup.supervisor.processes.backoff import Exit
from mmsup.supervisor.repository.scanner import ModelEntry, missing_model


def test_the_route_of_a_model_with_very_many_invalid_versions_fits_into_one_message() -> None:
    broken = {str(number): "holds no model.onnx, and so on, in many words" for number in range(1, 5000)}
    model = Model("m", ModelEntry("m", errors=(ConfigError("m", "many"),), invalid_versions=broken), wanted=True)
    route = fit_message(model.route())
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


REFUSED = WorkerFailure("load_failed", "model 'm' failed: no weights", of_load=True, detail="at model.py:3")
KILLED = WorkerFailure("model_restarting", "worker m/1 was killed by signal 9")
NEVER_SERVED, SERVED = Exit(1.0, 0.0, was_probe=False), Exit(1.0, 20.0, was_probe=False)


@pytest.mark.parametrize(
    ("state", "failure", "exits", "told"),
    [
        ("loading", None, (), ""),
        ("stopping", REFUSED, (), "model 'm' failed: no weights (at model.py:3)"),
        ("backoff", REFUSED, (NEVER_SERVED,), "load failed, next try in 0.8 s: model 'm' failed: no weights (at"),
        ("starting", REFUSED, (NEVER_SERVED,), "load failed, trying again: model 'm' failed: no weights (at"),
        ("loading", REFUSED, (SERVED, NEVER_SERVED, NEVER_SERVED), "load failed (2 in a row), trying again: model 'm'"),
        ("backoff", KILLED, (SERVED,), "next try in 0.8 s: worker m/1 was killed by signal 9"),
        ("warming", KILLED, (SERVED,), "trying again: worker m/1 was killed by signal 9"),
        ("failed", REFUSED, (NEVER_SERVED,) * 5, "model 'm' failed: no weights (at model.py:3)"),
    ],
)
def test_the_reason_says_that_a_start_follows_a_failure_and_when_the_next_one_comes(
    state: str, failure: WorkerFailure | None, exits: tuple[Exit, ...], told: str
) -> None:
    version = VersionRevision(ModelSpec("m", "1", "/m/1", "model.py", "custom", "python"), exits=list(exits))
    instance = Instance(1, version, cast("InstanceContext", None), cast("InstanceHooks", None))
    version.instances.append(instance)
    instance.situation = Situation(wanted=True, state=InstanceState(state))
    instance.failure, instance.retry.at_s = failure, 10.8
    assert failure_reason(version, now_s=10.0)[: len(told) or None] == told


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
