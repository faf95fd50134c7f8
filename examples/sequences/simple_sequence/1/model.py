"""Gives its input back, plus one at the start of a sequence. The server says where that is, by control inputs."""

import numpy as np


class Model:
    def infer(self, inputs):
        return {"OUTPUT": (inputs["INPUT"] + inputs["START"]).astype(np.int32)}
