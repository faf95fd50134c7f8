"""What an artifact needs of the configuration: trust, and the declaration of its tensors."""

from __future__ import annotations

from mmsup.ipc.specs import TRITON_PYTHON
from mmsup.supervisor.config import model_options
from mmsup.supervisor.config.config_error import InvalidValue
from mmsup.supervisor.repository.artifact import Artifact
from mmsup.supervisor.repository.contents.declaration import missing_declaration
from mmsup.supervisor.repository.contents.source_facts import SourceFacts


def lines_to_paste(
    place: str, directory: str, artifact: Artifact, facts: SourceFacts, options: model_options.ModelOptions
) -> str:
    """For `mmsup.yaml`, which is called `place`, if the inputs or outputs have to be declared and are not."""
    if not _undeclared(artifact, facts, options):
        return ""
    lines = missing_declaration(directory, artifact.file, options)
    return f"# {place}, with the datatypes and shapes of the model\n{lines}"


def check_artifact(
    artifact: Artifact, facts: SourceFacts, options: model_options.ModelOptions, *, is_all_known: bool
) -> None:
    """InvalidValue if the options lack something that the artifact needs. If errors hide a part of the options
    (`is_all_known` is false), missing inputs and outputs are not reported."""
    problems: list[str] = []
    if artifact.needs_trust and not options.get("trusted", False):
        problems.append(f"{artifact.file} comes with code, model.py: set trusted: true in mmsup.yaml if it may run")
    missing = _undeclared(artifact, facts, options)
    if missing and is_all_known:
        own = ", or add them in auto_complete_config" if facts.interface == TRITON_PYTHON else ""
        where = f"declare them in config.pbtxt or mmsup.yaml{own}"
        problems.append(f"{artifact.file} does not name its {' and '.join(missing)}: {where}")
    if problems:
        raise InvalidValue(*problems)


def _undeclared(artifact: Artifact, facts: SourceFacts, options: model_options.ModelOptions) -> list[str]:
    if artifact.declares_tensors or facts.may_declare_tensors:
        return []
    return [word for word in ("inputs", "outputs") if word not in options]
