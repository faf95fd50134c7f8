"""Results of commands that are too long for one message: deflated. States of many models are much alike."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from typing import Any, Final

_KEY: Final = "deflated"


def pack(result: Any) -> dict[str, str]:  # JSON
    deflated = zlib.compress(json.dumps(result).encode(), level=1)
    return {_KEY: base64.b64encode(deflated).decode()}


def unpack(result: Any, loads: Callable[[bytes], Any] = json.loads) -> Any:  # JSON
    """What was packed; anything else as it is. `loads`: a faster reader of JSON, where there is one."""
    if not isinstance(result, dict) or result.keys() != {_KEY}:
        return result
    return loads(zlib.decompress(base64.b64decode(result[_KEY])))
