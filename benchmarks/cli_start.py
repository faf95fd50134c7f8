"""How long `mmsup ctl --help` takes, end to end: interpreter, imports, text. Prints the median.

python benchmarks/cli_start.py [RUNS]
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time

BUDGET_MS = 150.0
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "mmsup ctl --help": ["-m", "mmsup.supervisor.cli", "ctl", "--help"],
    "mmsup ctl status (no server)": ["-m", "mmsup.supervisor.cli", "ctl", "--runtime-dir", "/nowhere", "status"],
    "mmsup --version": ["-m", "mmsup.supervisor.cli", "--version"],
    "mmsup serve --help": ["-m", "mmsup.supervisor.cli", "serve", "--help"],
}


def median_ms(arguments: list[str], runs: int) -> float:
    """The median wall time of a fresh interpreter with these arguments."""
    taken: list[float] = []
    for _ in range(runs):
        begin = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
        taken.append((time.perf_counter() - begin) * 1000)
    return statistics.median(taken)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 11
    median_ms(["-c", "import click"], 2)  # a warm page cache, as anyone has who types a second command
    medians = {name: round(median_ms(arguments, runs), 1) for name, arguments in COMMANDS.items()}
    print(json.dumps({"python": platform.python_version(), "runs": runs, "median_ms": medians}, indent=2))
    sys.exit(medians["mmsup ctl --help"] > BUDGET_MS)


if __name__ == "__main__":
    main()
