"""The stages of a request are measured on the product's own code, inside one process."""

from __future__ import annotations

import pytest
from inside.best import MANY, BestTimes
from inside.plan import STAGES
from stages import measure_in_process


@pytest.mark.slow
def test_every_stage_of_the_plan_is_measured_but_those_of_a_whole_server() -> None:
    best = BestTimes()
    measure_in_process(best, 1)
    for stage in STAGES:
        keys = (stage.key, *stage.plus, *stage.minus)
        if not any(key.startswith("whole") for key in keys):
            assert stage.us(best.us, MANY) is not None, stage.name
