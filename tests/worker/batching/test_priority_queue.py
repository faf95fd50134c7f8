"""The order of queued requests: priorities, starvation, bounds and timeouts."""

from __future__ import annotations

import random

from mmsup.ipc.specs import ModelSpec, QueuePolicy
from mmsup.worker.batching.priority_queue import DELAYED_PRIORITY, STARVATION_NS, PriorityQueue
from mmsup.worker.serving.gateway_links import GatewayLink
from mmsup.worker.serving.pending_results import WorkerRequest
from request_double import link, queued

Queue = PriorityQueue[GatewayLink]


def make_queue(**fields: object) -> Queue:
    return PriorityQueue(ModelSpec("m", "1", "/m", "a", "ort", "p", **fields))  # type: ignore[arg-type] # by the tests


def add(queue: Queue, priority: int = 0, at_ns: int = 0, identity: bytes = b"g") -> WorkerRequest:
    request = queued(arrived_ns=at_ns, priority=queue.effective_priority(priority), identity=identity)
    assert queue.add(request)
    return request


def order(queue: Queue, now_ns: int = 0) -> list[WorkerRequest]:
    return list(queue.in_order(now_ns))


def run(queue: Queue, now_ns: int) -> WorkerRequest:
    """The next of runs that take one request each."""
    first = order(queue, now_ns)[0]
    queue.remove(first)
    queue.on_run_start(first)
    return first


def test_higher_priorities_come_first_and_within_one_the_first_to_arrive() -> None:
    queue = make_queue()
    low, plain, high, second_high, second_plain = (add(queue, each) for each in (80, 0, 1, 1, 0))
    assert order(queue) == [high, second_high, plain, second_plain, low]
    assert queue.size == 5


def test_a_priority_that_does_not_exist_is_the_models_default() -> None:
    assert [make_queue().effective_priority(each) for each in (0, 1, 100, 101, -1)] == [50, 1, 100, 50, 50]
    queue = make_queue(priority_levels=3, priority=2)
    assert [queue.effective_priority(each) for each in (0, 1, 2, 3, 4)] == [2, 1, 2, 3, 2]


def test_a_starving_request_goes_first_in_every_second_run() -> None:
    queue = make_queue()
    old = [add(queue, 90, at_ns=number) for number in range(3)]
    new = [add(queue, 1, at_ns=STARVATION_NS) for _ in range(6)]
    now = STARVATION_NS + 10
    assert [run(queue, now) for _ in range(9)] == [old[0], new[0], old[1], new[1], old[2], *new[2:]]


def test_a_run_for_which_nothing_else_waited_is_one_of_the_higher_priority() -> None:
    queue = make_queue()
    old = [add(queue, 90) for _ in range(2)]
    new = [add(queue, 1, at_ns=STARVATION_NS) for _ in range(2)]
    assert run(queue, STARVATION_NS) is old[0]
    queue.on_uncontested_run()
    assert [run(queue, STARVATION_NS) for _ in range(3)] == [old[1], *new]


def test_only_one_priority_waits_whatever_waited_before() -> None:
    queue = make_queue()
    one, other = add(queue, 1), add(queue, 2)
    assert queue.only_queue() is None
    queue.remove(one)
    assert list(queue.only_queue() or {}) == [other.key]
    queue.remove(other)
    assert queue.only_queue() is None


def test_no_lower_priority_goes_first_before_it_starves() -> None:
    queue = make_queue()
    low = add(queue, 90, at_ns=1)
    high = add(queue, 1, at_ns=STARVATION_NS)
    assert order(queue, STARVATION_NS) == [high, low]


def test_under_lasting_load_of_a_higher_priority_the_lower_ones_still_run() -> None:
    queue = make_queue()
    add(queue, 2)
    ran: list[int] = []
    for now in range(0, 4 * STARVATION_NS, STARVATION_NS // 50):
        add(queue, 1, at_ns=now)
        ran.append(run(queue, now).priority)
        if ran[-1] == 2:
            add(queue, 2, at_ns=now)
    assert 2 <= ran.count(2) <= 4


def test_a_cancelled_request_is_removed_from_whatever_priority_and_only_once() -> None:
    queue = make_queue()
    one, other = add(queue, 7), add(queue)
    assert queue.cancel(*one.key)
    assert not queue.cancel(*one.key)
    assert order(queue) == [other]
    assert queue.has(other)
    assert not queue.has(one)


def test_the_requests_of_a_closed_link_are_removed() -> None:
    queue = make_queue()
    add(queue, 1, identity=b"a")
    stays = add(queue, 1, identity=b"b")
    add(queue, 2, identity=b"a")
    queue.drop_link(link(b"a"))
    assert order(queue) == [stays]
    assert queue.size == 1


def test_a_full_priority_takes_no_more_and_the_others_do() -> None:
    policies = (QueuePolicy(1, max_queue=1), QueuePolicy(0, max_queue=2))
    queue = make_queue(queue_policies=policies)
    for priority, bound in ((1, 1), (2, 2), (0, 2)):
        for _ in range(bound):
            add(queue, priority)
        assert not queue.add(queued(priority=queue.effective_priority(priority)))
    assert queue.size == 5


def test_a_request_past_the_timeout_of_its_priority_is_removed_or_delayed_behind_all_others() -> None:
    policies = (QueuePolicy(1, timeout_s=1e-6), QueuePolicy(2, timeout_s=1e-6, delays=True))
    queue = make_queue(queue_policies=policies)
    rejected, delayed = add(queue, 1, at_ns=0), add(queue, 2, at_ns=0)
    in_time, plain = add(queue, 1, at_ns=1), add(queue, 0, at_ns=0)
    assert list(queue.pop_timed_out(999)) == []
    assert list(queue.pop_timed_out(1000)) == [rejected]
    assert order(queue, 1000) == [in_time, plain, delayed]
    assert order(queue, 2 * STARVATION_NS) == [plain, in_time, delayed], "a delayed request never counts as starving"
    assert delayed.priority == DELAYED_PRIORITY
    assert queue.size == 3
    assert list(queue.pop_timed_out(1 << 60)) == [in_time]


def test_in_a_random_walk_every_request_leaves_once_and_each_priority_in_its_order() -> None:
    chance = random.Random(11)
    for _ in range(60):
        queue, now = make_queue(priority_levels=4), 0
        inside: dict[int, list[WorkerRequest]] = {}
        for _ in range(120):
            now += chance.randrange(STARVATION_NS // 20)
            if inside and chance.random() < 0.5:
                ran = run(queue, now)
                assert inside[ran.priority].pop(0) is ran
                inside = {priority: requests for priority, requests in inside.items() if requests}
            else:
                added = add(queue, chance.randrange(5), at_ns=now)
                inside.setdefault(added.priority, []).append(added)
            assert queue.size == sum(map(len, inside.values()))
