"""Mosec's side: one worker for each model, each with its route."""

import arithmetic
import numpy as np
from mosec import Runtime, Server, Worker
from settings import BINARY, MAX_BATCH, MAX_DELAY_S, NAMES, SHAPE


class Model(Worker):
    def __init__(self):
        self.model = arithmetic.make()

    def deserialize(self, data):
        if BINARY:
            return np.frombuffer(data, np.float32).reshape(SHAPE)
        return np.array(super().deserialize(data), np.float32)

    def forward(self, data):
        return list(self.model(np.concatenate(data))) if MAX_BATCH else self.model(data)

    def serialize(self, data):
        return data.tobytes() if BINARY else super().serialize(data.tolist())


if __name__ == "__main__":
    server = Server()
    batch = {"max_batch_size": MAX_BATCH, "max_wait_time": int(MAX_DELAY_S * 1000)} if MAX_BATCH else {}
    server.register_runtime({f"/{name}": [Runtime(Model, **batch)] for name in NAMES})
    server.run()
