from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from threadpoolctl import threadpool_limits

from example_files import EXAMPLES, example
from mmsup.supervisor.cli.check.command import check

LEAST_ACCURACY = 0.9


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mmsup_test_made")
    with threadpool_limits(1), example("make_models") as program:  # threads that spin for one another take minutes
        digits = program.Digits()
        models = directory / "models"
        program.make_onnx(models, digits)
        program.make_python(models, digits)
        np.savez(directory / "held_out.npz", x=digits.held_out_x, y=digits.held_out_y)
    return directory


def held_out(made: Path) -> tuple[Any, Any]:  # arrays
    with np.load(made / "held_out.npz") as saved:
        return saved["x"], saved["y"]


@pytest.mark.slow
def test_the_repository_that_is_made_has_no_faults_and_no_warnings(made: Path) -> None:
    result = CliRunner().invoke(check, ["--model-repository", str(made / "models"), "--json"])
    found = json.loads(result.stdout)
    assert (found["faults"], found["warnings"]) == ([], [])
    assert len(found["models"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_linear", "digits_mlp", "digits_forest"])
def test_an_exported_classifier_knows_digits_it_has_never_seen(made: Path, name: str) -> None:
    x, y = held_out(made)
    session = onnxruntime.InferenceSession(str(made / "models" / name / "1" / "model.onnx"))
    label, probabilities = session.run(["label", "probabilities"], {"x": x})
    assert (label == y).mean() >= LEAST_ACCURACY
    assert probabilities.shape == (len(y), 10)


@pytest.mark.slow
def test_the_python_model_knows_them_too(made: Path) -> None:
    x, y = held_out(made)
    folder = made / "models" / "digits_neighbours" / "1"
    scope: dict[str, Any] = {}
    exec(compile((folder / "model.py").read_text(), "model.py", "exec"), scope)
    model = scope["Model"]()
    model.load(SimpleNamespace(directory=str(folder), parameters={"k": "5"}))
    answer = model.infer({"x": x})
    assert (answer["label"] == y).mean() >= LEAST_ACCURACY
    assert answer["probabilities"].dtype == np.float32
    np.testing.assert_allclose(answer["probabilities"].sum(axis=1), 1, rtol=1e-6)


@pytest.mark.slow
def test_help_makes_no_models(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "make_models.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ")
    assert not [*tmp_path.iterdir()]
