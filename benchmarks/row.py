"""The result of one load on one server. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace


@dataclass
class Row:
    """CPU is of all server processes, in microseconds per request."""

    peer: str
    run: str
    rate: float = 0.0
    megabytes_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    p999_ms: float = 0.0
    max_ms: float = 0.0
    cpu_us: float = 0.0
    system_us: float = 0.0
    cpu_us_by_process: dict[str, float] = field(default_factory=dict)
    system_us_by_process: dict[str, float] = field(default_factory=dict)
    server_busy: float = 0.0
    """Share of its core that the server used."""
    client_busy: float = 0.0
    """The same of the client: near 1 the client was the bottleneck."""
    known_share: float | None = None
    """Share of the requests that the server recognised by their bytes, where it counts that."""
    requests: int = 0
    failures: int = 0
    answer_bytes: int = 0
    """Size of one response body."""
    checked: int = 0
    """Number of answers that were compared."""
    wrong: int = 0
    trouble: str = ""
    note: str = ""
    command: str = ""
    """The server's command, with placeholders for folders."""
    rounds: int = 1
    """Number of measurements that the figures are the medians of."""
    lowest_us: float = 0.0
    highest_us: float = 0.0
    """CPU per request in the cheapest and the dearest of them."""

    @property
    def holds(self) -> bool:
        """Whether the measurement is valid."""
        return bool(self.requests) and not self.failures and not self.wrong


FIGURES = (
    *("rate", "megabytes_s", "p50_ms", "p99_ms", "p999_ms", "max_ms"),
    *("cpu_us", "system_us", "server_busy", "client_busy", "known_share"),
)


def median(rows: Sequence[Row]) -> Row:
    """The median of each figure over the valid rows. Wrong answers in any round invalidate all."""
    voided = [row for row in rows if row.wrong]
    held = sorted((row for row in rows if row.holds), key=lambda row: row.cpu_us)
    if voided or not held:
        return replace((voided or list(rows))[0], rounds=0, wrong=sum(row.wrong for row in rows))
    kept = held[(len(held) - 1) // 2]
    failed = next((row.trouble for row in rows if not row.holds), "")
    trouble = f"{len(rows) - len(held)} of {len(rows)} rounds failed: {failed}" if failed else ""
    known = {name: [value for row in held if (value := getattr(row, name)) is not None] for name in FIGURES}
    figures = {name: statistics.median(values) for name, values in known.items() if values}
    lowest_us, highest_us = held[0].cpu_us, held[-1].cpu_us
    return replace(kept, **figures, rounds=len(held), lowest_us=lowest_us, highest_us=highest_us, trouble=trouble)


def row_json(row: Row) -> dict[str, object]:
    """The row as a JSON object."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(row).items()}
