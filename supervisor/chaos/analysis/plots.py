"""Plots of a run: latency over time, recovery times. The only importer of matplotlib, which is optional."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mmsup.supervisor.chaos.analysis.timeline import Timeline
from mmsup.supervisor.chaos.plan.catalog import RESETTING_FAULTS, ModelRole

SIZE: Final = (11.0, 4.5)
DPI: Final = 110


def draw(timeline: Timeline, folder: Path) -> list[Path]:
    """Write the plots into `folder`; returns their files. ImportError without matplotlib."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to import

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415 - as above

    folder.mkdir(parents=True, exist_ok=True)
    return [_latency(timeline, folder / "latency.png", pyplot), _recovery(timeline, folder / "recovery.png", pyplot)]


def _latency(timeline: Timeline, path: Path, pyplot: Any) -> Path:  # matplotlib ships no types that we check against
    figure, axes = pyplot.subplots(figsize=SIZE)
    for model, role in timeline.run.models.items():
        if role == ModelRole.HEALTHY:
            points = [
                (each.invoke.intended, (each.end.t - each.invoke.intended) * 1000)
                for each in timeline.of_model(model)
                if each.end and each.is_right
            ]
            axes.plot(*zip(*points, strict=True), ".", markersize=2, label=model) if points else None
    for fault in timeline.faults:
        colour = "tab:red" if fault.fault_class.name in RESETTING_FAULTS else "0.75"
        axes.axvline(fault.start_s, color=colour, linewidth=0.7, zorder=0)
    axes.axvspan(timeline.run.from_s, timeline.run.calm_s, color="tab:green", alpha=0.1, label="no faults")
    axes.set(yscale="log", xlabel="seconds", ylabel="latency, ms")
    axes.set_title("Healthy models while others fail: each line is a fault, red if it hits a gateway")
    axes.legend(loc="upper right", fontsize="small")
    return _saved(figure, path, pyplot)


def _recovery(timeline: Timeline, path: Path, pyplot: Any) -> Path:  # as above
    figure, axes = pyplot.subplots(figsize=SIZE)
    recoveries = [each.recovery for each in timeline.faults if each.recovery]
    if recoveries:
        times = [[each.net_s * 1000 for each in recoveries], [each.total_s * 1000 for each in recoveries]]
        axes.hist(times, bins=40, label=["without load time and backoff", "total"])
        axes.legend()
    axes.set(xlabel="from the death to the first right answer, ms", ylabel="deaths")
    axes.set_title("Recovery after a death")
    return _saved(figure, path, pyplot)


def _saved(figure: Any, path: Path, pyplot: Any) -> Path:  # as above
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
    return path
