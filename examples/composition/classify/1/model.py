"""Whether a piece of an image is upright: taller than wide."""

import numpy as np


class Model:
    def infer(self, inputs):
        height, width = inputs["piece"].shape
        return {"upright": np.array([height >= width])}
