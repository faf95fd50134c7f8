from __future__ import annotations

from pathlib import Path

import pytest

from mmsup.supervisor.config.config_error import ConfigError
from mmsup.supervisor.models.repository_watcher import UNMOUNTED, RepositoryRoots
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.repository.folders import RepositoryRoot
from mmsup.supervisor.repository.scanner import RepositoryScan

GOOD = RepositoryScan({}, roots={"/r": RepositoryRoot(1, 2)})
BROKEN = RepositoryScan({}, errors=(ConfigError("/r", "cannot be read: Input/output error"),))
UNDER_THE_MOUNT = RepositoryScan({}, roots={"/r": RepositoryRoot(2, 0)})


@pytest.fixture
def event_log(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "events.jsonl")


def events_of(event_log: EventLog) -> list[str]:
    return [each["event"] for each in event_log.last()]


@pytest.mark.parametrize("bad", [BROKEN, UNDER_THE_MOUNT])
def test_a_lost_repository_is_one_event_and_its_return_another(event_log: EventLog, bad: RepositoryScan) -> None:
    roots = RepositoryRoots(event_log)
    assert roots.update(GOOD) == set()
    for _ in range(3):
        assert roots.update(bad) == set()
        assert roots.unreadable.keys() == {"/r"}
    assert roots.update(GOOD) == {"/r"}
    assert roots.update(GOOD) == set()
    assert not roots.unreadable
    assert events_of(event_log) == ["repository_lost", "repository_back"]


def test_the_event_names_the_repository_and_the_reason(event_log: EventLog) -> None:
    roots = RepositoryRoots(event_log)
    roots.update(BROKEN)
    assert event_log.last()[0]["text"] == "/r: cannot be read: Input/output error; its models stay as they are"
    roots.update(GOOD)
    roots.update(UNDER_THE_MOUNT)
    assert UNMOUNTED in event_log.last()[-1]["text"]


@pytest.mark.parametrize("now", [RepositoryRoot(1, 0), RepositoryRoot(2, 1)])
def test_a_directory_that_was_emptied_or_remounted_with_models_is_believed(
    event_log: EventLog, now: RepositoryRoot
) -> None:
    roots = RepositoryRoots(event_log)
    roots.update(GOOD)
    roots.update(RepositoryScan({}, roots={"/r": now}))
    assert not roots.unreadable
    assert events_of(event_log) == []


def test_an_empty_directory_is_no_loss_where_nothing_was_before(event_log: EventLog) -> None:
    roots = RepositoryRoots(event_log)
    roots.update(UNDER_THE_MOUNT)
    assert not roots.unreadable
