"""The pictures of a run; the home of matplotlib, which is asked for when there is something to draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mmsup.supervisor.chaos.analysis.checker import recovery_s
from mmsup.supervisor.chaos.analysis.timeline import Timeline
from mmsup.supervisor.chaos.plan.catalog import RESETTING_FAULTS, ModelRole

SIZE: Final = (11.0, 4.5)
DPI: Final = 110


def draw(story: Timeline, folder: Path) -> list[Path]:
    """Write the pictures; their files. ImportError without matplotlib."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to import

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415 - as above

    folder.mkdir(parents=True, exist_ok=True)
    return [_latency(story, folder / "latency.png", pyplot), _recovery(story, folder / "recovery.png", pyplot)]


def _latency(story: Timeline, path: Path, pyplot: Any) -> Path:  # matplotlib ships no types that we check against
    figure, axes = pyplot.subplots(figsize=SIZE)
    for model, role in story.run.models.items():
        if role == ModelRole.HEALTHY:
            points = [
                (each.invoke.intended, (each.end.t - each.invoke.intended) * 1000)
                for each in story.of_model(model)
                if each.end and each.is_right
            ]
            axes.plot(*zip(*points, strict=True), ".", markersize=2, label=model) if points else None
    for blow in story.faults:
        colour = "tab:red" if blow.fault.name in RESETTING_FAULTS else "0.75"
        axes.axvline(blow.start_s, color=colour, linewidth=0.7, zorder=0)
    axes.axvspan(story.run.from_s, story.run.calm_s, color="tab:green", alpha=0.1, label="no faults")
    axes.set(yscale="log", xlabel="seconds", ylabel="latency, ms")
    axes.set_title("Healthy models while others fail: each line is a fault, red where a gateway is hurt")
    axes.legend(loc="upper right", fontsize="small")
    return _saved(figure, path, pyplot)


def _recovery(story: Timeline, path: Path, pyplot: Any) -> Path:  # as above
    figure, axes = pyplot.subplots(figsize=SIZE)
    back = [each for each in story.faults if each.died_s is not None and each.recovered_s is not None]
    beyond = [recovery_s(each) * 1000 for each in back]
    whole = [
        (each.recovered_s - each.died_s) * 1000
        for each in back
        if each.recovered_s is not None and each.died_s is not None
    ]
    if back:
        axes.hist([beyond, whole], bins=40, label=["beyond load and pause", "all told"])
        axes.legend()
    axes.set(xlabel="from the death to the first right answer, ms", ylabel="deaths")
    axes.set_title("Back after a death")
    return _saved(figure, path, pyplot)


def _saved(figure: Any, path: Path, pyplot: Any) -> Path:  # as above
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
    return path
