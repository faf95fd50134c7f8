"""Boxes around what is bright in a grey image: each is left, top, right, bottom."""

import numpy as np


class Model:
    def infer(self, inputs):
        columns = np.flatnonzero((inputs["image"] > 0.5).any(axis=0))
        groups = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1) if columns.size else []
        height = inputs["image"].shape[0]
        boxes = [(each[0], 0, each[-1] + 1, height) for each in groups]
        return {"boxes": np.array(boxes, np.int64).reshape(len(boxes), 4)}
