"""Draws the memory of all workers and zygotes over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from memory_curve import MemorySample

MIB = 1 << 20
MOST_POINTS = 300
COUNTED_COLOUR, FILES_COLOUR, BUDGET_COLOUR = "#0b6e4f", "#b8c1cc", "#b03a2e"


def thinned(samples: Sequence[MemorySample]) -> list[MemorySample]:
    """At most MOST_POINTS of them: of each span the one with most memory, so that no peak is lost."""
    step = -(-len(samples) // MOST_POINTS)
    return [max(samples[at : at + step], key=lambda each: each.counted) for at in range(0, len(samples), step)]


def draw(samples: Sequence[MemorySample], spans: Mapping[str, tuple[float, float]], budget: int, file: Path) -> None:
    """Memory and loaded models over time, as SVG; `spans`: from when to when each stream ran."""
    mpl.rcParams["svg.hashsalt"] = "mmsup"
    mpl.rcParams["svg.fonttype"] = "none"  # text instead of its outlines: a third of the size
    began_s, samples = samples[0].at_s, thinned(samples)
    at_s = np.array([each.at_s - began_s for each in samples])
    counted, files = (
        np.array(parts) / MIB for parts in ([each.counted for each in samples], [each.files for each in samples])
    )
    sheet = Figure(figsize=(11.0, 5.5), layout="constrained")
    memory, models = sheet.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    memory.stackplot(
        at_s, counted, files, colors=(COUNTED_COLOUR, FILES_COLOUR), labels=("anonymous and shared", "mapped files")
    )
    if budget:
        memory.axhline(budget / MIB, color=BUDGET_COLOUR, label="budget, of anonymous and shared memory")
    memory.set(ylabel="MiB", ylim=(0, None), title="Memory of all workers and zygotes")
    models.step(at_s, [each.workers for each in samples], color=COUNTED_COLOUR, where="post")
    models.set(ylabel="workers", xlabel="seconds", ylim=(0, None))
    for name, (from_s, to_s) in spans.items():
        for axes in (memory, models):
            axes.axvspan(from_s - began_s, to_s - began_s, color="tab:blue", alpha=0.07)
        models.annotate(name, (from_s - began_s, 0), (3, 3), textcoords="offset points", fontsize=9)
    memory.legend(loc="lower right", fontsize="small")
    for axes in (memory, models):
        axes.spines[["top", "right"]].set_visible(False)
    sheet.savefig(file, format="svg", metadata={"Date": None})
