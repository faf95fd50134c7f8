"""Ray Serve's side: one application for each model."""

import os
import threading

import arithmetic
import numpy as np
import ray
from ray import serve
from settings import BINARY, MAX_BATCH, MAX_DELAY_S, NAMES, PORT, SHAPE
from starlette.requests import Request
from starlette.responses import JSONResponse, Response


@serve.deployment(num_replicas=1, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
class Model:
    def __init__(self):
        self.model = arithmetic.make()

    @serve.batch(max_batch_size=MAX_BATCH or 1, batch_wait_timeout_s=MAX_DELAY_S)
    async def batched(self, inputs):
        return list(self.model(np.concatenate(inputs)))

    async def __call__(self, request: Request):
        if BINARY:
            x = np.frombuffer(await request.body(), np.float32).reshape(SHAPE)
        else:
            x = np.array(await request.json(), np.float32)
        y = await self.batched(x) if MAX_BATCH else self.model(x)
        return Response(y.tobytes()) if BINARY else JSONResponse(y.tolist())


if __name__ == "__main__":
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=512 << 20,
        _temp_dir=os.environ["TMPDIR"],
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT}, logging_config={"enable_access_log": False})
    for name in NAMES:
        serve.run(Model.bind(), name=name, route_prefix=f"/{name}")
    threading.Event().wait()
