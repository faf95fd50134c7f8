"""LitServe's side: one API for each model, each with its worker."""

from typing import Annotated

import arithmetic
import litserve
import numpy as np
from fastapi import Depends, Request, Response
from settings import BINARY, LIMIT_S, MAX_BATCH, MAX_DELAY_S, NAMES, PORT, SHAPE

BATCH = {"max_batch_size": MAX_BATCH, "batch_timeout": MAX_DELAY_S} if MAX_BATCH else {}


class Model(litserve.LitAPI):
    def setup(self, device):  # noqa: ARG002 - their name for it
        self.model = arithmetic.make()

    def batch(self, inputs):
        return np.concatenate(inputs)

    def unbatch(self, output):
        return list(output)

    def predict(self, x):
        return self.model(x)


class Blob:
    """The body. Not bytes: it writes a request out in full for a debug line, whether or not that is wanted."""

    def __init__(self, data):
        self.data = data


async def body(request: Request):
    return Blob(await request.body())


class Raw(Model):
    def decode_request(self, request: Annotated[Blob, Depends(body)]):
        return np.frombuffer(request.data, np.float32).reshape(SHAPE)

    def encode_response(self, output) -> Response:
        return Response(output.tobytes(), media_type="application/octet-stream")


class Json(Model):
    def decode_request(self, request):
        return np.array(request["x"], np.float32)

    def encode_response(self, output):
        return {"y": output.tolist()}


if __name__ == "__main__":
    kind = Raw if BINARY else Json
    apis = [kind(api_path=f"/{name}", **BATCH) for name in NAMES]
    server = litserve.LitServer(apis, accelerator="cpu", fast_queue=True, timeout=LIMIT_S, restart_workers=True)
    server.run("127.0.0.1", PORT, log_level="error", generate_client_file=False, access_log=False)
