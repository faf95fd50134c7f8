"""TorchServe: a Java front, one Python worker for each model."""

from __future__ import annotations

import json
import shutil
from typing import ClassVar

import numpy as np
from wire import RequestBytes, json_request, raw_answer, raw_request
from work import MAX_BATCH, MAX_DELAY_S, Array, Scene

from drivers.peer import Peer, ServerPlace, free_port

QUIET = """\
<Configuration>
  <Appenders><Console name="console"><PatternLayout pattern="%p %c %m%n"/></Console></Appenders>
  <Loggers><Root level="warn"><AppenderRef ref="console"/></Root></Loggers>
</Configuration>
"""
"""It writes a line for each request, and several numbers, unless told not to."""


class TorchServe(Peer):
    """Raw bytes in and out."""

    key: ClassVar[str] = "torchserve"
    name: ClassVar[str] = "TorchServe"
    package: ClassVar[str] = "torchserve"
    program: ClassVar[str] = "java"
    warm_s: ClassVar[float] = 15
    """Java compiles what is hot while it runs: after half a second it was four times as slow as after ten."""

    def command(self, scene: Scene, place: ServerPlace) -> list[str]:
        """Unpacked archives with apps/torchserve_app.py as their handler, then `torchserve --foreground`."""
        store = place.folder / "store"
        for name in scene.names:
            (store / name / "MAR-INF").mkdir(parents=True)
            shutil.copy(place.apps / "torchserve_app.py", store / name / "handler.py")
            model = {"modelName": name, "modelVersion": "1.0", "handler": "handler.py"}
            manifest = {"runtime": "python", "archiverVersion": "0.12.0", "model": model}
            (store / name / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
        config = place.folder / "config.properties"
        config.write_text(_properties(scene, place))
        words = [str(place.bin / "torchserve"), "--start", "--foreground", "--disable-token-auth", "--ncs"]
        (place.folder / "log4j2.xml").write_text(QUIET)
        words += [f"--ts-config={config}", f"--model-store={store}", f"--log-config={place.folder / 'log4j2.xml'}"]
        return [*words, "--models", *(f"{name}={name}" for name in scene.names)]

    def request(self, scene: Scene, model: str, x: Array) -> RequestBytes:
        """Floats, or a JSON list."""
        path = f"/predictions/{model}"
        return raw_request(path, x) if scene.binary else json_request(path, x.tolist())

    def answer(self, scene: Scene, body: bytes) -> Array:
        """The same."""
        return raw_answer(body) if scene.binary else np.array(json.loads(body), np.float32)


def _properties(scene: Scene, place: ServerPlace) -> str:
    batch, delay_ms = (MAX_BATCH, int(MAX_DELAY_S * 1000)) if scene.batching else (1, 0)
    model = {"minWorkers": 1, "maxWorkers": 1, "batchSize": batch, "maxBatchDelay": delay_ms}
    models = {name: {"1.0": model | {"marName": name}} for name in scene.names}
    lines = {
        "inference_address": f"http://127.0.0.1:{place.port}",
        "management_address": f"http://127.0.0.1:{free_port()}",
        "metrics_address": f"http://127.0.0.1:{free_port()}",
        "grpc_inference_port": free_port(),
        "grpc_management_port": free_port(),
        "default_workers_per_model": 1,
        "default_response_timeout": int(scene.limit_s),
        "max_request_size": 64 << 20,
        "max_response_size": 64 << 20,
        "disable_system_metrics": "true",
        "vmargs": f"-XX:-UsePerfData -Djava.io.tmpdir={place.folder}",
        "models": json.dumps(models),
    }
    return "".join(f"{name}={value}\n" for name, value in lines.items())
