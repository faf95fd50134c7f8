from __future__ import annotations

import pytest

from mmsup.supervisor.resources.descriptor_budget import PER_GATEWAY, PER_WORKER, RESERVED, workers_that_fit


@pytest.mark.parametrize(
    ("limit", "gateways", "workers"),
    [
        (RESERVED + 3 * PER_GATEWAY + 5 * PER_WORKER, 3, 5),
        (RESERVED + 3 * PER_GATEWAY + 5 * PER_WORKER - 1, 3, 4),
        (256, 3, 17),
        (1 << 20, 3, 131_057),
        (64, 3, 0),
    ],
)
def test_what_is_left_beside_the_reserve_and_the_gateways_is_for_workers(
    limit: int, gateways: int, workers: int
) -> None:
    assert workers_that_fit(limit, gateways) == workers
