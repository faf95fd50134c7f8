"""A report names every server, also those that were not measured, and the result of each target."""

from __future__ import annotations

from report import NamedServer, report
from row import Row, median
from targets import judge
from work import SCENES

SERVERS = {
    "mmsup": NamedServer("mmsup", "1.0"),
    "mosec": NamedServer("Mosec", "2.0"),
    "kserve": NamedServer("KServe", ""),
}


def row(peer: str, run: str, rate: float, requests: int = 5000) -> Row:
    return median(
        [Row(peer, run, rate, rate, 1.0, 2.0, 3.0, cpu_us=1e6 / rate, requests=requests, command=f"serve {peer}")]
    )


def told(rows: list[Row]) -> str:
    return report({"CPU": "a fast one"}, SERVERS, rows, judge(rows, {"mmsup", "kserve"}))


def test_servers_stand_in_the_order_of_their_cost_and_the_absent_last() -> None:
    absent = median([Row("kserve", "small32", trouble="not installed: no network")])
    text = told([absent, row("mosec", "small32", 1000.0), row("mmsup", "small32", 4000.0)])
    assert text.index("| mmsup ") < text.index("| Mosec ") < text.index("| KServe ")
    assert "not measured: not installed: no network" in text


def test_ratios_are_ours_to_theirs_in_rate_and_theirs_to_ours_in_cost() -> None:
    text = told([row("mosec", "small32", 1000.0), row("mmsup", "small32", 4000.0)])
    line = next(line for line in text.splitlines() if line.startswith("| Mosec"))
    assert line.count(" 4.00 ") == 2


def test_a_percentile_of_few_requests_is_not_printed() -> None:
    text = told([row("mmsup", "mean1", 50.0, requests=100)])
    line = next(line for line in text.splitlines() if line.startswith("| mmsup"))
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[6:9] == ["1.00", "-", "-"]


def test_the_share_of_known_requests_is_a_column_only_where_a_server_counts_it() -> None:
    ours = row("mmsup", "small32", 1000.0)
    assert "known" not in told([ours])
    ours.known_share = 0.987
    text = told([ours, row("mosec", "small32", 500.0)])
    assert "98.7%" in text
    heads, _, *lines = (line for line in text.splitlines() if line.startswith("|"))
    place = [cell.strip() for cell in heads.split("|")].index("known")
    assert [line.split("|")[place].strip() for line in lines[:2]] == ["98.7%", "-"]


def test_missed_targets_and_wrong_answers_are_reported() -> None:
    liar = Row("kserve", "small32", 9.0, requests=9, wrong=1, trouble="wrong: 1 instead of 2")
    text = told([row("mmsup", "small32", 1500.0), row("mosec", "small32", 1000.0), liar])
    assert "| **no**" in text
    assert "WRONG ANSWERS (1): wrong: 1 instead of 2" in text


def test_tables_are_rectangles() -> None:
    rows = [row(peer, run.key, 100.0) for scene in SCENES for run in scene.runs for peer in ("mmsup", "mosec")]
    blocks = [block.splitlines() for block in told(rows).split("\n\n") if block.startswith("|")]
    assert len(blocks) == len({row.run for row in rows}) + 1
    for lines in blocks:
        assert len({len(line) for line in lines}) == 1
        assert len({line.count("|") for line in lines}) == 1
