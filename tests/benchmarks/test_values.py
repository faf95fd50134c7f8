"""Every request of a benchmark has other values, and an answer is compared with those that its own request had."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import values
from changing_request import ChangingRequest
from places import program
from roster import BY_KEY
from server import expected_answer
from values import Kind
from wire import REQUEST_ID, json_id, message_id, v2_requests_with_ids
from work import SCENES, Array, Scene

LARGE = Scene("large", "double", (3, 300, 300), ())
BY_NAME = {scene.key: scene for scene in (*SCENES, LARGE)}
SMALL = BY_NAME["small"]
REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def changing(peer: str, scene: Scene) -> tuple[ChangingRequest, Array]:
    x = scene.inputs()[0]
    return ChangingRequest.of(BY_KEY[peer].request(scene, scene.names[0], x).encode(), x), x


@pytest.mark.parametrize(
    ("peer", "scene", "kind"),
    [
        ("mmsup", "small", Kind.FLOAT),
        ("mosec", "small", Kind.FLOAT),
        ("mmsup", "json", Kind.DIGITS),
        ("bentoml", "json", Kind.DIGITS),
        ("bentoml", "large", Kind.FLOAT),
        ("mlserver", "large", Kind.BASE64),
        ("mmsup", "large", Kind.FLOAT),
        ("mmsup", "mlp", Kind.FLOAT),
        ("mlserver", "mlp", Kind.DIGITS),
    ],
)
def test_a_tensor_is_found_in_every_encoding_and_read_as_it_was(peer: str, scene: str, kind: Kind) -> None:
    request, x = changing(peer, BY_NAME[scene])
    assert request.tensor.kind is kind
    assert np.array_equal(request.sent(0)[1], x)


@pytest.mark.parametrize("peer", ["mmsup", "mlserver"])
@pytest.mark.parametrize("scene", [SMALL, LARGE], ids=["small", "large"])
def test_two_requests_have_different_values_and_equal_lengths(peer: str, scene: Scene) -> None:
    request, x = changing(peer, scene)
    sent = [request.sent(serial) for serial in (1, 2)]
    assert len({len(message) for message, _ in sent}) == 1
    differing = np.sum(sent[0][1] != sent[1][1])
    assert differing >= (x.size if x.size <= values.ALL_CHANGE else values.SPOTS) * 0.9


def test_another_answer_than_the_own_one_shows_in_the_mean_of_a_large_tensor() -> None:
    scene = BY_NAME["mean"]
    request, _ = changing("mmsup", scene)
    means = [float(request.sent(serial)[1].mean(dtype=np.float64)) for serial in (1, 2, 3)]
    assert min(abs(a - b) for a in means for b in means if a != b) > 2e-5


def test_ids_differ_in_every_request_and_are_read_from_the_bytes() -> None:
    x = SMALL.inputs()[0]
    for request in v2_requests_with_ids("scale0", x):
        made = ChangingRequest.of(request.encode(), x)
        first, second = (made.sent(serial)[0] for serial in (1, 2))
        assert REQUEST_ID.encode() not in first
        assert first.count(b"bench-") == 1
        ids = {message_id(first), message_id(second)}
        assert len(ids) == (2 if b'"id"' in request.body else 1)
        assert message_id(first) == json_id(first[first.index(b"{") :])


def test_the_parts_are_read_back_from_their_lines() -> None:
    request, _ = changing("mmsup", BY_NAME["json"])
    assert values.read_parts("".join(part.line() for part in request.parts)) == request.parts


def received(port_of: socket.socket, wanted: int, sizes: set[int]) -> list[bytes]:
    """Answer every request of one connection; returns them."""
    (size,) = sizes
    found: list[bytes] = []
    with port_of.accept()[0] as connection:
        while len(found) < wanted:
            message = connection.recv(size, socket.MSG_WAITALL)
            if not message:
                break
            found.append(message)
            connection.sendall(REPLY)
    return found


@pytest.mark.skipif(not shutil.which("cc"), reason="the load generator needs a C compiler")
@pytest.mark.parametrize(
    ("peer", "scene"),
    [("mmsup", SMALL), ("mmsup", BY_NAME["json"]), ("mlserver", LARGE)],
    ids=["floats", "json", "base64"],
)
def test_the_load_generator_sends_what_is_computed_from_the_number(peer: str, scene: Scene, tmp_path: Path) -> None:
    request, _ = changing(peer, scene)
    request.write(tmp_path / "request.0")
    (tmp_path / "samples").mkdir()
    found: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        size = {len(request.message)}
        server = threading.Thread(target=lambda: found.extend(received(listener, 5, size)))
        server.start()
        words = [str(program("load")), "127.0.0.1", str(listener.getsockname()[1]), "1", "0", "30"]
        with subprocess.Popen([*words, str(tmp_path / "samples"), str(tmp_path / "request.0")]) as load:
            server.join()
            load.kill()
    assert found == [request.sent(serial)[0] for serial in range(1, 6)]


def test_the_expected_answer_is_that_of_the_changed_values() -> None:
    request, x = changing("mmsup", BY_NAME["json"])
    message, sent = request.sent(7)
    data = json.loads(message[message.index(b"{") :])["inputs"][0]["data"]
    assert np.array_equal(sent, np.array(data, np.float32))
    expected = expected_answer(BY_NAME["json"], sent, None)  # type: ignore[arg-type] # no network is asked
    assert np.allclose(expected, sent * 2 + 1)
    assert not np.allclose(expected, x * 2 + 1)
