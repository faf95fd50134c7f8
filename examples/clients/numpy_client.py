"""Infer, large tensors in shared memory, and a stream, with mmsup.client: numpy and the standard library.

mmsup serve --model-repository examples/clients/models
python examples/clients/numpy_client.py [localhost:8000]
"""

from __future__ import annotations

import sys

import numpy as np

from mmsup.client import Client, ServerRefused


def main(address: str) -> None:
    with Client(address, timeout_s=30, retries=2) as client:
        print("models:", ", ".join(sorted(each.name for each in client.index(ready=True))))
        for tensor in client.model_metadata("doubled").inputs:
            print("input:", tensor.name, tensor.datatype, tensor.shape)

        result = client.infer("doubled", {"x": np.array([1, 2.5], dtype=np.float32)})
        print("doubled:", result["y"])

        with client.shared_memory(8 << 20) as memory:
            x, y = memory.array(1 << 20, "float32"), memory.array(1 << 20, "float32")
            x[:] = np.arange(len(x))
            client.infer("doubled", {"x": x}, into={"y": y})  # neither array crosses a socket
            print("in shared memory:", int(y[-1]))

        prompt = np.array(["one word after the other"])
        words = [part["word"][0].decode() for part in client.stream("words", {"prompt": prompt, "max_words": [4]})]
        print("streamed:", *words)

        try:
            client.infer("doubled", {"x": np.array(["no number"])})
        except ServerRefused as error:
            print(f"refused: {error.code}, retryable: {error.retryable}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "localhost:8000")
