"""The same with tritonclient: infer, shared memory.

pip install 'tritonclient[http]'
mmsup serve --model-repository examples/clients/models
python examples/clients/triton_client.py [localhost:8000]
"""

from __future__ import annotations

import sys

import numpy as np
import tritonclient.http as httpclient
from tritonclient.utils import shared_memory


def main(address: str) -> None:
    with httpclient.InferenceServerClient(address) as client:
        x = np.array([1, 2.5], dtype=np.float32)
        given = httpclient.InferInput("x", list(x.shape), "FP32")
        given.set_data_from_numpy(x)
        print("doubled:", client.infer("doubled", [given]).as_numpy("y"))

        x = np.arange(1 << 20, dtype=np.float32)
        memory = shared_memory.create_shared_memory_region("tensors", "mmsup_client_example", 2 * x.nbytes)
        try:
            shared_memory.set_shared_memory_region(memory, [x])
            client.register_system_shared_memory("tensors", "mmsup_client_example", 2 * x.nbytes)
            given = httpclient.InferInput("x", list(x.shape), "FP32")
            given.set_shared_memory("tensors", x.nbytes)
            wanted = httpclient.InferRequestedOutput("y")
            wanted.set_shared_memory("tensors", x.nbytes, offset=x.nbytes)
            client.infer("doubled", [given], outputs=[wanted])
            y = shared_memory.get_contents_as_numpy(memory, np.float32, x.shape, offset=x.nbytes)
            print("in shared memory:", int(y[-1]))
            client.unregister_system_shared_memory("tensors")
        finally:
            shared_memory.destroy_shared_memory_region(memory)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "localhost:8000")
