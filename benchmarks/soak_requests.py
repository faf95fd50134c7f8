"""The requests of the soak test: every kind that a server meets, each with values of its own, and how its reply is
judged. Pure, but for the random numbers that it is given."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
SIZES = (*[16] * 60, *[300] * 8, *[3000] * 4, *[16_384] * 2, 262_144)
"""Floats of the requests with usual shapes; the weights are by repetition."""
LARGEST = max(SIZES)
MODELS = ("onnx", "batching", "reverse", "plain")
"""`plain` takes 16 floats, the others any number; `batching` also rows of them."""
SMALL = 16
MOST_ODD = 700
"""Requests with other shapes have up to so many floats."""
_VALUES = np.random.default_rng(11).standard_normal(2 * LARGEST).astype(np.float32)


@dataclass(frozen=True)
class SoakRequest:
    """One request, and what its reply has to be."""

    kind: str
    message: bytes
    status: int = 200
    tensor: bytes = b""
    """The bytes that end a binary reply."""
    data: bytes = b""
    """The numbers of a JSON reply, as floats of 32 bits."""
    name: str = ""
    """The id that the reply repeats, in its JSON or its head."""
    word: str = ""
    """A word of the reply's body: the code of an error."""

    def fault(self, head: bytes, body: bytes) -> str:
        """Why a reply is not the right one; empty if it is."""
        is_right = head.startswith(b"HTTP/1.1 %d" % self.status)
        is_right = is_right and body.endswith(self.tensor) and self.word.encode() in body
        is_right = is_right and self.name.encode() in head + body[:4096]
        if is_right and self.data:
            is_right = np.array(json.loads(body)["outputs"][0]["data"], np.float32).tobytes() == self.data
        return "" if is_right else f"{self.kind}: {head[:300]!r} {body[:200]!r}"


class RequestMix:
    """The requests of one client."""

    def __init__(self, number: int) -> None:
        self._rng = random.Random(number)
        self._serial = number << 32
        self._kinds: tuple[tuple[int, Callable[[], SoakRequest]], ...] = (
            (600, self._usual),
            (150, self._json),
            (60, self._json_with_id),
            (60, self._binary_with_id),
            (40, self._header_id),
            (30, self._unknown_head),
            (30, self._odd_shape),
            (20, self._rows),
            (3, self._raised),
            (3, self._no_model),
            (2, self._bad_json),
            (2, self._wrong_shape),
        )
        self._weights = [weight for weight, _ in self._kinds]

    def next_one(self) -> SoakRequest:
        """A request of any kind."""
        self._serial += 1
        return self._rng.choices(self._kinds, self._weights)[0][1]()

    def largest(self) -> SoakRequest:
        """One whose reply takes long to read."""
        return self._binary("left", "onnx", self._floats(LARGEST))

    def _floats(self, count: int) -> Floats:
        start = self._rng.randrange(LARGEST)
        return _VALUES[start : start + count]

    def _usual(self) -> SoakRequest:
        model = self._rng.choice(MODELS)
        return self._binary("binary", model, self._floats(SMALL if model == "plain" else self._rng.choice(SIZES)))

    def _odd_shape(self) -> SoakRequest:
        return self._binary("other shape", "reverse", self._floats(self._rng.randrange(1, MOST_ODD)))

    def _rows(self) -> SoakRequest:
        rows = self._rng.randrange(2, 16)
        return self._binary("rows", "batching", self._floats(rows * SMALL), rows=rows)

    def _unknown_head(self) -> SoakRequest:
        lines = f"X-Other-{self._rng.randrange(1 << 30)}: {'a' * self._rng.randrange(40)}\r\n"
        return self._binary("unknown head", "plain", self._floats(SMALL), lines=lines)

    def _header_id(self) -> SoakRequest:
        name = f"soak-{self._serial}"
        return self._binary("id in the head", "plain", self._floats(SMALL), lines=f"X-Request-Id: {name}\r\n")

    def _binary_with_id(self) -> SoakRequest:
        return self._binary("id in binary", "plain", self._floats(SMALL), name=f"soak-{self._serial}")

    def _binary(
        self, kind: str, model: str, values: Floats, *, rows: int = 1, lines: str = "", name: str = ""
    ) -> SoakRequest:
        shape = [rows, len(values) // rows] if model == "batching" else [len(values)]
        tensor = {"name": "x", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": values.nbytes}}
        head = {"inputs": [tensor], "parameters": {"binary_data_output": True}} | ({"id": name} if name else {})
        text = json.dumps(head).encode()
        lines += f"Inference-Header-Content-Length: {len(text)}\r\n"
        answer = values[::-1] if model == "reverse" else values
        return SoakRequest(kind, _post(model, text + values.tobytes(), lines), tensor=answer.tobytes(), name=name)

    def _json(self) -> SoakRequest:
        return self._as_json("JSON", {})

    def _json_with_id(self) -> SoakRequest:
        return self._as_json("id in JSON", {"id": f"soak-{self._serial}"})

    def _as_json(self, kind: str, members: dict[str, object]) -> SoakRequest:
        values = self._floats(SMALL)
        body = members | {"inputs": [{"name": "x", "datatype": "FP32", "shape": [SMALL], "data": values.tolist()}]}
        message = _post("plain", json.dumps(body).encode())
        return SoakRequest(kind, message, data=values.tobytes(), name=str(members.get("id", "")))

    def _raised(self) -> SoakRequest:
        mode = {"name": "mode", "datatype": "BYTES", "shape": [1], "data": ["raise"]}
        x = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
        message = _post("raises", json.dumps({"inputs": [x, mode]}).encode())
        return SoakRequest("model raised", message, 500, word="inference_failed")

    def _no_model(self) -> SoakRequest:
        message = _post(f"none{self._rng.randrange(1 << 30)}", b"{}")
        return SoakRequest("no such model", message, 404, word="unknown_model")

    def _bad_json(self) -> SoakRequest:
        return SoakRequest("bad JSON", _post("plain", b'{"inputs": ['), 400, word="bad_request")

    def _wrong_shape(self) -> SoakRequest:
        count = self._rng.randrange(SMALL + 1, MOST_ODD)
        x = {"name": "x", "datatype": "FP32", "shape": [count], "data": [0.5] * count}
        return SoakRequest("wrong shape", _post("plain", json.dumps({"inputs": [x]}).encode()), 400, word="shape")


def _post(model: str, body: bytes, lines: str = "") -> bytes:
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    return head.encode() + body
