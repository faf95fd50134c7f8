from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from control_double import CUT, ControlDouble, Request, done
from mmsup.supervisor.cli.ctl.control_client import Json, NoServer, ServerRefused, call_server


def test_a_request_is_one_line_and_its_result_is_returned(tmp_path: Path) -> None:
    with ControlDouble(tmp_path, lambda _: [done({"models": []})]) as server:
        assert call_server(str(tmp_path), "list") == {"models": []}
        assert call_server(str(tmp_path), "show", {"name": "a\nb"}) == {"models": []}
    assert server.requests == [{"verb": "list", "arguments": {}}, {"verb": "show", "arguments": {"name": "a\nb"}}]


def test_progress_is_passed_on_before_the_result(tmp_path: Path) -> None:
    lines = [{"progress": "importing onnxruntime"}, {"progress": "warming up"}, done({"state": "ready"})]
    received: list[Json] = []
    with ControlDouble(tmp_path, lambda _: lines):
        assert call_server(str(tmp_path), "load", {"name": "m"}, progress=received.append) == {"state": "ready"}
    assert received == lines[:2]


def test_lines_that_arrive_in_pieces_are_joined(tmp_path: Path) -> None:
    pieces = [b'{"progr', b'ess": "a"}\n{"progress": ', b'"b"}\n{"ok": true, "result": 7}', b"\n"]
    received: list[Json] = []
    with ControlDouble(tmp_path, lambda _: pieces):
        assert call_server(str(tmp_path), "load", progress=received.append) == 7
    assert received == [{"progress": "a"}, {"progress": "b"}]


def test_a_refusal_keeps_the_servers_text(tmp_path: Path) -> None:
    answer = {"ok": False, "code": "model_loading", "error": "'m' is loading", "retryable": True}
    with ControlDouble(tmp_path, lambda _: [answer]), pytest.raises(ServerRefused, match="'m' is loading") as caught:
        call_server(str(tmp_path), "unload", {"name": "m"})
    assert (caught.value.code, caught.value.retryable) == ("model_loading", True)


@pytest.mark.parametrize("line", [b"HTTP/1.1 400 Bad Request\r\n", b"[1]\n", b'{"ok": \n', b"\xff\n"])
def test_a_listener_that_is_no_mmsup_server_is_reported(tmp_path: Path, line: bytes) -> None:
    with ControlDouble(tmp_path, lambda _: [line]), pytest.raises(ServerRefused, match="not an mmsup server"):
        call_server(str(tmp_path), "status")


def test_without_a_server_the_error_names_the_command_that_starts_one(tmp_path: Path) -> None:
    with pytest.raises(NoServer, match="mmsup serve"):
        call_server(str(tmp_path), "status")


def test_a_socket_without_a_listener_is_no_server(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(tmp_path / "control.sock"))
    with pytest.raises(NoServer, match="mmsup serve"):
        call_server(str(tmp_path), "status")


def test_a_path_too_long_for_a_socket_is_named_as_the_reason() -> None:
    with pytest.raises(NoServer, match="too long"):
        call_server("/tmp/" + "d" * 200, "status")


def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "control.sock"))
        silent.listen(1)
        with pytest.raises(NoServer, match="does not answer"):
            call_server(str(tmp_path), "status", timeout_s=0.05)


def test_a_question_waits_in_the_queue_for_the_next_controller(tmp_path: Path) -> None:
    """While the keeper's listener is not accepted from, connecting and sending succeed; the result comes later."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen(4)
        sent = threading.Event()

        def next_controller() -> None:
            sent.wait(10)
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b'{"ok": true, "result": "here"}\n')

        controller = threading.Thread(target=next_controller)
        controller.start()
        sent.set()
        assert call_server(str(tmp_path), "status") == "here"
        controller.join()


def test_a_command_that_only_reads_is_sent_again_after_the_controller_died(tmp_path: Path) -> None:
    answers: Iterator[list[object]] = iter([[CUT], [CUT], [done("third")]])
    with ControlDouble(tmp_path, lambda _: next(answers)) as server:
        assert call_server(str(tmp_path), "status") == "third"
    assert len(server.requests) == 3


def test_a_command_that_changes_something_is_never_sent_twice(tmp_path: Path) -> None:
    double = ControlDouble(tmp_path, lambda _: [{"progress": "loading"}, CUT])
    with double as server, pytest.raises(ServerRefused, match="broke off") as caught:
        call_server(str(tmp_path), "load", {"name": "m"})
    assert caught.value.retryable
    assert len(server.requests) == 1


def test_a_stream_that_broke_off_is_not_started_again(tmp_path: Path) -> None:
    double = ControlDouble(tmp_path, lambda _: [{"progress": "", "line": "x"}, CUT])
    with double as server, pytest.raises(ServerRefused, match="broke off"):
        call_server(str(tmp_path), "logs", {"name": "m", "follow": True}, progress=lambda _: None, timeout_s=None)
    assert len(server.requests) == 1


def test_a_refusal_without_a_text_gets_one(tmp_path: Path) -> None:
    with (
        ControlDouble(tmp_path, lambda _: [{"ok": False}]),
        pytest.raises(ServerRefused, match="without a reason") as caught,
    ):
        call_server(str(tmp_path), "list")
    assert caught.value.code == "internal"


def test_an_endless_line_is_not_read_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsup.supervisor.cli.ctl.control_client.LINE_LIMIT", 1 << 16)

    def endless(_: Request) -> Iterator[bytes]:
        yield from [b"x" * 4096] * 64

    with ControlDouble(tmp_path, endless), pytest.raises(ServerRefused, match="too long"):
        call_server(str(tmp_path), "list")


def test_an_upgrade_is_sent_again_to_the_next_controller_with_the_same_ticket(tmp_path: Path) -> None:
    answers = iter([[{"progress": "another controller takes over"}, CUT], [CUT], [{"progress": "replacing"}, done(7)]])
    received: list[Json] = []
    with ControlDouble(tmp_path, lambda _: next(answers)) as server:
        assert call_server(str(tmp_path), "upgrade", {"ticket": "t"}, progress=received.append) == 7
    assert received == [{"progress": "another controller takes over"}, {"progress": "replacing"}]
    assert server.requests == [{"verb": "upgrade", "arguments": {"ticket": "t"}}] * 3
