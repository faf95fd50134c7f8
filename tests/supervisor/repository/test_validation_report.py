from __future__ import annotations

import json
from pathlib import Path

from mmsup.supervisor.config import server_options
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.repository.scanner import scan
from mmsup.supervisor.repository.validation_report import Report, build_report


def checked(models: Path, **flags: object) -> Report:
    reading = server_options.read_config({"repositories": (str(models),), **flags}, {"MMSUP_TYPO": "1"}, 0)
    if reading.settings is None:
        return build_report(reading.errors, None, reading.warnings, reading.origins)
    return build_report(reading.settings, scan(reading.settings), reading.warnings, reading.origins)


def lay(models: Path, name: str, text: str = "") -> None:
    (models / name / "1").mkdir(parents=True)
    (models / name / "1" / "model.onnx").touch()
    (models / name / "config.pbtxt").write_text(text)


def test_a_valid_repository_is_ok_and_its_models_are_listed(tmp_path: Path) -> None:
    lay(tmp_path, "m", 'max_batch_size: 4 input { name: "x" data_type: TYPE_INT64 dims: [-1] }')
    found = checked(tmp_path)
    assert found["ok"]
    assert found["faults"] == []
    (version,) = found["models"][0]["versions"]
    assert (version["version"], version["engine"], version["max_batch_size"]) == ("1", "ort", 4)
    assert version["inputs"] == [{"name": "x", "datatype": "INT64", "shape": [-1], "optional": False}]


def test_the_report_is_json_and_explains_every_option(tmp_path: Path) -> None:
    lay(tmp_path, "m")
    found = json.loads(json.dumps(checked(tmp_path)))
    assert [each["option"] for each in found["options"]] == [each.key for each in server_options.SERVER_OPTIONS]
    assert "options" not in build_report(Settings(("/r",), "/x", "/y"), scan(Settings((), "/x", "/y")))


def test_errors_of_configuration_and_of_every_model_are_reported_together(tmp_path: Path) -> None:
    lay(tmp_path, "good")
    lay(tmp_path, "bad", 'name: "x"')
    lay(tmp_path, "worse", "input {")
    found = checked(tmp_path, control_mode="explicit", load_models=("good", "gone", "*"))
    assert not found["ok"]
    assert [each["place"] for each in found["faults"]] == [
        "--load-model",
        "bad/config.pbtxt:1: name",
        "worse/config.pbtxt:1",
    ]
    assert {each["name"]: each["ok"] for each in found["models"]} == {"bad": False, "good": True, "worse": False}


def test_invalid_settings_are_reported_without_a_repository(tmp_path: Path) -> None:
    found = checked(tmp_path, http_port="x", gateways="y")
    assert not found["ok"]
    assert [each["place"] for each in found["faults"]] == ["--http-port", "--gateways"]
    assert found["models"] == []


def test_warnings_leave_the_report_ok(tmp_path: Path) -> None:
    lay(tmp_path, "m", "optimization {}")
    found = checked(tmp_path)
    assert found["ok"]
    assert [each["place"] for each in found["warnings"]] == ["MMSUP_TYPO", "m/config.pbtxt:1: optimization"]


def test_a_repository_without_models_is_a_warning_and_a_missing_one_an_error(tmp_path: Path) -> None:
    assert checked(tmp_path)["ok"]
    assert checked(tmp_path)["warnings"][-1] == {"place": str(tmp_path), "text": "holds no model"}
    (tmp_path / "model.onnx").touch()
    assert "model.onnx belongs into NAME/1/" in checked(tmp_path)["warnings"][-1]["text"]
    assert checked(tmp_path / "gone")["faults"][0]["text"].startswith("cannot be read")
