"""A vector of a text: how often each known word is in it."""

import numpy as np


class Model:
    def infer(self, inputs):
        return {"vector": np.bincount(inputs["ids"], minlength=9)[1:].astype(np.float32)}
