"""What a piece of an image shows: a bar that is as wide as long is a square."""

import numpy as np


class Model:
    def infer(self, inputs):
        height, width = inputs["piece"].shape
        return {"text": np.array(["square" if height == width else "bar"])}
