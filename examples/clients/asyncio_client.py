"""The same for asyncio: many requests at once, and a stream that is left early.

mmsup serve --model-repository examples/clients/models
python examples/clients/asyncio_client.py [localhost:8000]
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing

import numpy as np

from mmsup.client import AsyncClient


async def main(address: str) -> None:
    async with AsyncClient(address) as client:
        inputs = [np.full(4, number, dtype=np.float32) for number in range(8)]
        results = await asyncio.gather(*(client.infer("doubled", {"x": x}) for x in inputs))
        print("at once:", [float(each["y"][0]) for each in results])

        prompt = np.array(["one word after the other"])
        async with aclosing(client.stream("words", {"prompt": prompt, "max_words": [1000]})) as parts:
            async for part in parts:
                print("streamed:", part["word"][0].decode())
                if part["word"][0] == b"after":
                    break  # the model stops, too


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "localhost:8000"))
