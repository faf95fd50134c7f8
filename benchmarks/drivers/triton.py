"""Triton Inference Server with its Python backend, as NVIDIA bundles both in the wheel of PyTriton."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from work import Scene

from drivers.peer import ServerPlace, V2Peer, pbtxt
from drivers.pytriton import PYTHONS

MODEL = """\
import arithmetic
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        self.model = arithmetic.make()

    def execute(self, requests):
        arrays = [triton.get_input_tensor_by_name(each, "x").as_numpy() for each in requests]
        return [triton.InferenceResponse([triton.Tensor("y", y)]) for y in self.answers(arrays)]

    def answers(self, arrays):
        return [self.model(x) for x in arrays]
"""
BATCHED = """\
    def answers(self, arrays):
        y = self.model(np.concatenate(arrays))
        ends = np.cumsum([len(x) for x in arrays])
        return np.split(y, ends[:-1])
"""


class Triton(V2Peer):
    """The server alone: C++ front, one Python stub process for each model, tensors in shared memory."""

    key: ClassVar[str] = "triton"
    name: ClassVar[str] = "Triton, Python backend"
    package: ClassVar[str] = "nvidia-pytriton"
    requires: ClassVar[str] = "pytriton"
    pythons: ClassVar[Sequence[str]] = PYTHONS
    litter: ClassVar[Sequence[str]] = ("python_env_??????",)

    def command(self, scene: Scene, place: ServerPlace) -> list[str]:
        """A model repository, a folder of backends with the stub of our Python, then `tritonserver`."""
        repository = place.folder / "models"
        for model in scene.names:
            (repository / model / "1").mkdir(parents=True)
            (repository / model / "config.pbtxt").write_text(pbtxt(scene, model, 'backend: "python"'))
            text = f"import numpy as np\n{MODEL}\n{BATCHED}" if scene.batching else MODEL
            (repository / model / "1" / "model.py").write_text(text)
            shutil.copy(place.apps / "arithmetic.py", repository / model / "1")
        server = place.packages / "pytriton" / "tritonserver"
        words = [str(server / "bin" / "tritonserver"), f"--model-repository={repository}"]
        words += [f"--backend-directory={_backends(server, place.folder)}", f"--http-port={place.port}"]
        words += ["--http-address=127.0.0.1", "--allow-grpc=false", "--allow-metrics=false", "--log-info=false"]
        return [*words, f"--backend-config=python,shm-region-prefix-name={place.folder.name}"]

    def environ(self, place: ServerPlace) -> Mapping[str, str]:
        """Its libraries."""
        return {"LD_LIBRARY_PATH": str(place.packages / "nvidia_pytriton.libs")}


def _backends(server: Path, folder: Path) -> Path:
    """The Python backend with the stub that fits."""
    python = folder / "backends" / "python"
    python.mkdir(parents=True)
    for file in (server / "backends" / "python").iterdir():
        os.symlink(file, python / file.name)
    stub = "triton_python_backend_stub"
    version = server.parents[2].name.removeprefix("python")
    os.symlink(server / "python_backend_stubs" / version / stub, python / stub)
    return python.parent
