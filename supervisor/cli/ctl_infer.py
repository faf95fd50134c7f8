"""`ctl infer`: values from the command line, through the HTTP door that every client uses.

Covers: the request's shapes and datatypes, taken from the model's own metadata. Does not cover: checking them, which
is the server's; tensors that JSON cannot carry (FP16, BF16), for which there are clients.
"""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import quote

from mmsup.ipc.tensors.datatypes import shape_matches
from mmsup.supervisor.cli.control_client import ServerRefused

Json = dict[str, Any]  # the protocol's JSON


def build_request(values: Mapping[str, Any], metadata: Json) -> Json:  # values: nested lists or scalars
    """The inference request for values by input name; Refused names what does not fit."""
    declared = {each["name"]: each for each in metadata.get("inputs", [])}
    unknown = [name for name in values if name not in declared]
    if unknown:
        text = f"model {metadata.get('name')!r} has no input {unknown[0]!r}; it has {', '.join(map(repr, declared))}"
        raise ServerRefused("bad_request", text)
    return {"inputs": [_tensor(declared[name], value) for name, value in values.items()]}


def _tensor(declared: Json, value: Any) -> Json:  # a nested list or a scalar
    nested = nested_shape(value, declared["name"])
    shape = fit_shape(nested, declared["shape"])
    return {"name": declared["name"], "datatype": declared["datatype"], "shape": shape, "data": flatten(value)}


def nested_shape(value: Any, name: str) -> list[int]:  # a nested list or a scalar
    """The shape that the nesting of lists has; Refused where it is ragged."""
    if not isinstance(value, list):
        return []
    inner = [nested_shape(each, name) for each in cast("list[object]", value)]
    if any(each != inner[0] for each in inner):
        raise ServerRefused("bad_request", f"the lists of input {name!r} are not of one length")
    return [len(inner), *(inner[0] if inner else [])]


def fit_shape(nested: Sequence[int], declared: Sequence[int]) -> list[int]:
    """The shape to send: as nested if the rank fits, else one element more in front, else the declared one filled.

    Where nothing fits the nesting goes out as it is, and the server says what it expected.
    """
    missing = len(declared) - len(nested)
    if missing == 0:
        return list(nested)
    front, rest = declared[: max(missing, 0)], declared[max(missing, 0) :]
    if missing > 0 and all(each in (-1, 1) for each in front) and shape_matches(rest, nested):
        return [*[1] * missing, *nested]
    known = math.prod(each for each in declared if each >= 0)
    count = math.prod(nested)
    if len(nested) == 1 and list(declared).count(-1) == 1 and known and count % known == 0:
        return [count // known if each < 0 else each for each in declared]
    return list(nested)


def flatten(value: Any) -> list[Any]:  # a nested list or a scalar in, its scalars out
    """The elements of nested lists, row by row."""
    if not isinstance(value, list):
        return [value]
    return [scalar for each in cast("list[object]", value) for scalar in flatten(each)]


class InferenceClient:
    """The server's HTTP address, for a few calls in a row."""

    def __init__(self, address: str, timeout_s: float) -> None:
        host, _, port = address.rpartition(":")
        self._address = address
        self._connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout_s)

    def request(self, method: str, path: str, body: bytes | None = None) -> Json:
        """One call; Refused with the server's own words if it is no success."""
        try:
            self._connection.request(method, path, body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            raw = response.read()
        except TimeoutError:
            raise ServerRefused(
                "deadline_exceeded", f"no answer from {self._address} in time", retryable=True
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ServerRefused("unavailable", f"{self._address}: {error}", retryable=True) from None
        try:
            reply = json.loads(raw)
        except ValueError:
            reply = {"error": f"{self._address} answered {response.status} without JSON"}
        told = cast("Json", reply) if isinstance(reply, dict) else {}
        if response.status == 200 and told and "error" not in told:
            return told
        text = str(told.get("error") or f"HTTP status {response.status}")
        raise ServerRefused(str(told.get("code") or response.status), text, retryable=told.get("retryable") is True)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def model_path(model: str, version: str) -> str:
    """Where a model's endpoints begin."""
    return f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")
