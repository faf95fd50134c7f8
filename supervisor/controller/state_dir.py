"""What the brain keeps in the state directory: the journal, the models' output, the wishes."""

from __future__ import annotations

from pathlib import Path

from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.observability.event_log import Journal
from mmsup.supervisor.observability.model_output import Logbook
from mmsup.supervisor.postmortem.archive import Archive
from mmsup.supervisor.state.desired_state import Wanted


class Books:
    """One per brain.

    events.jsonl       what happened        logs/MODEL.log      what a model's workers printed
    wanted.json        what was asked       scratch/            folders of living workers
    deaths/MODEL/      the last deaths, a bundle each
    """

    def __init__(self, settings: Settings) -> None:
        self._home = Path(settings.state_dir)
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.journal = Journal(self._home / "events.jsonl")
        self.wanted = Wanted(self._home / "wanted.json", settings.control_mode)
        self.deaths = Archive(self._home / "deaths")
        self._logbooks: dict[str, Logbook] = {}

    @property
    def scratch(self) -> str:
        """Where each life has a folder of its own."""
        return str(self._home / "scratch")

    def logbook(self, name: str) -> Logbook:
        """The output of one model; `_gateways` is theirs, for no model's name begins so."""
        if name not in self._logbooks:
            self._logbooks[name] = Logbook(self._home / "logs" / f"{name}.log")
        return self._logbooks[name]

    def close(self) -> None:
        """Let go of all files."""
        self.journal.close()
        for logbook in self._logbooks.values():
            logbook.close()
