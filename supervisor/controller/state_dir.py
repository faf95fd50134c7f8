"""The state directory of a server and the files in it.

events.jsonl       what happened        logs/MODEL.log      what a model's workers printed
wanted.json        desired state        scratch/            directories of running workers
footprints.json    memory that each model was measured to need
uploads/MODEL/     models that clients have sent
deaths/MODEL/      the last crashes, a report each   NAME.kept-N   a file of which this version can make nothing
"""

from __future__ import annotations

from pathlib import Path

from mmsup.supervisor.capacity import footprint_store
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.observability.model_output import ModelOutput
from mmsup.supervisor.postmortem.archive import CrashArchive
from mmsup.supervisor.state.desired_state import DesiredState
from mmsup.supervisor.state.kept_aside import kept_aside
from mmsup.supervisor.uploads.upload_store import UploadStore


class StateDir:
    def __init__(self, settings: Settings) -> None:
        self._path = Path(settings.state_dir)
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.event_log = EventLog(self._path / "events.jsonl")
        self.desired_state = DesiredState(self._path / "wanted.json", settings.control_mode)
        self.crash_archive = CrashArchive(self._path / "deaths")
        self.footprints = self._path / footprint_store.FILE_NAME
        is_open = settings.allow_model_uploads
        self.uploads = UploadStore(self._path / "uploads", settings.max_upload_bytes) if is_open else None
        """None where clients may not send models."""
        self.scratch = str(self._path / "scratch")
        self._outputs: dict[str, ModelOutput] = {}

    def model_output(self, name: str) -> ModelOutput:
        """The output of one model, or of the gateways (GATEWAY_OUTPUT)."""
        if name not in self._outputs:
            self._outputs[name] = ModelOutput(self._path / "logs" / f"{name}.log")
        return self._outputs[name]

    def report_unreadable(self, lost_checkpoint: str) -> None:
        """Say what could not be read. `lost_checkpoint`: of the controller before, empty if there was none or it could
        be read."""
        for text in (self.desired_state.problem, self.event_log.problem, lost_checkpoint):
            if text:
                self.event_log.record("state_unreadable", text)

    def kept_aside(self) -> list[str]:
        """Names of files that could not be read once, and are still there."""
        return kept_aside(self._path)

    def close(self) -> None:
        self.event_log.close()
        for output in self._outputs.values():
            output.close()
