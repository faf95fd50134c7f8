"""Prometheus's text format: what its own parser reads is what was given."""

from __future__ import annotations

import random
import string

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mmsup.gateway.observability.exposition import family, histogram, labels

ODD = string.ascii_letters + '\\"\n{},= é'


@pytest.mark.parametrize("seed", range(50))
def test_names_labels_and_values_come_back_as_they_were(seed: int) -> None:
    rng = random.Random(seed)
    texts = {"".join(rng.choices(ODD, k=rng.randrange(8))) for _ in range(5)}
    given = {(each, str(number)): rng.choice([0, 1, rng.random(), 1e21, 1e-9]) for number, each in enumerate(texts)}
    samples = [(labels(model=model, version=version), value) for (model, version), value in given.items()]
    text = "".join(family("counter", "mmsup_things_total", "Things that were counted.", samples))
    (found,) = text_string_to_metric_families(text)
    assert (found.type, found.documentation) == ("counter", "Things that were counted.")
    assert {(each.labels["model"], each.labels["version"]): each.value for each in found.samples} == given
    assert {each.name for each in found.samples} == {"mmsup_things_total"}


def test_a_histogram_counts_up_to_each_edge() -> None:
    pieces = histogram("mmsup_times_seconds", "Times.", ["0.1", "1.0", "+Inf"], [(labels(model="m"), [2, 0, 5], 9.5)])
    (found,) = text_string_to_metric_families("".join(pieces))
    assert [(each.name, each.labels.get("le", ""), each.value) for each in found.samples] == [
        ("mmsup_times_seconds_bucket", "0.1", 2),
        ("mmsup_times_seconds_bucket", "1.0", 2),
        ("mmsup_times_seconds_bucket", "+Inf", 7),
        ("mmsup_times_seconds_count", "", 7),
        ("mmsup_times_seconds_sum", "", 9.5),
    ]
