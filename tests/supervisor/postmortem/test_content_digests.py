from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.postmortem import content_digests
from mmsup.supervisor.postmortem.content_digests import MAX_CONTENT_BYTES, ArtifactDigests, configuration

SPEC = ModelSpec("bert", "2", "/m", "model.py", "custom", "python", env={"TOKEN": "hunter2"}, parameters={"key": "s3"})


def test_the_configuration_has_limits_and_names_but_no_secret() -> None:
    result = configuration(SPEC)
    assert (result["hang_limit_s"], result["env"], result["parameters"]) == (5.0, ["TOKEN"], ["key"])
    assert "hunter2" not in str(result)
    assert "s3" not in str(result)


def test_the_configurations_digest_changes_with_every_key_but_no_value_of_the_environment() -> None:
    was = configuration(SPEC)["sha256"]
    assert configuration(replace(SPEC, hang_limit_s=6.0))["sha256"] != was
    assert configuration(replace(SPEC, env={"OTHER": ""}))["sha256"] != was
    assert configuration(replace(SPEC, env={"TOKEN": "else"}))["sha256"] == was


def test_the_artifacts_digest_changes_with_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"one")
    artifacts = ArtifactDigests()
    first = artifacts.digest(str(tmp_path))
    assert (first["files"], first["bytes"]) == (1, 3)
    (tmp_path / "model.onnx").write_bytes(b"two!")
    second = artifacts.digest(str(tmp_path))
    (tmp_path / "model.onnx").rename(tmp_path / "other.onnx")
    third = artifacts.digest(str(tmp_path))
    assert len({first["sha256"], second["sha256"], third["sha256"]}) == 3
    assert ArtifactDigests().digest(str(tmp_path)) == third


def test_compiled_python_is_not_part_of_the_artifact(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_bytes(b"one")
    first = ArtifactDigests().digest(str(tmp_path))
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "model.pyc").write_bytes(b"compiled")
    assert ArtifactDigests().digest(str(tmp_path)) == first


def test_files_that_did_not_change_are_not_read_again(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"one")
    artifacts = ArtifactDigests()
    first = artifacts.digest(str(tmp_path))
    status = model.stat()
    model.write_bytes(b"two")
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert artifacts.digest(str(tmp_path)) is first


def test_of_large_files_the_beginning_and_the_time_are_digested(tmp_path: Path) -> None:
    model = tmp_path / "weights.bin"
    with model.open("wb") as file:
        file.truncate(MAX_CONTENT_BYTES + 1)
    first = ArtifactDigests().digest(str(tmp_path))
    assert "but of 1 large ones" in first["of"]
    os.utime(model, ns=(1, 1))
    assert ArtifactDigests().digest(str(tmp_path))["sha256"] != first["sha256"]


def test_a_folder_that_is_gone_and_a_pipe_are_no_error(tmp_path: Path) -> None:
    assert ArtifactDigests().digest(str(tmp_path / "gone"))["files"] == 0
    os.symlink("nowhere", tmp_path / "link")
    assert "could not be read" in ArtifactDigests().digest(str(tmp_path))["of"]
    os.unlink(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    assert ArtifactDigests().digest(str(tmp_path))["files"] == 1


def test_names_that_are_no_text_and_folders_with_many_files_are_digested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))).write_bytes(b"x")
    first = ArtifactDigests().digest(str(tmp_path))
    assert len(first["sha256"]) == 64
    monkeypatch.setattr(content_digests, "MAX_FILES", 3)
    for number in range(5):
        (tmp_path / f"{number}").write_bytes(b"x")
    result = ArtifactDigests().digest(str(tmp_path))
    assert (result["files"], result["of"][:46]) == (3, "names, sizes and contents of the first 3 files")
