"""mmsup itself, from this checkout, in the environment that runs the benchmarks."""

from __future__ import annotations

import shutil
from typing import ClassVar

from work import Scene

from drivers.peer import ServerPlace, V2Peer, pbtxt

MODEL = """\
from arithmetic import MODELS


class Model:
    def load(self, context):
        self.model = MODELS[context.parameters["model"]]()

    def infer(self, inputs):
        return {"y": self.model(inputs["x"])}
"""


class Mmsup(V2Peer):
    """One gateway, one worker for each model."""

    key: ClassVar[str] = "mmsup"
    name: ClassVar[str] = "mmsup"
    package: ClassVar[str] = "mmsup"

    def command(self, scene: Scene, place: ServerPlace) -> list[str]:
        """A model repository, then `mmsup serve`."""
        repository = place.folder / "models"
        for model in scene.names:
            version = repository / model / "1"
            version.mkdir(parents=True)
            (repository / model / "config.pbtxt").write_text(self._config(scene, model))
            if scene.model == "harmful":
                settings = f"memory: 1GiB\nhang_limit: {scene.limit_s}s\ndeadline: {scene.limit_s}s\n"
                (repository / model / "mmsup.yaml").write_text(settings)
            if scene.model == "mlp":
                shutil.copy(place.network, version / "model.onnx")
            else:
                (version / "model.py").write_text(MODEL)
                shutil.copy(place.apps / "arithmetic.py", version)
        words = [place.python, "-m", "mmsup.supervisor.cli", "serve"]
        words += [f"--model-repository={repository}", f"--http-port={place.port}", "--metrics-port=-1"]
        words += [f"--runtime-dir={place.folder / 'run'}", f"--state-dir={place.folder / 'state'}"]
        return words

    def _config(self, scene: Scene, model: str) -> str:
        if scene.model == "mlp":
            return pbtxt(scene, model, 'platform: "onnxruntime_onnx"', _parameter("intra_op_thread_count", "1"))
        lines = _parameter("model", scene.model), _parameter("read_only_inputs", "true")
        return pbtxt(scene, model, 'backend: "python"', *lines)


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
