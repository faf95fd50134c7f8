"""The mean red, green and blue of a picture, sent as the file that it is: a PPM (`P6`), of 8 bits a colour."""

import re

import numpy as np

HEAD = re.compile(rb"P6\s+(\d+)\s+(\d+)\s+255\s")


class Model:
    def infer(self, inputs):
        return {"mean": np.array([mean(each) for each in inputs["image"].reshape(-1)], np.float32)}


def mean(image):
    head = HEAD.match(image)
    if head is None:
        raise ValueError("the picture is no PPM of 8 bits a colour")
    width, height = int(head[1]), int(head[2])
    pixels = np.frombuffer(image, np.uint8, offset=head.end())
    return pixels.reshape(height * width, 3).mean(axis=0)
