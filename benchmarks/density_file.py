"""What runs of density.py have measured, as files: so that its parts can be run at different times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from density_report import Density, HitRates, KindResult, StreamResult
from memory_curve import MemorySample

GAP_S = 10.0
"""In the picture, between two runs."""


@dataclass
class Starts:
    """What the server without a budget has shown."""

    own_s: dict[int, float] = field(default_factory=dict[int, float])
    """Of each model, a request alone to a sleeping one."""
    fitting: MemorySample | None = None
    """When as many models were loaded as are to fit."""
    all_loaded: MemorySample | None = None
    faults: list[str] = field(default_factory=list[str])
    stages: str = ""
    """Where their time goes, as a table."""


def write_starts(starts: Starts, file: Path) -> None:
    file.write_text(json.dumps(asdict(starts), indent=1) + "\n")


def read_starts(file: Path) -> Starts:
    found = json.loads(file.read_text())
    fitting, loaded = (MemorySample(**found[name]) if found[name] else None for name in ("fitting", "all_loaded"))
    return Starts(
        {int(model): took_s for model, took_s in found["own_s"].items()},
        fitting,
        loaded,
        found["faults"],
        found["stages"],
    )


def write_density(density: Density, file: Path) -> None:
    file.write_text(json.dumps(asdict(density), indent=1) + "\n")


def read_density(file: Path) -> Density:
    found = json.loads(file.read_text())
    found["streams"] = [
        StreamResult(
            **each | {"hits": HitRates(**each["hits"]), "kinds": [KindResult(**kind) for kind in each["kinds"]]}
        )
        for each in found["streams"]
    ]
    found["samples"] = [MemorySample(**each) for each in found["samples"]]
    found["spans"] = {name: (from_s, to_s) for name, (from_s, to_s) in found["spans"].items()}
    return Density(**found)


def together(runs: Sequence[Density]) -> Density:
    """Several runs with the same budget as one, in the order given; their times follow each other."""
    samples, spans, end_s = list[MemorySample](), dict[str, tuple[float, float]](), 0.0
    for run in runs:
        ahead_s = end_s - run.samples[0].at_s
        samples += [MemorySample(each.at_s + ahead_s, each.counted, each.files, each.workers) for each in run.samples]
        spans |= {name: (from_s + ahead_s, to_s + ahead_s) for name, (from_s, to_s) in run.spans.items()}
        end_s = samples[-1].at_s + GAP_S
    commands = {f"command {at + 1}": run.facts["command"] for at, run in enumerate(runs)}
    facts = {name: each for name, each in runs[0].facts.items() if name != "command"} | commands
    faults = [fault for run in runs for fault in run.faults]
    return Density(
        facts,
        runs[0].budget,
        faults,
        [each for run in runs for each in run.streams],
        samples,
        spans,
        runs[0].alone_stages,
    )
