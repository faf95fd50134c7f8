"""What the operator and what a client are told of a load that fails."""

from __future__ import annotations

import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.build import write_python
from harness.server import Http, Server, serving
from mmsup.ipc.specs import TensorSpec
from mmsup.supervisor.cli.ctl import control_client

pytestmark = pytest.mark.slow

X, Y = (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),)
ECHO = "class Model:\n    def infer(self, inputs):\n        return {'y': inputs['x']}\n"
RAISES = ECHO + "\n    def load(self, context):\n        self.weights = {}['weights']\n"
EXITS = "import os\nprint('no licence found', flush=True)\nos._exit(3)\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository, bare = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("bare")
    venv.create(bare, symlinks=True)
    write_python(repository, "raises", RAISES, X, Y)
    write_python(repository, "exits", EXITS, X, Y)
    write_python(repository, "bare", ECHO, X, Y, settings={"python": str(bare / "bin" / "python")})
    shadowing = write_python(repository, "shadowing", "import helper\n" + ECHO, X, Y)
    for name in ("queue", "logging", "helper"):
        Path(shadowing.directory, f"{name}.py").write_text("")
    with serving(repository, "--model-control-mode", "explicit") as running:
        yield running


def refusal(server: Server, name: str) -> tuple[str, str]:
    """Why a load fails, as the operator is told, and as a client over HTTP."""
    with pytest.raises(control_client.ServerRefused) as refused:
        server.ctl("load", name=name)
    http = Http(server.address())
    status, body = http.json("POST", f"/v2/repository/models/{name}/load")
    http.close()
    assert status >= 400
    return str(refused.value), body["error"]


def test_the_operator_is_told_type_and_line_of_what_a_class_raised_and_a_client_is_not(server: Server) -> None:
    told, public = refusal(server, "raises")
    assert "KeyError: 'weights', at model.py:6" in told
    assert "KeyError: 'weights', at model.py:6" in server.model("raises")["reason"]
    assert "KeyError" not in public
    assert "model.py" not in public


def test_the_last_line_that_a_worker_printed_is_in_the_reason_of_its_load(server: Server) -> None:
    told, public = refusal(server, "exits")
    assert "no licence found" in told
    assert "no licence found" in server.model("exits")["reason"]
    assert "licence" not in public


def test_an_interpreter_without_what_a_worker_needs_says_what_to_install(server: Server) -> None:
    told, public = refusal(server, "bare")
    assert "its interpreter (key python) lacks what a worker needs" in public
    assert "bin/python -m pip install msgpack numpy ml_dtypes" in told
    assert "/" not in public.replace("bare/1", "")


def test_files_of_a_model_shadow_no_module_that_its_worker_imports(server: Server) -> None:
    assert server.ctl("load", name="shadowing")["state"] == "ready"
