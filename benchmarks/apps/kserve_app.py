"""KServe's side: one model object for each name, all in one process, as it is made."""

import logging

import arithmetic
import kserve
from settings import NAMES


class Model(kserve.Model):
    def __init__(self, name):
        super().__init__(name)
        self.model = arithmetic.make()
        self.ready = True

    async def predict(self, payload, *_):
        y = self.model(payload.inputs[0].as_numpy())
        output = kserve.InferOutput("y", list(y.shape), "FP32")
        output.set_data_from_numpy(y, binary_data=payload.use_binary_outputs)
        return kserve.InferResponse(
            payload.id or "0", self.name, [output], use_binary_outputs=payload.use_binary_outputs
        )


if __name__ == "__main__":
    logging.getLogger("uvicorn.access").disabled = True
    kserve.ModelServer(access_log_format=None).start([Model(name) for name in NAMES])
