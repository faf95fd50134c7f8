"""Counters survive their writer, and add up over tables."""

from __future__ import annotations

import os

from mmsup.ipc.memory.counters import FIELDS, INDEX, OTHER, ROWS, CounterTable, make_counter_table


def test_a_new_writer_goes_on_where_the_old_one_ended() -> None:
    fd = make_counter_table()
    CounterTable(fd).row("m", "1").add("success", 3)
    second = CounterTable(fd)
    second.row("m", "1").add("success")
    second.row("m", "2").set("last_inference_ms", 9)
    totals = CounterTable(fd).totals()
    assert totals["m", "1"][INDEX["success"]] == 4
    assert totals["m", "2"][INDEX["last_inference_ms"]] == 9
    assert len(totals["m", "1"]) == len(FIELDS)
    os.close(fd)


def test_a_reader_sees_rows_that_were_taken_later() -> None:
    fd = make_counter_table()
    reader, writer = CounterTable(fd), CounterTable(fd)
    assert reader.totals() == {}
    writer.row("new", "7").add("refused")
    assert list(reader.totals()) == [("new", "7")]
    os.close(fd)


def test_when_all_rows_are_taken_the_last_takes_the_rest() -> None:
    fd = make_counter_table()
    tally = CounterTable(fd)
    for number in range(ROWS + 10):
        tally.row(f"m{number}", "1").add("success")
    totals = tally.totals()
    assert len(totals) == ROWS
    assert totals[OTHER][INDEX["success"]] == 11
    os.close(fd)


def test_the_longest_name_has_room() -> None:
    fd = make_counter_table()
    CounterTable(fd).row("n" * 128, "9" * 19).add("success")
    assert list(CounterTable(fd).totals()) == [("n" * 128, "9" * 19)]
    os.close(fd)
