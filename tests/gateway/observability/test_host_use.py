"""How busy the machine was between two looks, and the names under which dashboards know it."""

from __future__ import annotations

from pathlib import Path

from mmsup.gateway.observability.host_use import HostUse, HostWatch
from mmsup.gateway.observability.metrics import metrics_pieces
from mmsup.ipc.memory import available_memory


def test_processors_are_as_busy_as_they_were_since_the_last_look(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 1 1 1\n")
    watch = HostWatch(stat)
    stat.write_text("cpu  120 0 110 760 110 0 0 0 70 0\ncpu0 1 1 1 1\n")
    used = watch.look()
    assert used is not None
    assert used.utilization == 0.3
    assert 0 < used.used_bytes < used.total_bytes == available_memory.total_bytes()
    again = watch.look()
    assert again is not None
    assert again.utilization == 0.0, "no time has passed"
    stat.unlink()
    assert watch.look() is None


def test_the_metrics_have_triton_s_names() -> None:
    text = b"".join(metrics_pieces({}, {}, HostUse(0.5, 200, 50))).decode()
    for line in ("nv_cpu_utilization 0.5", "nv_cpu_memory_total_bytes 200.0", "nv_cpu_memory_used_bytes 50.0"):
        assert line in text.splitlines()
    assert "nv_cpu_" not in b"".join(metrics_pieces({}, {})).decode()
