from __future__ import annotations

from pathlib import Path

import pytest

from mmsup.supervisor.config.config_error import ConfigError
from mmsup.supervisor.models.repository_watcher_roots import UNMOUNTED, RepositoryRoots
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.repository.scanner import RepositoryRoot, RepositoryScan

GOOD = RepositoryScan({}, roots={"/r": RepositoryRoot(1, 2)})
BROKEN = RepositoryScan({}, errors=(ConfigError("/r", "cannot be read: Input/output error"),))
UNDER_THE_MOUNT = RepositoryScan({}, roots={"/r": RepositoryRoot(2, 0)})


@pytest.fixture
def journal(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "events.jsonl")


def told(journal: EventLog) -> list[str]:
    return [each["event"] for each in journal.last()]


@pytest.mark.parametrize("bad", [BROKEN, UNDER_THE_MOUNT])
def test_a_lost_repository_is_said_once_and_its_return_once(journal: EventLog, bad: RepositoryScan) -> None:
    roots = RepositoryRoots(journal)
    assert roots.update(GOOD) == set()
    for _ in range(3):
        assert roots.update(bad) == set()
        assert roots.unreadable.keys() == {"/r"}
    assert roots.update(GOOD) == {"/r"}
    assert roots.update(GOOD) == set()
    assert not roots.unreadable
    assert told(journal) == ["repository_lost", "repository_back"]


def test_the_event_names_the_repository_and_says_why(journal: EventLog) -> None:
    roots = RepositoryRoots(journal)
    roots.update(BROKEN)
    assert journal.last()[0]["text"] == "/r: cannot be read: Input/output error; its models stay as they are"
    roots.update(GOOD)
    roots.update(UNDER_THE_MOUNT)
    assert UNMOUNTED in journal.last()[-1]["text"]


@pytest.mark.parametrize("now", [RepositoryRoot(1, 0), RepositoryRoot(2, 1)])
def test_a_folder_that_was_emptied_or_mounted_anew_with_models_is_taken_at_its_word(
    journal: EventLog, now: RepositoryRoot
) -> None:
    roots = RepositoryRoots(journal)
    roots.update(GOOD)
    roots.update(RepositoryScan({}, roots={"/r": now}))
    assert not roots.unreadable
    assert told(journal) == []


def test_an_empty_folder_is_no_loss_where_nothing_was_before(journal: EventLog) -> None:
    roots = RepositoryRoots(journal)
    roots.update(UNDER_THE_MOUNT)
    assert not roots.unreadable
