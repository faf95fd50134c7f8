from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmsup.ipc.specs import MLSERVER, TensorSpec
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.repository.contents.model_files import ContentReader
from mmsup.supervisor.repository.scanner import ModelEntry, scan

X = {"name": "x", "datatype": "FP32", "shape": [-1, 4], "parameters": {"content_type": "np"}}
Y = {"name": "y", "datatype": "FP32", "shape": [-1]}
GOOD = {"name": "m", "implementation": "models.Mine", "inputs": [X], "outputs": [Y]}


def entry(repository: Path, **settings: Any) -> ModelEntry:
    folder = repository / "m"
    folder.mkdir(exist_ok=True)
    (folder / "models.py").write_text("")
    (folder / "model-settings.json").write_text(json.dumps({**GOOD, **settings}))
    return scan(Settings((str(repository),), "/run/x", "/var/x")).models["m"]


def test_a_folder_of_mlserver_is_a_model_of_one_version(tmp_path: Path) -> None:
    found = entry(tmp_path, parameters={"uri": "./model.joblib", "version": "3"}, max_batch_size=8)
    (spec,) = found.specs
    assert (spec.version, spec.directory, spec.artefact) == ("3", str(tmp_path / "m"), "model-settings.json")
    assert (spec.engine, spec.interface, spec.max_batch_size) == ("custom", MLSERVER, 0)
    assert spec.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert spec.outputs == (TensorSpec("y", "FP32", (-1,)),)
    assert [str(each) for each in found.warnings] == [
        "m/model-settings.json: max_batch_size: is read, and has no effect in this version"
    ]


def test_keys_of_mmsup_stand_beside_it_and_a_change_of_it_is_seen(tmp_path: Path) -> None:
    before = entry(tmp_path, parameters={"version": "v1.2"})
    (tmp_path / "m" / "mmsup.yaml").write_text("memory: 1GiB\n")
    after = entry(tmp_path)
    assert before.specs[0].version == "1"
    assert after.specs[0].memory_bytes == 1 << 30
    assert before.file_digest != after.file_digest


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": "n"}, 'name: "n" is not the name of the folder, "m"'),
        (
            {"implementation": "mlserver_sklearn.SKLearnModel"},
            "is a runtime of MLServer, which this version does not run",
        ),
        ({"implementation": "others.Mine"}, 'implementation: "others.Mine" is in no module of the folder'),
        ({"implementation": None}, "implementation: nothing is no class, as `models.MyModel` in models.py"),
        ({"inputs": []}, "inputs: is missing: mmsup serves declared tensors"),
        ({"outputs": [{"name": "y"}]}, "outputs[0].datatype"),
        ({"parameters": 3}, "parameters: is no JSON object"),
        ({"parameters": {"environment_tarball": "env.tar.gz"}}, "env.tar.gz"),
    ],
)
def test_what_cannot_be_served_says_why(settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    found = entry(tmp_path, **settings)
    assert found.specs == ()
    assert any(text in str(each) for each in found.errors), found.errors


def test_an_interpreter_without_mlserver_is_a_fault_of_its_check(tmp_path: Path) -> None:
    (spec,) = entry(tmp_path).specs
    (fault,) = ContentReader().read(spec).faults
    assert "imports mlserver, which the server's interpreter does not have" in str(fault)
    assert "pip install mlserver" in str(fault)


def test_a_file_that_is_no_json_is_an_error_of_its_model_alone(tmp_path: Path) -> None:
    entry(tmp_path)
    (tmp_path / "m" / "model-settings.json").write_text("{")
    (found,) = scan(Settings((str(tmp_path),), "/run/x", "/var/x")).models.values()
    assert "m/model-settings.json: is no JSON" in str(found.errors[0])


def test_a_model_of_triton_is_not_taken_for_one_of_mlserver(tmp_path: Path) -> None:
    entry(tmp_path)
    (tmp_path / "m" / "config.pbtxt").write_text('backend: "python"\n')
    (found,) = scan(Settings((str(tmp_path),), "/run/x", "/var/x")).models.values()
    assert "has no version" in str(found.errors[0])
