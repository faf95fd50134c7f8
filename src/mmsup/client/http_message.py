"""HTTP/1.1 as far as a client of this protocol needs it: heads, chunked bodies, server-sent events.

Pure: bytes in, values out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

HEAD_LIMIT_BYTES: Final = 1 << 16
EVENT_LIMIT_BYTES: Final = 256 << 20
"""Of one event: a server that never ends it is not waited for without end."""
END: Final = b"\r\n\r\n"
_PADDING: Final = 16
"""Tensors behind the JSON of a reply begin at a multiple of it."""
HEADER_LENGTH: Final = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Names of headers are in lower case. `length` None: the body is chunked."""

    status: int
    headers: Mapping[str, str]
    length: int | None
    version: str = "HTTP/1.1"

    @property
    def is_last(self) -> bool:
        """The server closes the connection after it."""
        told = self.headers.get("connection", "").lower()
        return told == "close" or (self.version == "HTTP/1.0" and told != "keep-alive")

    @property
    def padding(self) -> int:
        """Bytes to leave before the body, so that its tensors are aligned."""
        header = self.headers.get(HEADER_LENGTH, "")
        return -int(header) % _PADDING if header.isdecimal() else 0


def request_head(method: str, path: str, host: str, headers: Mapping[str, str], length: int) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    if length or method == "POST":
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def parse_head(data: bytes) -> ResponseHead:
    """The head of a response, with or without the empty line after it; ValueError if it is none."""
    first, *lines = data.decode("latin-1").rstrip("\r\n").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
        raise ValueError("the answer is not HTTP")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError("the answer has a header line without a colon")
        headers[name.strip().lower()] = value.strip()
    length: int | None = None
    if "chunked" not in headers.get("transfer-encoding", "").lower():
        given = headers.get("content-length", "0")
        if not given.isdecimal():
            raise ValueError("the answer has a Content-Length that is no number")
        length = int(given)
    return ResponseHead(int(rest[:3]), headers, length, version)


class ChunkedBody:
    """Takes a chunked body apart, in whatever pieces it comes."""

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        """Bytes of the present chunk that are still to come, with its line end."""
        self._is_trailer = False
        self.is_complete = False

    def feed(self, data: bytes) -> bytes:
        """What of the body is in the next bytes; ValueError for bytes that are no chunks."""
        self._rest += data
        found = bytearray()
        while self._rest and not self.is_complete:
            if self._left:
                piece = self._rest[: self._left]
                self._rest = self._rest[len(piece) :]
                found += piece[: max(0, self._left - 2)]
                self._left -= len(piece)
                continue
            line, end, rest = self._rest.partition(b"\r\n")
            if not end:
                if len(line) > HEAD_LIMIT_BYTES:
                    raise ValueError("a chunk of the answer has no size")
                break
            self._rest = rest
            if self._is_trailer:
                self.is_complete = not line
                continue
            size = int(line.partition(b";")[0], 16)
            self._is_trailer = not size
            self._left = size + 2 if size else 0
        return bytes(found)


class EventParser:
    """Takes a stream of server-sent events apart: the data of each event."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The events that are complete with these bytes; ValueError for one without an end."""
        *complete, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(self._rest) > EVENT_LIMIT_BYTES:
            raise ValueError("an event of the answer has no end")
        found: list[str] = []
        for event in complete:
            lines = [
                line.removeprefix("data:").removeprefix(" ")
                for line in event.decode().split("\n")
                if line[:5] == "data:"
            ]
            if lines:
                found.append("\n".join(lines))
        return found
