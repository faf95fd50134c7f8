"""What befalls streams of responses: the end of each process under them, readers that stop, clients that leave."""

from __future__ import annotations

import http.client
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from engines.build import write_python
from harness.bystander import Bystander
from harness.invariants import assert_clean, settled
from harness.rpc_calls import Replies, connected, tensor
from harness.server import Server, eventually, serving
from harness.stream_reader import Document, StreamReader
from harness.victim import BYSTANDER, bystander_repository
from mmsup.ipc.messages.stream_window import WINDOW_PARTS
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow

TEXT = """
import os
import pathlib
import signal
import threading

import numpy as np

class Model:
    def load(self, context):
        self.made = self.open = 0

    def infer(self, inputs):
        word, place = inputs["mode"][0], int(inputs["at"][0]) if "at" in inputs else -1
        if word == "made":
            yield {"y": np.array([self.made, self.open], np.int32)}
            return
        self.open += 1
        try:
            for index in range(1 << 30):
                if index == place:
                    if word == "kill":
                        os.kill(os.getpid(), signal.SIGKILL)
                    if word == "hang":
                        threading.Event().wait()
                    if word == "count":
                        return
                self.made += 1
                yield {"y": np.full(500, index, np.int32)}
        finally:
            self.open -= 1
"""
INPUTS = (TensorSpec("mode", "BYTES", (1,)), TensorSpec("at", "INT32", (1,), optional=True))
OUTPUTS = (TensorSpec("y", "INT32", (-1,)),)
VICTIMS = "one", "two", "three", "poisoned"
"""A worker of each is ended once, so that none has to wait before it is started again; of the last one twice."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = bystander_repository(tmp_path_factory.mktemp("models"))
    for name in ("s", *VICTIMS):
        write_python(repository, name, TEXT, INPUTS, OUTPUTS, settings={"hang_limit": "1s", "strings": "text"})
    with serving(repository) as running:
        http = running.http()
        assert http.infer(BYSTANDER, x=("FP32", [1], [0.0]))[0] == 200
        http.close()
        yield running


def stream(server: Server, mode: str, at: int | None = None, model: str = "s") -> StreamReader:
    return StreamReader(server, f"{model}/generate_stream", {"mode": mode} | ({} if at is None else {"at": at}))


def endless(server: Server, model: str = "s", **options: int) -> StreamReader:
    return StreamReader(server, f"{model}/generate_stream", {"mode": "on"}, **options)


def made(server: Server, model: str = "s") -> tuple[int, int]:
    """Parts that the worker has made in all, and how many of its streams are open."""
    with stream(server, "made", model=model) as reader:
        parts, opened = reader.next()["y"]
        assert reader.next() is None
        return parts, opened


def ended(reader: StreamReader) -> tuple[list[int], Document]:
    """The parts that were still to be read, and the error that the stream ends with."""
    *parts, error = reader.until_end()
    return [each["y"][0] for each in parts], error


@pytest.mark.fault("F67")
def test_a_worker_that_dies_in_a_stream_ends_each_of_its_streams_with_one_error(server: Server) -> None:
    with Bystander(server, BYSTANDER), endless(server, "one") as first, endless(server, "one") as second:
        assert [each.next()["y"][0] for each in (first, second)] == [0, 0]
        os.kill(server.pid("one"), signal.SIGKILL)
        for reader in (first, second):
            error = ended(reader)[1]
            assert (error["code"], error["model"], error["retryable"]) == ("worker_crashed", "one", True)
        eventually(lambda: made(server, "one") == (0, 0), "the next worker serves")


@pytest.mark.fault("F67")
def test_a_worker_that_dies_before_the_first_part_is_a_status_and_its_neighbour_ends_as_a_stream(
    server: Server,
) -> None:
    with endless(server, "two") as neighbour, Bystander(server, BYSTANDER):
        assert neighbour.next()["y"][0] == 0
        with stream(server, "kill", 0, "two") as reader:
            assert reader.status == 503
            assert b'"worker_crashed"' in reader.rest()
        assert ended(neighbour)[1]["code"] == "worker_crashed"


@pytest.mark.fault("F13", "F67")
def test_a_stream_that_ends_its_worker_after_some_parts_twice_is_refused(server: Server) -> None:
    with Bystander(server, BYSTANDER):
        for _ in range(2):
            with stream(server, "kill", 3, "poisoned") as reader:
                parts, error = ended(reader)
                assert (parts, error["code"]) == ([0, 1, 2], "worker_crashed")
        with stream(server, "kill", 3, "poisoned") as reader:
            assert reader.status == 422
        with stream(server, "count", 3, "poisoned") as reader:
            assert len(reader.until_end()) == 3


@pytest.mark.fault("F67")
def test_a_generator_that_hangs_between_two_parts_is_a_hang(server: Server) -> None:
    with Bystander(server, BYSTANDER), stream(server, "hang", 2, "three") as reader:
        parts, error = ended(reader)
        assert (parts, error["code"]) == ([0, 1], "worker_hung")


@pytest.mark.fault("F68")
def test_a_gateway_that_dies_cuts_its_streams_and_the_worker_closes_them(server: Server) -> None:
    pid = server.pid("s")
    with endless(server) as reader:
        reader.next()
        (gateway,) = server.status()["gateways"]
        os.kill(gateway["pid"], signal.SIGKILL)
        with pytest.raises((http.client.HTTPException, OSError)):
            reader.until_end()
    eventually(lambda: made(server)[1] == 0, "the generator is closed")
    assert server.pid("s") == pid


@pytest.mark.fault("F68")
def test_streams_go_on_while_a_controller_is_replaced(server: Server) -> None:
    with Bystander(server, BYSTANDER), endless(server) as reader:
        reader.next()
        controller = server.status()["brain"]
        os.kill(controller["pid"], signal.SIGKILL)
        eventually(lambda: server.status()["brain"]["generation"] > controller["generation"], "another controller")
        assert [reader.next()["y"][0] for _ in range(100)] == list(range(1, 101))


@pytest.mark.fault("F69")
def test_a_reader_that_stops_stops_its_model_and_nobody_else(server: Server) -> None:
    before = settled(server)
    with Bystander(server, BYSTANDER), endless(server, receive_bytes=4096) as reader, connected(server) as client:
        reader.next()
        held = Replies()
        client.start_stream(held)
        client.async_stream_infer("s", [tensor("mode", "BYTES", np.array([b"on"], np.object_))])
        held.next()  # tritonclient reads on
        client.stop_stream(cancel_requests=True)
        eventually(lambda: made(server)[1] == 1, "one stream is open")
        seen = -1

        def stands() -> bool:
            nonlocal seen
            was, seen = seen, made(server)[0]
            return was == seen

        eventually(stands, "the model makes no more parts")
        with stream(server, "count", 3 * WINDOW_PARTS) as other:
            assert len(other.until_end()) == 3 * WINDOW_PARTS
        assert [reader.next()["y"][0] for _ in range(50)] == list(range(1, 51))
    eventually(lambda: made(server)[1] == 0, "the generator is closed")
    assert_clean(before, server)


@pytest.mark.fault("F70")
def test_a_client_that_leaves_closes_its_generator(server: Server) -> None:
    with Bystander(server, BYSTANDER):
        readers = [endless(server) for _ in range(5)]
        for each in readers:
            each.next()
        assert made(server)[1] == 5
        for each in readers:
            each.close()
        eventually(lambda: made(server)[1] == 0, "all generators are closed")
        eventually(lambda: server.gauge("mmsup_requests_open", model="s") == 0, "no request is open")
