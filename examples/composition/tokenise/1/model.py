"""Words of a text as numbers: each by its place in a list, 0 for all others."""

import numpy as np

WORDS = ("match", "goal", "team", "draw", "vote", "party", "law", "minister")
PLACES = {word: place for place, word in enumerate(WORDS, 1)}
LENGTH = 16


class Model:
    def infer(self, inputs):
        words = inputs["text"][0].lower().split()[:LENGTH]
        ids = np.zeros(LENGTH, np.int64)
        ids[: len(words)] = [PLACES.get(word, 0) for word in words]
        return {"ids": ids}
