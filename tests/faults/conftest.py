"""The server that most files of faults share: each file has one, with the bystander loaded and warm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.invariants import assert_gone, server_processes
from harness.server import Http, Server, serving
from harness.victim import BYSTANDER, bystander_repository


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Victims come and go; at the end of the file it stops in good order, and nothing of it is left."""
    repository = bystander_repository(tmp_path_factory.mktemp("repository"))
    with serving(repository, "--model-control-mode", "explicit", "--load-model", BYSTANDER) as running:
        http = Http(running.address())
        http.infer(BYSTANDER, x=("FP32", [1], [0.0]))
        http.close()
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)
