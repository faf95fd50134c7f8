"""Text word by word, as a language model would answer: each `yield` is one response."""

import itertools

import numpy as np


class Model:
    def infer(self, inputs):
        limit = int(inputs["max_words"][0]) if "max_words" in inputs else 16
        for word in itertools.islice(itertools.cycle(inputs["prompt"][0].split()), limit):
            yield {"word": np.array([word], np.object_)}
