from __future__ import annotations

import asyncio

from mmsup.supervisor.controller.change_signal import ChangeSignal


async def settled() -> None:
    """All tasks have come to where they wait."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_whoever_waits_looks_again_at_each_change_and_only_then() -> None:
    async def run() -> None:
        moved, facts, looks = ChangeSignal(), list[str](), {"a": 0, "b": 0}

        async def wait(name: str) -> None:
            def is_so() -> bool:
                looks[name] += 1
                return name in facts

            await moved.wait_until(is_so)

        tasks = {name: asyncio.create_task(wait(name)) for name in looks}
        await settled()
        assert looks == {"a": 1, "b": 1}
        facts.append("a")
        await settled()
        assert looks == {"a": 1, "b": 1}  # nobody has said that something moved
        moved.set()
        await settled()
        assert looks == {"a": 2, "b": 2}
        assert (tasks["a"].done(), tasks["b"].done()) == (True, False)
        facts.append("b")
        moved.set()
        await tasks["b"]

    asyncio.run(run())


def test_what_is_so_already_is_not_waited_for() -> None:
    async def run() -> None:
        moved = ChangeSignal()
        moved.set()
        await moved.wait_until(lambda: True)
        assert moved.is_set()  # the change is still there for others

    asyncio.run(run())


def test_the_limit_ends_the_wait_without_an_error() -> None:
    asyncio.run(ChangeSignal().wait_until(lambda: False, 0.0))
