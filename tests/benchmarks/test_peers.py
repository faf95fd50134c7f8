"""A server that is missing, or does not start, is reported with the reason and does not stop the comparison."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import peers
import pytest
from drivers.mmsup import Mmsup
from drivers.mosec import Mosec
from drivers.peer import Peer
from environment import InstallError
from measure import Bench
from peers import Comparison
from row import Row
from work import SCENES, Scene

SMALL = SCENES[0]
NO_BENCH = cast(Bench, None)


def test_a_server_that_cannot_be_installed_has_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_peer: Peer) -> Path:
        raise InstallError("no network")

    monkeypatch.setattr(peers, "installed", refuse)
    comparison = Comparison(NO_BENCH, rounds=3)
    named = comparison.install([Mosec()])
    comparison.run([Mosec()], [SMALL])
    assert named["mosec"].version == ""
    assert [row.run for row in comparison.rows()] == [run.key for run in SMALL.runs]
    assert {row.trouble for row in comparison.rows()} == {"not installed: no network"}


@pytest.mark.parametrize(("requests", "starts"), [(0, 2), (5, 4)])
def test_a_server_that_did_not_start_is_tried_once_more(
    monkeypatch: pytest.MonkeyPatch, requests: int, starts: int
) -> None:
    started = []

    def measure(peer: Peer, scene: Scene, _environment: Path, _bench: Bench) -> Iterator[Row]:
        started.append(peer.key)
        yield from (Row(peer.key, run.key, requests=requests) for run in scene.runs)

    monkeypatch.setattr(peers, "measure", measure)
    Comparison(NO_BENCH, 4, {"mosec": Path()}).run([Mosec()], [SMALL])
    assert len(started) == starts


def test_servers_take_turns_and_each_round_begins_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = []

    def measure(peer: Peer, scene: Scene, _environment: Path, _bench: Bench) -> Iterator[Row]:
        turns.append((scene.key, peer.key))
        yield from (Row(peer.key, run.key, requests=1) for run in scene.runs)

    monkeypatch.setattr(peers, "measure", measure)
    both: list[Peer] = [Mmsup(), Mosec()]
    Comparison(NO_BENCH, 2, {peer.key: Path() for peer in both}).run(both, SCENES[:2])
    order = ["mmsup", "mosec", "mosec", "mmsup"]
    assert turns == [(scene.key, key) for scene in SCENES[:2] for key in order]


def test_ctrl_c_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(peer: Peer, scene: Scene, _environment: Path, _bench: Bench) -> Iterator[Row]:
        yield Row(peer.key, scene.runs[0].key, rate=1.0, requests=1)
        raise KeyboardInterrupt

    monkeypatch.setattr(peers, "measure", measure)
    comparison = Comparison(NO_BENCH, 2, {"mosec": Path()})
    comparison.run([Mosec()], [SMALL])
    assert [row.rate for row in comparison.rows()] == [1.0]
