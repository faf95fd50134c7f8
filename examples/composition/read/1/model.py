"""Detect, classify, recognise: how many pieces there are is known only on the way, so the code calls the others."""

import asyncio

import numpy as np


class Model:
    def load(self, context):
        self.context = context

    async def infer(self, inputs):
        image = inputs["image"]
        found = await self.context.infer_async("detect", {"image": image})
        pieces = [image[top:bottom, left:right] for left, top, right, bottom in found["boxes"]]
        texts = await asyncio.gather(*[self.read(piece) for piece in pieces])
        return {"texts": np.array(texts, dtype=object), "boxes": found["boxes"]}

    async def read(self, piece):
        upright = (await self.context.infer_async("classify", {"piece": piece}))["upright"][0]
        turned = piece if upright else np.rot90(piece)
        return (await self.context.infer_async("recognise", {"piece": turned}))["text"][0]
