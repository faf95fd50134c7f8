"""Requests for a fuzzer of the HTTP front: good ones, and whatever may be wrong with one."""

from __future__ import annotations

import json
import re
import struct

from mmsup.gateway.protocol.binary_tensors import HEADER

JSON = json.dumps({"inputs": [{"name": "X", "shape": [2], "datatype": "FP32", "data": [1, 2.5]}]}).encode()
WORDS = json.dumps(
    {
        "inputs": [{"name": "X", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}],
        "parameters": {"binary_data_output": True},
    }
).encode()
BLOB = struct.pack("<2f", 1, 2.5)


def post(
    *lines: str, body: bytes = JSON, target: str = "/v2/models/m/infer", version: str = "1.1", length: str = ""
) -> bytes:
    """A request; `lines` after the host, then its length."""
    given = [
        f"POST {target} HTTP/{version}",
        "Host: localhost",
        *lines,
        f"Content-Length: {length or len(body)}",
        "",
        "",
    ]
    return "\r\n".join(given).encode() + body


def bare(*lines: str, body: bytes = b"") -> bytes:
    """A request of exactly these lines."""
    return "\r\n".join([*lines, "", ""]).encode() + body


GET = bare("GET /livez HTTP/1.1", "Host: localhost")
BINARY = post(f"{HEADER}: {len(WORDS)}", body=WORDS + BLOB)
CHUNKED = bare(
    "POST /v2/models/m/infer HTTP/1.1",
    "Host: localhost",
    "Transfer-Encoding: chunked",
    body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(JSON), JSON),
)
START = ("POST /v2/models/m/infer HTTP/1.1", "Host: localhost")
SIZE = f"Content-Length: {len(JSON)}"
CASES: dict[str, bytes] = {
    "json": post(),
    "binary": BINARY,
    "raw": post(f"{HEADER}: 0", body=BLOB),
    "versioned": post(target="/v2/models/m/versions/1/infer"),
    "echo": post("X-Request-Id: abc"),
    "id": post(body=JSON[:-1] + b', "id": "7"}'),
    "empty": post(body=b""),
    "two": post() + post("X-Request-Id: 2"),
    "mixed": post() + GET + BINARY + CHUNKED + post(),
    "slow first": GET + post() + GET,
    "chunked first": CHUNKED + post(),
    "not json": post(body=b"{" * 9),
    "wrong shape": post(body=JSON.replace(b"[2]", b"[3]")),
    "then good": post(body=b"{}") + post(),
    "unknown model": post(target="/v2/models/zz/infer") + post(),
    "unknown version": post(target="/v2/models/m/versions/9/infer"),
    "bad version": post(target="/v2/models/m/versions/x/infer"),
    "percent": post(target="/v2/models/%6d/infer"),
    "percent slash": post(target="/v2/models/m%2finfer"),
    "percent null": post(target="/v2/models/m%00/infer"),
    "double slash": post(target="//v2/models/m/infer"),
    "double slash within": post(target="/v2/models//m/infer"),
    "query": post(target="/v2/models/m/infer?a=b"),
    "fragment": post(target="/v2/models/m/infer#a"),
    "absolute": post(target="http://localhost/v2/models/m/infer"),
    "dots": post(target="/v2/models/../models/m/infer"),
    "bad name": post(target="/v2/models/-/infer"),
    "no host": bare("POST /v2/models/m/infer HTTP/1.1", SIZE, body=JSON),
    "two hosts": post("Host: y"),
    "length twice": post(SIZE),
    "length twice, other": post("Content-Length: 1"),
    "length list": bare(*START, f"Content-Length: {len(JSON)}, {len(JSON)}", body=JSON),
    "length plus": bare(*START, f"Content-Length: +{len(JSON)}", body=JSON),
    "length minus": bare(*START, "Content-Length: -1", body=JSON),
    "length hex": bare(*START, f"Content-Length: {len(JSON):#x}", body=JSON),
    "length huge": bare(*START, "Content-Length: 99999999999999999999999999", body=JSON),
    "length too large": bare(*START, "Content-Length: 99999999", body=JSON),
    "length spaced": bare(*START, f"Content-Length:   {len(JSON)}  ", body=JSON),
    "length padded": bare(*START, f"Content-Length: 000{len(JSON)}", body=JSON),
    "length empty": bare(*START, "Content-Length:", body=JSON),
    "length underscore": bare(*START, "Content-Length: 1_0", body=JSON),
    "length too small": post(length="5"),
    "no length": bare(*START, body=JSON),
    "length and chunked": bare(*START, SIZE, "Transfer-Encoding: chunked", body=JSON),
    "chunked and length": bare(*START, "Transfer-Encoding: chunked", SIZE, body=JSON),
    "chunked twice": bare(*START, "Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
    "identity": bare(*START, "Transfer-Encoding: identity", SIZE, body=JSON),
    "coding": post("Content-Encoding: br"),
    "coding identity": post("Content-Encoding: identity"),
    "expect": post("Expect: 100-continue"),
    "expect other": post("Expect: x"),
    "upgrade": post("Connection: upgrade", "Upgrade: websocket"),
    "upgrade h2c": post("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"),
    "close": post("Connection: close") + post(),
    "keep-alive": post("Connection: keep-alive") + post(),
    "connection other": post("Connection: x") + post(),
    "http/1.0": post(version="1.0") + post(),
    "http/1.0 kept": post("Connection: keep-alive", version="1.0") + post(),
    "http/1.2": post(version="1.2"),
    "http/2.0": post(version="2.0"),
    "http/1": post(version="1"),
    "lower method": post().replace(b"POST", b"post"),
    "put": post().replace(b"POST", b"PUT"),
    "folded": post("X-A: b", " c"),
    "folded tab": post("X-A: b", "\tc"),
    "bare newlines": post().replace(b"\r\n", b"\n"),
    "a bare newline": post("X-A: b\nX-B: c"),
    "a bare return": post("X-A: b\rX-B: c"),
    "head ends early": post("X-A: b\n\nX-B: c"),
    "null": post("X-A: b\0c"),
    "null in name": post("X\0A: b"),
    "space before colon": post("X-A : b"),
    "no colon": post("XA"),
    "no name": post(": b"),
    "space in front": post(" X-A: b"),
    "high bytes": post("X-A: \u00e9"),
    "blank lines first": b"\r\n\r\n" + post(),
    "newline first": b"\n" + post(),
    "blank lines between": post() + b"\r\n\r\n" + post(),
    "garbage": b"GARBAGE\r\n\r\n",
    "garbage after": post() + b"GARBAGE\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "foreign type": post("Content-Type: text/xml"),
    "form type": post("Content-Type: multipart/form-data; boundary=x"),
    "header length minus": post(f"{HEADER}: -1"),
    "header length too large": post(f"{HEADER}: 999"),
    "header length text": post(f"{HEADER}: x"),
    "header length twice": post(f"{HEADER}: 2", f"{HEADER}: 2"),
    "header length huge": post(f"{HEADER}: 99999999999999999999999"),
    "blob too short": post(f"{HEADER}: {len(WORDS)}", body=WORDS + BLOB[:4]),
    "blob too long": post(f"{HEADER}: {len(WORDS)}", body=WORDS + BLOB + b"x"),
    "cut in the body": post()[:-3],
    "cut in the head": post()[:40],
    "smuggled": post(length="4", body=b"null" + GET),
    "body is a request": post(body=GET),
    "body ends blank": post(body=JSON + b"\r\n\r\n") + post(),
    "get with a body": bare("GET /livez HTTP/1.1", "Host: localhost", "Content-Length: 4", body=b"abcd") + post(),
    "control": bare("POST /v2/repository/index HTTP/1.1", "Host: localhost", "Content-Length: 2", body=b"{}") + post(),
    "options": bare("OPTIONS /v2/models/m/infer HTTP/1.1", "Host: localhost") + post(),
    "head": bare("HEAD /v2/models/m/infer HTTP/1.1", "Host: localhost"),
    "delete": bare("DELETE /v2/models/m/infer HTTP/1.1", "Host: localhost") + post(),
    "long header": post("X-A: " + "b" * 9000),
    "many headers": post(*[f"X-{each}: a" for each in range(200)]),
}


def finer(pieces: list[bytes]) -> list[bytes]:
    """The same, cut behind blank lines as well."""
    return [part for each in pieces for part in re.split(rb"(?<=\r\n\r\n)", each) if part]
