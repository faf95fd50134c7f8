"""mmsup itself, from this checkout, in the environment that runs the benchmarks."""

from __future__ import annotations

import re
import shutil
import urllib.request
from typing import ClassVar

from targets import BASE
from work import Scene

from drivers.peer import ServerPlace, V2Peer, pbtxt
from mmsup.supervisor.cli.ctl.control_client import call_server

MODEL = """\
from arithmetic import MODELS


class Model:
    def load(self, context):
        self.model = MODELS[context.parameters["model"]]()

    def infer(self, inputs):
        return {"y": self.model(inputs["x"])}
"""


KNOWN = re.compile(r"^mmsup_known_requests(?:_total)?(?:\{.*\})? (\S+)$", re.MULTILINE)
"""Metric of the requests that were recognised by their bytes; older commits lack it."""


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
        words += [f"--model-repository={repository}", f"--http-port={place.port}"]
        words += ["--grpc-port=-1", f"--metrics-port={place.metrics_port}", f"--runtime-dir={place.folder / 'run'}"]
        return [*words, f"--state-dir={place.folder / 'state'}"]

    def is_settled(self, place: ServerPlace) -> bool:
        """Whether the spare gateway has come up: it is started when the others have served for some seconds."""
        spare = call_server(str(place.folder / "run"), "status")["spare_gateways"]
        return bool(spare["ready"] >= spare["wanted"])

    def known_requests(self, place: ServerPlace) -> float | None:
        with urllib.request.urlopen(f"http://127.0.0.1:{place.metrics_port}/metrics", timeout=10) as reply:
            counts = KNOWN.findall(reply.read().decode())
        return sum(map(float, counts)) if counts else None

    def _config(self, scene: Scene, model: str) -> str:
        if scene.model == "mlp":
            return pbtxt(scene, model, 'platform: "onnxruntime_onnx"', _parameter("intra_op_thread_count", "1"))
        lines = _parameter("model", scene.model), _parameter("read_only_inputs", "true")
        return pbtxt(scene, model, 'backend: "python"', *lines)


def at_checkout(commit: str) -> Mmsup:
    """The same server from another checkout."""

    class OtherMmsup(Mmsup):
        key: ClassVar[str] = BASE
        name: ClassVar[str] = f"mmsup, {commit}"

    return OtherMmsup()


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
