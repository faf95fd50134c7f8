"""Plots are drawn from the history of a run, if matplotlib is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos_tale import began, tale
from mmsup.supervisor.chaos.analysis.plots import draw
from mmsup.supervisor.chaos.analysis.timeline import timeline_of

pytestmark = pytest.mark.slow


def test_two_plots_are_written_even_of_an_empty_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'mmsup[bench]'")
    for name, records in (("tale", tale()), ("nothing", [began()])):
        files = draw(timeline_of(records), tmp_path / name)
        assert [each.name for each in files] == ["latency.png", "recovery.png"]
        assert all(each.read_bytes().startswith(b"\x89PNG") for each in files)
