"""What `mmsup check` says: every fault of configuration and repositories, and what would be served. Pure.

The command line draws the report, or prints it as it is with --json; `ok` is its exit code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mmsup.ipc.specs import ModelSpec, TensorSpec
from mmsup.supervisor.config.config_error import ConfigError
from mmsup.supervisor.config.server_options import OptionOrigin
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.repository.scanner import ModelEntry, RepositoryScan

Report = dict[str, Any]  # JSON


def build_report(
    outcome: Settings | tuple[ConfigError, ...],
    repository: RepositoryScan | None = None,
    warnings: Iterable[ConfigError] = (),
    origins: Sequence[OptionOrigin] = (),
) -> Report:
    """All of it as one JSON object. `outcome` and `warnings` come from config.read; `repository` only if there are
    Settings; `origins` only for --explain."""
    found = RepositoryScan({}) if repository is None else repository
    faults = [*(() if isinstance(outcome, Settings) else outcome), *found.errors]
    concerns = [*warnings]
    if isinstance(outcome, Settings) and repository is not None:
        concerns += collect_warnings(outcome, found)
        faults += [
            ConfigError("--load-model", f"no repository holds {name}")
            for name in outcome.load_models
            if name != "*" and name not in found.models
        ]
    for entry in found.models.values():
        faults += entry.errors
    result: Report = {
        "ok": not faults,
        "faults": [_error(each) for each in faults],
        "warnings": [_error(each) for each in concerns],
        "models": [_model(each) for each in found.models.values()],
    }
    if origins:
        result["options"] = [{"option": each.option, "value": each.value, "source": each.source} for each in origins]
    return result


def collect_warnings(settings: Settings, found: RepositoryScan) -> list[ConfigError]:
    """What is no fault of the repositories and their models, and worth a word: a server says it too, at its start."""
    concerns = [*found.warnings]
    if not found.models and not found.errors:
        concerns.append(ConfigError(":".join(settings.repositories), "holds no model"))
    for entry in found.models.values():
        concerns += entry.warnings
    return concerns


def _error(fault: ConfigError) -> Report:
    return {"place": fault.place, "text": fault.text}


def _model(entry: ModelEntry) -> Report:
    return {
        "name": entry.name,
        "ok": not entry.errors,
        "directory": entry.directory,
        "all_versions": list(entry.all_versions),
        "versions": [_version(each) for each in entry.specs],
        "faults": [_error(each) for each in entry.errors],
        "warnings": [_error(each) for each in entry.warnings],
    }


def _version(spec: ModelSpec) -> Report:
    return {
        "version": spec.version,
        "artefact": spec.artefact,
        "engine": spec.engine,
        "platform": spec.platform,
        "device": spec.device,
        "instances": spec.instances,
        "max_batch_size": spec.max_batch_size,
        "memory_bytes": spec.memory_bytes,
        "gpu_memory_bytes": spec.gpu_memory_bytes,
        "inputs": [_tensor(each) for each in spec.inputs],
        "outputs": [_tensor(each) for each in spec.outputs],
    }


def _tensor(tensor: TensorSpec) -> Report:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "optional": tensor.optional}
