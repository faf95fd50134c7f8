"""One row of the table: what one load on one server came to.

Pure: judged, sorted and drawn elsewhere, without a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace


@dataclass
class Row:
    """One load on one server. CPU is of all its processes together, in microseconds for each request."""

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
    """The share of its core that the server used."""
    client_busy: float = 0.0
    """The same of the client: near 1 it is the client that was measured."""
    requests: int = 0
    failures: int = 0
    answer_bytes: int = 0
    """The body of one answer, as it went over the wire."""
    checked: int = 0
    """Answers of the run that were looked at."""
    wrong: int = 0
    trouble: str = ""
    note: str = ""
    command: str = ""
    """What started the server, with its folders by name."""
    rounds: int = 1
    """How many measurements this is the median of."""
    lowest: float = 0.0
    highest: float = 0.0
    """Requests a second in the worst and the best of them."""

    @property
    def holds(self) -> bool:
        """Whether this is a result at all."""
        return bool(self.requests) and not self.failures and not self.wrong


def median(rows: Sequence[Row]) -> Row:
    """The row with the median rate of those that hold. Wrong answers in any round void them all."""
    voided = [row for row in rows if row.wrong]
    held = sorted((row for row in rows if row.holds), key=lambda row: row.rate)
    if voided or not held:
        return replace((voided or list(rows))[0], rounds=0, wrong=sum(row.wrong for row in rows))
    kept = held[(len(held) - 1) // 2]
    failed = next((row.trouble for row in rows if not row.holds), "")
    trouble = f"{len(rows) - len(held)} of {len(rows)} rounds failed: {failed}" if failed else ""
    return replace(kept, rounds=len(held), lowest=held[0].rate, highest=held[-1].rate, trouble=trouble)


def row_json(row: Row) -> dict[str, object]:
    """As JSON keeps it."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(row).items()}
