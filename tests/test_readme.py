"""What the documents tell people to type does what they say."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from mmsup.ipc import exit_codes
from mmsup.supervisor.chaos.plan.catalog import FAULTS
from mmsup.supervisor.cli.ctl.control_client import call_server
from mmsup.supervisor.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "composition",
    "groups",
    "memory",
    "models",
    "on-demand",
    "operations",
    "sequences",
    "streams",
    "triton-python",
)
DOCUMENTS = ("README.md", "systemd/README.md", *(f"docs/{each}.md" for each in PAGES))
START_S = 120.0


def typed(document: str) -> list[str]:
    """The lines of a document's code blocks."""
    return [line[4:] for line in (ROOT / document).read_text().splitlines() if line.startswith("    ")]


def commands() -> list[list[str]]:
    """Every `mmsup …` that the documents show, in blocks or in the text, without its arguments."""
    text = "\n".join((ROOT / document).read_text() for document in DOCUMENTS)
    found = {tuple(match.split()) for match in re.findall(r"\bmmsup ((?:ctl )?(?:serve|check|[a-z]+(?= |`)))", text)}
    return sorted([*each] for each in found if each[0] in main.list_commands(None))  # type: ignore[arg-type]  # unread


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_that_is_shown_exists(command: list[str]) -> None:
    assert CliRunner().invoke(main, [*command, "--help"]).exit_code == exit_codes.SUCCESS


def options_of(command: click.Command) -> set[str]:
    """Of the command itself, and of all below it."""
    found = {option for param in command.params for option in param.opts}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            found |= options_of(below)
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_flag_that_is_shown_exists(document: str) -> None:
    known = {"--help", "--version", "--now", "--offline", "--user", *options_of(main)}
    text = (ROOT / document).read_text()
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - {"--flag", "--grpc-use-ssl", "--url", "--triton"}
    assert shown <= known


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_is_linked_exists(document: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text())
    assert all(((ROOT / document).parent / link).exists() for link in links), links


@pytest.mark.parametrize("document", ["README.md", "docs/benchmarks/chaos.md"])
def test_the_number_of_classes_of_faults_is_told(document: str) -> None:
    assert f" {len(FAULTS)} " in " ".join((ROOT / document).read_text().split())


def test_the_makefile_has_the_two_commands() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {line.split()[1] for line in typed("README.md") if line.startswith("make ")} <= targets


def own_model(path: Path) -> None:
    """An ONNX file of somebody's: four numbers in, their double out."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def notification(notified: socket.socket, server: subprocess.Popen[bytes]) -> bytes:
    """What the server sends to its service manager next; AssertionError if it ends or takes too long."""
    pidfd = os.pidfd_open(server.pid)
    try:
        readable, _, _ = select.select([notified.fileno(), pidfd], [], [], START_S)
    finally:
        os.close(pidfd)
    assert notified.fileno() in readable, "the server has ended" if readable else f"not ready within {START_S:.0f} s"
    return notified.recv(4096)


@pytest.mark.slow
def test_a_file_of_ones_own_is_served_by_the_commands_of_the_readme(tmp_path: Path) -> None:
    install, serve, curl = [line for line in typed("README.md") if re.match(r"pip |mkdir |curl .*infer", line)][:3]
    assert install == "pip install '.[onnx]'"
    own_model(tmp_path / "mine.onnx")
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MMSUP_HTTP_PORT": "0",  # the one thing that is not as the reader has it
        "MMSUP_METRICS_PORT": "0",
        "MMSUP_RUNTIME_DIR": str(tmp_path / "run"),
        "MMSUP_STATE_DIR": str(tmp_path / "state"),
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, (tmp_path / "log").open("wb") as log:
        notified.bind(str(tmp_path / "notify"))
        shell = ["sh", "-c", serve.replace("mmsup serve", "exec mmsup serve")]
        server = subprocess.Popen(shell, cwd=tmp_path, env=environ, stdout=log, stderr=log)
        try:
            while b"READY=1" not in notification(notified, server).splitlines():
                pass
            address = call_server(str(tmp_path / "run"), "status")["addresses"]["http"]
            asked = shlex.split(curl.replace("localhost:8000", address))
            reply = subprocess.run(
                [*asked, "--silent", "--show-error"], capture_output=True, text=True, check=True
            ).stdout
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
    assert json.loads(reply)["outputs"][0]["data"] == [2, 4, 6, 8]
    assert code == exit_codes.SUCCESS
