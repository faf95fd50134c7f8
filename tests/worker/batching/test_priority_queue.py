"""Who is next: classes, ageing, bounds and timeouts of the queue."""

from __future__ import annotations

import random

from mmsup.ipc.specs import ModelSpec, QueuePolicy
from mmsup.worker.batching.batcher import QueuedRequest
from mmsup.worker.batching.priority_queue import DELAYED_PRIORITY, STARVATION_NS, PriorityQueue
from work_double import link, work


def queue(**fields: object) -> PriorityQueue:
    return PriorityQueue(ModelSpec("m", "1", "/m", "a", "ort", "p", **fields))  # type: ignore[arg-type] # by the tests


def put(waiting: PriorityQueue, priority: int = 0, at_ns: int = 0, identity: bytes = b"g") -> QueuedRequest:
    waits = work(arrived_ns=at_ns, level=waiting.priority_of(priority), identity=identity)
    assert waiting.add(waits)
    return waits


def order(waiting: PriorityQueue, now_ns: int = 0) -> list[QueuedRequest]:
    return list(waiting.in_order(now_ns))


def run(waiting: PriorityQueue, now_ns: int) -> QueuedRequest:
    """The next of runs that take one request each."""
    first = order(waiting, now_ns)[0]
    waiting.remove(first)
    waiting.on_run_start(first)
    return first


def test_higher_classes_come_first_and_within_a_class_who_came_first() -> None:
    waiting = queue()
    low, plain, high, high_too, plain_too = (put(waiting, each) for each in (80, 0, 1, 1, 0))
    assert order(waiting) == [high, high_too, plain, plain_too, low]
    assert len(waiting) == 5


def test_a_class_that_does_not_exist_is_the_models_own() -> None:
    assert [queue().priority_of(each) for each in (0, 1, 100, 101, -1)] == [50, 1, 100, 50, 50]
    mine = queue(priority_levels=3, priority=2)
    assert [mine.priority_of(each) for each in (0, 1, 2, 3, 4)] == [2, 1, 2, 3, 2]


def test_what_has_waited_too_long_goes_first_in_every_other_run() -> None:
    waiting = queue()
    old = [put(waiting, 90, at_ns=number) for number in range(3)]
    new = [put(waiting, 1, at_ns=STARVATION_NS) for _ in range(6)]
    now = STARVATION_NS + 10
    assert [run(waiting, now) for _ in range(9)] == [old[0], new[0], old[1], new[1], old[2], *new[2:]]


def test_nobody_of_a_lower_class_goes_first_before_that() -> None:
    waiting = queue()
    low = put(waiting, 90, at_ns=1)
    high = put(waiting, 1, at_ns=STARVATION_NS)
    assert order(waiting, STARVATION_NS) == [high, low]


def test_under_lasting_load_of_a_higher_class_the_lower_ones_still_run() -> None:
    waiting = queue()
    put(waiting, 2)
    ran: list[int] = []
    for now in range(0, 4 * STARVATION_NS, STARVATION_NS // 50):
        put(waiting, 1, at_ns=now)
        ran.append(run(waiting, now).level)
        if ran[-1] == 2:
            put(waiting, 2, at_ns=now)
    assert 2 <= ran.count(2) <= 4


def test_a_dropped_request_is_gone_from_whatever_class_and_only_once() -> None:
    waiting = queue()
    one, other = put(waiting, 7), put(waiting)
    assert waiting.drop(*one.key) is one
    assert waiting.drop(*one.key) is None
    assert order(waiting) == [other]
    assert waiting.has(other)
    assert not waiting.has(one)


def test_a_gateway_that_is_gone_takes_its_requests_with_it() -> None:
    waiting = queue()
    put(waiting, 1, identity=b"a")
    stays = put(waiting, 1, identity=b"b")
    put(waiting, 2, identity=b"a")
    waiting.drop_link(link(b"a"))
    assert order(waiting) == [stays]
    assert len(waiting) == 1


def test_a_class_that_is_full_takes_no_more_and_the_others_do() -> None:
    policies = (QueuePolicy(1, max_queue=1), QueuePolicy(0, max_queue=2))
    waiting = queue(queue_policies=policies)
    for priority, room in ((1, 1), (2, 2), (0, 2)):
        for _ in range(room):
            put(waiting, priority)
        level = waiting.priority_of(priority)
        assert not waiting.add(work(level=level))
    assert len(waiting) == 5


def test_what_waits_past_its_classes_timeout_leaves_or_goes_behind_all_others() -> None:
    policies = (QueuePolicy(1, timeout_s=1e-6), QueuePolicy(2, timeout_s=1e-6, delays=True))
    waiting = queue(queue_policies=policies)
    rejected, delayed = put(waiting, 1, at_ns=0), put(waiting, 2, at_ns=0)
    in_time, plain = put(waiting, 1, at_ns=1), put(waiting, 0, at_ns=0)
    assert list(waiting.pop_timed_out(999)) == []
    assert list(waiting.pop_timed_out(1000)) == [rejected]
    assert order(waiting, 1000) == [in_time, plain, delayed]
    assert order(waiting, 2 * STARVATION_NS) == [plain, in_time, delayed], "what was delayed does not age"
    assert delayed.level == DELAYED_PRIORITY
    assert len(waiting) == 3
    assert list(waiting.pop_timed_out(1 << 60)) == [in_time]


def test_in_a_random_walk_every_request_leaves_once_and_each_class_in_its_order() -> None:
    chance = random.Random(11)
    for _ in range(60):
        waiting, now = queue(priority_levels=4), 0
        inside: dict[int, list[QueuedRequest]] = {}
        for _ in range(120):
            now += chance.randrange(STARVATION_NS // 20)
            if inside and chance.random() < 0.5:
                ran = run(waiting, now)
                assert inside[ran.level].pop(0) is ran
                inside = {level: line for level, line in inside.items() if line}
            else:
                came = put(waiting, chance.randrange(5), at_ns=now)
                inside.setdefault(came.level, []).append(came)
            assert len(waiting) == sum(map(len, inside.values()))
