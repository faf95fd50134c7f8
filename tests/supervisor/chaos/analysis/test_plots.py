"""The pictures of a run are drawn from its history, where matplotlib is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos_tale import began, tale
from mmsup.supervisor.chaos.analysis.plots import draw
from mmsup.supervisor.chaos.analysis.timeline import timeline_of

pytestmark = pytest.mark.slow


def test_two_pictures_are_written_also_of_a_run_in_which_nothing_happened(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'mmsup[bench]'")
    for name, records in (("tale", tale()), ("nothing", [began()])):
        files = draw(timeline_of(records), tmp_path / name)
        assert [each.name for each in files] == ["latency.png", "recovery.png"]
        assert all(each.read_bytes().startswith(b"\x89PNG") for each in files)
