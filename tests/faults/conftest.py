"""The server fixture of most fault tests: one per file, with the bystander loaded and warmed up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.invariants import assert_gone, server_processes
from harness.server import Http, Server, serving
from harness.victim import BYSTANDER, bystander_repository


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server per file; at the end it must stop in good order and leave nothing."""
    repository = bystander_repository(tmp_path_factory.mktemp("repository"))
    with serving(repository, "--model-control-mode", "explicit", "--load-model", BYSTANDER) as running:
        http = Http(running.address())
        http.infer(BYSTANDER, x=("FP32", [1], [0.0]))
        http.close()
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)
