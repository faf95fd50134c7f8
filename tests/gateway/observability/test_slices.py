"""Long work of the event loop leaves turns to others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from mmsup.gateway.observability import metrics
from mmsup.gateway.observability.slices import SLICE_NS, in_slices
from mmsup.ipc.memory.counters import FIELDS


def test_others_have_a_turn_after_each_slice() -> None:
    turns = list[int]()

    def pieces() -> Iterator[int]:
        for number in range(20):
            end_ns = time.monotonic_ns() + SLICE_NS
            while time.monotonic_ns() < end_ns:
                pass
            turns.append(0)
            yield number

    async def run() -> None:
        made = list[int]()
        work = asyncio.create_task(in_slices(pieces(), made.append))
        while not work.done():
            if turns:
                turns[-1] += 1
            await asyncio.sleep(0)
        await work
        assert made == list(range(20))

    asyncio.run(run())
    assert all(turns)


def test_the_page_of_many_models_is_made_of_many_small_pieces() -> None:
    totals = {(f"model_{number}", "1"): dict.fromkeys(FIELDS, 1) for number in range(500)}
    status = {"models": [{"name": name, "state": "asleep"} for name, _ in totals]}
    assert max(map(len, metrics.metrics_pieces(totals, status))) < 4096


def test_the_pieces_make_one_page_that_has_every_metric_and_sample_once() -> None:
    models = [f"{odd}{number}" for number in range(20) for odd in ('a\\"\n{},= ', "é")]
    totals = {(name, "1"): dict.fromkeys(FIELDS, 0) | {"success": number} for number, name in enumerate(models)}
    text = b"".join(metrics.metrics_pieces(totals, {})).decode()
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert len(heads) == len(set(heads))
    families = {each.name: each for each in text_string_to_metric_families(text)}
    assert len(heads) == 2 * len(families)
    samples = [(each.labels["model"], each.value) for each in families["nv_inference_request_success"].samples]
    assert samples == sorted((name, row["success"]) for (name, _), row in totals.items())
    for name in ("mmsup_known_requests", "mmsup_request_duration_seconds"):
        counted = [tuple(each.labels.items()) for each in families[name].samples if not each.name.endswith("_sum")]
        assert {("model", each) for each in models} <= {label for labels in counted for label in labels}
