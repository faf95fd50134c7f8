"""Counters survive their writer, and add up over tables."""

from __future__ import annotations

import os

from mmsup.ipc.memory.counters import (
    BATCH_SIZES_LIMIT,
    BATCH_SLOTS,
    FIELDS,
    INDEX,
    OTHER,
    ROWS,
    CounterTable,
    make_counter_table,
)


def totals_of(table: CounterTable) -> dict[tuple[str, str], list[int]]:
    return {key: values for key in table.row_keys() if (values := table.values(key)) is not None}


def test_a_new_writer_continues_where_the_old_one_stopped() -> None:
    fd = make_counter_table()
    CounterTable(fd).row("m", "1").add("success", 3)
    second = CounterTable(fd)
    second.row("m", "1").add("success")
    second.row("m", "2").set("last_inference_ms", 9)
    totals = totals_of(CounterTable(fd))
    assert totals["m", "1"][INDEX["success"]] == 4
    assert totals["m", "2"][INDEX["last_inference_ms"]] == 9
    assert len(totals["m", "1"]) == len(FIELDS)
    os.close(fd)


def test_a_reader_sees_rows_that_were_claimed_later() -> None:
    fd = make_counter_table()
    reader, writer = CounterTable(fd), CounterTable(fd)
    assert totals_of(reader) == {}
    writer.row("new", "7").add("refused")
    assert reader.row_keys() == [("new", "7")]
    os.close(fd)


def test_the_last_row_counts_for_the_rest_when_all_are_claimed() -> None:
    fd = make_counter_table()
    tally = CounterTable(fd)
    for number in range(ROWS + 10):
        tally.row(f"m{number}", "1").add("success")
    totals = totals_of(tally)
    assert len(totals) == ROWS
    assert totals[OTHER][INDEX["success"]] == 11
    os.close(fd)


def test_the_longest_name_fits() -> None:
    fd = make_counter_table()
    CounterTable(fd).row("n" * 128, "9" * 19).add("success")
    assert CounterTable(fd).row_keys() == [("n" * 128, "9" * 19)]
    os.close(fd)


def test_a_reader_sees_sizes_of_batches_that_were_claimed_later() -> None:
    fd = make_counter_table()
    reader, writer = CounterTable(fd), CounterTable(fd)
    assert reader.batch_totals() == {}
    writer.row("m", "1")
    counter = writer.batch("m", "1", 6)
    assert counter is not None
    counter.add((9, 9, 1, 2, 3))
    assert reader.batch_totals() == {("m", "1"): {6: [1, 1, 2, 3]}}
    os.close(fd)


def test_when_all_slots_are_claimed_further_sizes_are_not_counted() -> None:
    fd = make_counter_table()
    table = CounterTable(fd)
    models = BATCH_SLOTS // BATCH_SIZES_LIMIT + 1
    for number in range(models):
        table.row(f"m{number}", "1")
        counted = [table.batch(f"m{number}", "1", size) for size in range(1, BATCH_SIZES_LIMIT + 1)]
        assert all(counted) == (number < models - 1)
    assert table.batch("m0", "1", 1) is not None
    assert sum(map(len, CounterTable(fd).batch_totals().values())) == BATCH_SLOTS
    os.close(fd)
