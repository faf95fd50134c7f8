from __future__ import annotations

from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.supervisor.config.config_error import ConfigError
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.repository.scanner import ModelEntry, missing_model


def test_a_model_with_very_many_broken_versions_is_told_in_one_message() -> None:
    broken = {str(number): "holds no model.onnx, and so on, in many words" for number in range(1, 5000)}
    model = Model("m", ModelEntry("m", errors=(ConfigError("m", "many"),), invalid_versions=broken), wanted=True)
    route = model.route()
    assert len(encode(route)) < MESSAGE_LIMIT
    assert [each.version for each in route.versions] == [route.default]


def test_a_wanted_model_of_which_nothing_is_known_is_absent() -> None:
    model = Model("m", None, wanted=True)
    assert (model.state(), model.reason()) == ("absent", "")
    assert model.route().versions == ()


def test_a_model_that_no_repository_holds_is_failed_and_says_so() -> None:
    model = Model("m", missing_model("m"), wanted=True)
    assert model.state() == "failed"
    assert "no repository holds this model" in model.reason()
