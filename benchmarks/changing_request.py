"""A request whose values differ each time that it is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import values
from values import ChangingPart, TensorBytes
from work import Array


@dataclass(frozen=True)
class ChangingRequest:
    message: bytes
    """The whole HTTP request."""
    tensor: TensorBytes
    parts: tuple[ChangingPart, ...]

    @classmethod
    def of(cls, message: bytes, x: Array) -> ChangingRequest:
        """Find what changes in a request that holds the tensor `x`."""
        tensor = values.locate(message, x)
        return cls(message, tensor, values.changing_parts(message, tensor))

    def sent(self, serial: int) -> tuple[bytes, Array]:
        """What was sent as request number `serial`, and its tensor; as it is for 0."""
        message = values.changed(self.message, self.parts, serial) if serial else self.message
        return message, self.tensor.read(message)

    def write(self, file: Path) -> None:
        """Write it and its changing parts for the load generator."""
        file.write_bytes(self.message)
        file.with_name(f"{file.name}.values").write_text("".join(part.line() for part in self.parts))
