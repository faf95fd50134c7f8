"""What the brain keeps in the state directory: the journal, the models' output, the wishes."""

from __future__ import annotations

from pathlib import Path

from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.observability.model_output import ModelOutput
from mmsup.supervisor.postmortem.archive import CrashArchive
from mmsup.supervisor.state.desired_state import DesiredState


class StateDir:
    """One per brain.

    events.jsonl       what happened        logs/MODEL.log      what a model's workers printed
    wanted.json        what was asked       scratch/            folders of living workers
    deaths/MODEL/      the last deaths, a bundle each
    """

    def __init__(self, settings: Settings) -> None:
        self._home = Path(settings.state_dir)
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.event_log = EventLog(self._home / "events.jsonl")
        self.desired_state = DesiredState(self._home / "wanted.json", settings.control_mode)
        self.crash_archive = CrashArchive(self._home / "deaths")
        self._logbooks: dict[str, ModelOutput] = {}

    @property
    def scratch(self) -> str:
        """Where each life has a folder of its own."""
        return str(self._home / "scratch")

    def model_output(self, name: str) -> ModelOutput:
        """The output of one model; `_gateways` is theirs, for no model's name begins so."""
        if name not in self._logbooks:
            self._logbooks[name] = ModelOutput(self._home / "logs" / f"{name}.log")
        return self._logbooks[name]

    def close(self) -> None:
        """Let go of all files."""
        self.event_log.close()
        for logbook in self._logbooks.values():
            logbook.close()
