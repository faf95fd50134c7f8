from __future__ import annotations

from pathlib import Path

import pytest

from mmsup.supervisor.config.config_error import Fault
from mmsup.supervisor.models.repository_watcher_roots import UNMOUNTED, Roots
from mmsup.supervisor.observability.event_log import Journal
from mmsup.supervisor.repository.scanner import Repository, Root

GOOD = Repository({}, roots={"/r": Root(1, 2)})
BROKEN = Repository({}, faults=(Fault("/r", "cannot be read: Input/output error"),))
UNDER_THE_MOUNT = Repository({}, roots={"/r": Root(2, 0)})


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "events.jsonl")


def told(journal: Journal) -> list[str]:
    return [each["event"] for each in journal.last()]


@pytest.mark.parametrize("bad", [BROKEN, UNDER_THE_MOUNT])
def test_a_lost_repository_is_said_once_and_its_return_once(journal: Journal, bad: Repository) -> None:
    roots = Roots(journal)
    assert roots.weigh(GOOD) == set()
    for _ in range(3):
        assert roots.weigh(bad) == set()
        assert roots.lost.keys() == {"/r"}
    assert roots.weigh(GOOD) == {"/r"}
    assert roots.weigh(GOOD) == set()
    assert not roots.lost
    assert told(journal) == ["repository_lost", "repository_back"]


def test_the_event_names_the_repository_and_says_why(journal: Journal) -> None:
    roots = Roots(journal)
    roots.weigh(BROKEN)
    assert journal.last()[0]["text"] == "/r: cannot be read: Input/output error; its models stay as they are"
    roots.weigh(GOOD)
    roots.weigh(UNDER_THE_MOUNT)
    assert UNMOUNTED in journal.last()[-1]["text"]


@pytest.mark.parametrize("now", [Root(1, 0), Root(2, 1)])
def test_a_folder_that_was_emptied_or_mounted_anew_with_models_is_taken_at_its_word(
    journal: Journal, now: Root
) -> None:
    roots = Roots(journal)
    roots.weigh(GOOD)
    roots.weigh(Repository({}, roots={"/r": now}))
    assert not roots.lost
    assert told(journal) == []


def test_an_empty_folder_is_no_loss_where_nothing_was_before(journal: Journal) -> None:
    roots = Roots(journal)
    roots.weigh(UNDER_THE_MOUNT)
    assert not roots.lost
