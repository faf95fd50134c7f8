"""The result of one load on one server. Pure."""

from __future__ import annotations

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
    """Number of measurements that this is the median of."""
    lowest: float = 0.0
    highest: float = 0.0
    """Requests per second in the slowest and the fastest of them."""

    @property
    def holds(self) -> bool:
        """Whether the measurement is valid."""
        return bool(self.requests) and not self.failures and not self.wrong


def median(rows: Sequence[Row]) -> Row:
    """The valid row with the median rate. Wrong answers in any round invalidate all."""
    voided = [row for row in rows if row.wrong]
    held = sorted((row for row in rows if row.holds), key=lambda row: row.rate)
    if voided or not held:
        return replace((voided or list(rows))[0], rounds=0, wrong=sum(row.wrong for row in rows))
    kept = held[(len(held) - 1) // 2]
    failed = next((row.trouble for row in rows if not row.holds), "")
    trouble = f"{len(rows) - len(held)} of {len(rows)} rounds failed: {failed}" if failed else ""
    return replace(kept, rounds=len(held), lowest=held[0].rate, highest=held[-1].rate, trouble=trouble)


def row_json(row: Row) -> dict[str, object]:
    """The row as a JSON object."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(row).items()}
