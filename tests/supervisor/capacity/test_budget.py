from __future__ import annotations

from mmsup.supervisor.capacity.budget import memory_budgets
from mmsup.supervisor.config.settings import Settings

GIB = 1 << 30


def test_a_default_budget_leaves_the_server_its_own_processes_and_arenas() -> None:
    found = memory_budgets(Settings((), "", "", gateways=2, arena_bytes=2 * GIB), 64 * GIB)
    assert 59 * GIB < found.host_bytes < 60 * GIB
    assert not found.is_configured


def test_a_small_machine_keeps_a_share_for_workers_whatever_the_limit_of_arenas() -> None:
    assert memory_budgets(Settings((), "", ""), 2 * GIB).host_bytes == GIB // 2


def test_a_budget_of_a_device_goes_before_that_of_each() -> None:
    settings = Settings((), "", "", memory_budget_bytes=5, gpu_memory_budgets=(":10", "cuda:1:7", "GPU-abcd:8"))
    found = memory_budgets(settings, 64 * GIB)
    assert (found.host_bytes, found.is_configured) == (5, True)
    assert found.of_device("cuda:0", "GPU-1") == 10
    assert found.of_device("cuda:1", "GPU-2") == 7
    assert found.of_device("cuda:2", "GPU-abcd") == 8
    assert memory_budgets(Settings((), "", ""), 1).of_device("cuda:0") is None
