"""BentoML's side: one service with a route for each model."""

from pathlib import Path

import arithmetic
import bentoml
import numpy as np
from settings import LARGE, LIMIT_S, MAX_BATCH, NAMES, SHAPE

BATCH = {"batchable": True, "max_batch_size": MAX_BATCH, "max_latency_ms": 1000} if MAX_BATCH else {}


def of_array(name):
    def infer(self, x: np.ndarray) -> np.ndarray:
        return self.model(x.astype(np.float32))

    infer.__name__ = name
    return bentoml.api(infer, **BATCH)


def of_file(name):
    def infer(self, x: Path) -> bytes:
        return self.model(np.fromfile(x, np.float32).reshape(SHAPE)).tobytes()

    infer.__name__ = name
    return bentoml.api(infer)


def load(self):
    self.model = arithmetic.make()


made = {name: (of_file if LARGE else of_array)(name) for name in NAMES}
Models = bentoml.service(workers=1, traffic={"timeout": LIMIT_S}, logging={"access": {"enabled": False}})(
    type("Models", (), {"__init__": load, **made})
)
