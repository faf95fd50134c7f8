"""One response for each element of IN, with its index, after as many milliseconds as DELAY says. An empty IN has none.
The model goes on at the earliest WAIT milliseconds after it was called.

It awaits, so that many streams wait beside each other in one worker.
"""

import asyncio

import numpy as np


class Model:
    async def infer(self, inputs):
        wait = asyncio.create_task(asyncio.sleep(int(inputs["WAIT"][0]) / 1000))
        try:
            for index, (value, delay) in enumerate(zip(inputs["IN"], inputs["DELAY"], strict=True)):
                await asyncio.sleep(int(delay) / 1000)
                yield {"OUT": np.array([value], np.int32), "IDX": np.array([index], np.uint32)}
            await wait
        finally:
            wait.cancel()  # also if the client has left
