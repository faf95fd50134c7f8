"""As simple_sequence; the last answer of a sequence has its id added."""

import numpy as np


class Model:
    def infer(self, inputs):
        ids = np.where(inputs["END"] == 1, inputs["CORRID"].astype(np.int64), 0)
        return {"OUTPUT": (inputs["INPUT"] + inputs["START"] + ids).astype(np.int32)}
