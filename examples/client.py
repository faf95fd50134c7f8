"""A client of a running server, with numpy and the standard library alone.

    python examples/client.py DIRECTORY/held_out.npz --model digits_mlp [--url 127.0.0.1:8000] [--triton]

Tensors are sent as bytes (the binary extension of the protocol): a JSON head, then the memory of each tensor.
`--triton` does the same through tritonclient, which works unchanged.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
DATATYPES = {"float32": "FP32", "float64": "FP64", "int64": "INT64", "int32": "INT32", "uint8": "UINT8", "bool": "BOOL"}
DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
HEAD = "Inference-Header-Content-Length"


class ServerError(Exception):
    """The server answered with an error: its status, code and text, and when to try again."""

    def __init__(self, status: int, code: str, text: str, retry_after_s: float) -> None:
        super().__init__(f"{status} {code}: {text}")
        self.status = status
        self.code = code
        self.text = text
        self.retry_after_s = retry_after_s


class UnusableError(Exception):
    """The call cannot be made as it was asked for; the text says why."""


class Client:
    """One connection to a server, kept open."""

    def __init__(self, address: str, timeout_s: float = 60.0) -> None:
        host, _, port = address.rpartition(":")
        self._connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout_s)

    def infer(self, model: str, inputs: dict[str, Array]) -> dict[str, Array]:
        """Arrays by name in, arrays by name out."""
        head, body = request(inputs)
        headers = {HEAD: str(len(head)), "Content-Type": "application/octet-stream"}
        self._connection.request("POST", f"/v2/models/{model}/infer", head + body, headers)
        response = self._connection.getresponse()
        raw = response.read()
        if response.status != 200:
            told = json.loads(raw)
            retry_after_s = float(response.headers.get("Retry-After", 0))
            raise ServerError(response.status, str(told.get("code", "")), str(told["error"]), retry_after_s)
        return reply(raw, int(response.headers.get(HEAD, len(raw))))

    def close(self) -> None:
        self._connection.close()


def request(inputs: dict[str, Array]) -> tuple[bytes, bytes]:
    """The JSON head of a request, and the bytes that follow it."""
    described = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": DATATYPES[array.dtype.name],
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in inputs.items()
    ]
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    return head, b"".join(np.ascontiguousarray(array).tobytes() for array in inputs.values())


def reply(raw: bytes, head_bytes: int) -> dict[str, Array]:
    """The arrays of a reply: those in its JSON head, and those behind it."""
    arrays: dict[str, Array] = {}
    at = head_bytes
    for each in json.loads(raw[:head_bytes])["outputs"]:
        dtype = np.dtype(DTYPES[each["datatype"]])
        size = each.get("parameters", {}).get("binary_data_size")
        if size is None:
            flat = np.array(each["data"], dtype)
        else:
            flat = np.frombuffer(raw, dtype, count=size // dtype.itemsize, offset=at)
            at += size
        arrays[each["name"]] = flat.reshape(each["shape"])
    return arrays


def labels(outputs: dict[str, Array]) -> Array:
    """The model's label, or its most probable class."""
    return outputs["label"].reshape(-1) if "label" in outputs else outputs["probabilities"].argmax(axis=1)


def by_triton(address: str, model: str, x: Array) -> Array:
    """The same call through tritonclient (`pip install 'tritonclient[http]'`)."""
    try:
        from tritonclient.http import InferenceServerClient, InferInput  # noqa: PLC0415 - only if asked for
        from tritonclient.utils import InferenceServerException  # noqa: PLC0415
    except ImportError as error:
        raise UnusableError(f"--triton needs tritonclient: pip install 'tritonclient[http]' ({error})") from error
    with InferenceServerClient(address) as client:
        tensor = InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        try:
            result = client.infer(model, [tensor])
        except InferenceServerException as error:
            raise UnusableError(str(error)) from error
        return labels({name: result.as_numpy(name) for name in ("label", "probabilities") if result.get_output(name)})


def samples(path: str) -> tuple[Array, Array]:
    """64 digits and their labels."""
    try:
        with np.load(path) as saved:
            return saved["x"][:64], saved["y"][:64]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnusableError(f"{path} is not a held_out.npz as make_models.py writes it: {error}") from error


def asked(arguments: argparse.Namespace, x: Array) -> Array:
    """The labels that the model gives."""
    if arguments.triton:
        return by_triton(arguments.url, arguments.model, x)
    client = Client(arguments.url)
    try:
        return labels(client.infer(arguments.model, {"x": x}))
    finally:
        client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify held-out digits and print the accuracy.")
    parser.add_argument("held_out", help="held_out.npz as make_models.py writes it")
    parser.add_argument("--model", default="digits_linear")
    parser.add_argument("--url", default="127.0.0.1:8000", metavar="HOST:PORT", help="of the server, without http://")
    parser.add_argument("--triton", action="store_true", help="by tritonclient")
    arguments = parser.parse_args()
    try:
        x, y = samples(arguments.held_out)
        began = time.perf_counter()
        found = asked(arguments, x)
    except (UnusableError, ServerError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: no server at {arguments.url}: {error}")
    took_ms = (time.perf_counter() - began) * 1000
    print(f"{arguments.model}: {(found == y).mean():.1%} of {len(y)} digits right, {took_ms:.1f} ms")


if __name__ == "__main__":
    main()
