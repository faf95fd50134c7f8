"""Many clients load, unload and call the same models at once: each answer is explained by some order of what they did.

`--storm-operations 1000` is the full size, as `make test-extra` runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.invariants import assert_clean, assert_gone, server_processes, settled
from harness.known_traffic import write_ordered_model
from harness.load_storm import VERBS, WITH_SLEEP, Operation, Plan, Reference, storm
from harness.server import Server, serving

CLIENTS = 32
MODELS = tuple(f"m{number}" for number in range(6))
GROUPED = MODELS[-2:]
"""They share a process."""
WARM_UP = 10
"""Operations of each client, after which a gateway has allocated what it keeps."""
OPERATION_S = 2.0
"""A client's operations take less on the average, loads included, even on a loaded machine."""


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    for name in MODELS:
        write_ordered_model(tmp_path, name)
    for name in GROUPED:
        with (tmp_path / name / "mmsup.yaml").open("a") as settings:
            settings.write("group: shared\n")
    with serving(tmp_path, "--model-control-mode", request.param) as running:
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)


def load_all(server: Server) -> None:
    for name in MODELS:
        server.ctl("load", name=name)


def change_files(server: Server, name: str) -> None:
    """Write a model's code anew, in the same words."""
    code = server.repository / name / "1" / "model.py"
    code.write_text(code.read_text())


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.fault("F54")
@pytest.mark.parametrize("server", ["explicit", "none", "poll", "on-demand"], indirect=True)
def test_in_a_storm_of_loads_and_unloads_every_answer_is_explained(
    server: Server, pytestconfig: pytest.Config, request: pytest.FixtureRequest
) -> None:
    operations = pytestconfig.getoption("--storm-operations")
    mode = request.node.callspec.params["server"]
    load_all(server)
    for name in MODELS:
        http = server.http()
        assert http.infer(name, x=("FP32", [8], [0.0] * 8))[0] == 200
        http.close()
    verbs = WITH_SLEEP if mode == "on-demand" else VERBS
    storm(server, MODELS, CLIENTS, Plan(WARM_UP, verbs), 60.0 + OPERATION_S * WARM_UP, by_http=mode != "poll")
    load_all(server)
    before, brain = settled(server), server.status()["brain"]
    plan = Plan(operations, verbs)
    found = storm(server, MODELS, CLIENTS, plan, 60.0 + OPERATION_S * operations, by_http=mode != "poll")
    print(f"\n{mode}, {len(found.operations)} operations\n{found.summary()}")
    assert server.status()["brain"] == brain, [line for line in server.log().splitlines() if '"info"' not in line]
    assert found.failures == []
    assert len(found.operations) == CLIENTS * operations
    for name in MODELS:
        reference = found.of(name)
        assert reference.faults() == []
        is_up = server.model(name)["state"] in ("ready", "asleep")
        assert is_up in reference.final_states(), (name, server.model(name))
        http = server.http()
        assert (http.infer(name, x=("FP32", [8], [0.0] * 8))[0] == 200) is is_up
        http.close()
    assert not server.events("worker_exit"), "no worker died"
    load_all(server)
    assert_clean(before, server)


def operations(*rows: tuple[str, float, float, int, str]) -> Reference:
    return Reference([Operation(verb, "m", began, ended, status, code) for verb, began, ended, status, code in rows])


LOADED, UNLOADED = ("load", 0.0, 1.0, 200, ""), ("unload", 5.0, 6.0, 200, "")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([LOADED, ("infer", 2.0, 3.0, 200, "")], ""),
        ([LOADED, ("infer", 2.0, 3.0, 503, "model_loading")], "refused by a model that was up"),
        ([LOADED, ("infer", 0.5, 3.0, 503, "model_loading")], ""),
        ([LOADED, UNLOADED, ("infer", 4.0, 5.5, 404, "unknown_model")], ""),
        ([LOADED, UNLOADED, ("infer", 5.5, 9.0, 200, "")], ""),
        ([LOADED, UNLOADED, ("infer", 7.0, 8.0, 200, "")], "served by a model that was unloaded"),
        ([LOADED, UNLOADED, ("infer", 7.0, 8.0, 503, "worker_crashed")], "for another reason"),
        ([LOADED, UNLOADED, ("load", 5.5, 7.0, 409, "conflict")], ""),
        ([LOADED, UNLOADED, ("load", 6.5, 7.0, 409, "conflict")], "nobody unloaded it"),
        ([LOADED, ("unload", 5.0, 6.0, 404, "unknown_model")], "an unload failed"),
        ([LOADED, ("ready", 2.0, 3.0, 503, "")], "not answered"),
        ([LOADED, ("sleep", 2.0, 3.0, 200, ""), ("infer", 4.0, 5.0, 503, "evicted")], "refused by a model that was up"),
        ([LOADED, ("sleep", 2.0, 3.0, 409, "conflict")], ""),
        ([LOADED, ("wake", 2.0, 3.0, 409, "load_failed")], "than that it is being changed"),
    ],
)
def test_the_reference_explains_what_can_be_and_nothing_else(
    rows: list[tuple[str, float, float, int, str]], words: str
) -> None:
    found = operations(*rows).faults()
    assert len(found) == bool(words)
    assert words in "".join(found)


def test_the_last_operation_decides_and_two_that_overlap_leave_it_open() -> None:
    assert operations().final_states() == {False}
    assert operations(LOADED, UNLOADED).final_states() == {False}
    assert operations(LOADED, UNLOADED, ("load", 5.5, 7.0, 200, "")).final_states() == {True, False}
    assert operations(LOADED, UNLOADED, ("load", 6.5, 7.0, 200, "")).final_states() == {True}
    assert operations(LOADED, UNLOADED, ("load", 6.5, 7.0, 409, "conflict")).final_states() == {False}
