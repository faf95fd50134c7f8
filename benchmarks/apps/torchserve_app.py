"""TorchServe's side: a handler for a list of requests. It is copied into each model's folder."""

import arithmetic
import numpy as np
from settings import BINARY, MAX_BATCH, SHAPE
from ts.torch_handler.base_handler import BaseHandler


class Handler(BaseHandler):
    def initialize(self, context):  # noqa: ARG002 - their name for it
        self.model = arithmetic.make()
        self.initialized = True

    def handle(self, data, context):  # noqa: ARG002 - their name for it
        arrays = [self.read(each.get("body")) for each in data]
        answers = self.model(np.concatenate(arrays)) if MAX_BATCH else [self.model(x) for x in arrays]
        return [y.tobytes() if BINARY else y.tolist() for y in answers]

    def read(self, body):
        return np.frombuffer(body, np.float32).reshape(SHAPE) if BINARY else np.array(body, np.float32)
