from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from mmsup.ipc import exit_codes
from mmsup.supervisor.cli.check.command import check


def run(*arguments: str) -> Result:
    return CliRunner().invoke(check, list(arguments), prog_name="mmsup check")


def model(repository: Path, name: str) -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"\x3a\x00")  # a model with an empty graph


def test_a_sound_repository_is_listed_and_ends_with_0(tmp_path: Path) -> None:
    model(tmp_path, "digits")
    result = run("--model-repository", str(tmp_path))
    assert result.exit_code == exit_codes.SUCCESS, result.output
    assert "digits" in result.stdout
    assert result.stdout.endswith("no faults\n")


def test_every_fault_is_shown_and_the_end_is_2(tmp_path: Path) -> None:
    model(tmp_path, "good")
    model(tmp_path, "bad")
    (tmp_path / "bad" / "mmsup.yaml").write_text("memory: 4 gigs\nmemroy: 1GiB\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "1").mkdir()
    result = run("--model-repository", str(tmp_path))
    assert result.exit_code == exit_codes.USAGE
    faults = [line for line in result.stdout.splitlines() if line.startswith("fault: ")]
    assert len(faults) == 3
    assert "no faults" not in result.stdout


def test_json_has_the_same_and_nothing_else(tmp_path: Path) -> None:
    model(tmp_path, "digits")
    found = json.loads(run("--model-repository", str(tmp_path), "--json").stdout)
    assert found["ok"] is True
    assert [each["name"] for each in found["models"]] == ["digits"]
    assert "options" not in found


def test_explain_says_where_a_value_came_from(tmp_path: Path) -> None:
    result = run("--model-repository", str(tmp_path), "--gateways=2", "--explain", "--json")
    sources = {each["option"]: each["source"] for each in json.loads(result.stdout)["options"]}
    assert sources["gateways"] == "flag"
    assert sources["http_port"] == "default"
    assert "gateways" in run("--model-repository", str(tmp_path), "--explain").stdout


def test_faults_of_flags_and_files_stand_together(tmp_path: Path) -> None:
    result = run("--model-repository", str(tmp_path), "--http-port=x", "--config", str(tmp_path / "none.yaml"))
    assert result.exit_code == exit_codes.USAGE
    assert "--http-port" in result.stdout
    assert "none.yaml" in result.stdout


def test_what_serve_would_refuse_is_a_fault_and_what_it_would_warn_of_a_warning(tmp_path: Path) -> None:
    result = run("--model-repository", str(tmp_path), "--host=0.0.0.0", "--trace-config=x", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == exit_codes.USAGE
    assert [each["place"] for each in found["faults"]] == ["--host"]
    assert "--trace-config" in {each["place"] for each in found["warnings"]}
    assert run("--model-repository", str(tmp_path), "--host=0.0.0.0", "--insecure").exit_code == exit_codes.SUCCESS
