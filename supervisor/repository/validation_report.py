"""The report of `mmsup check` as JSON: faults and warnings of configuration and repositories, and the models found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from mmsup.ipc.specs import ModelSpec, TensorSpec
from mmsup.supervisor.config.config_error import ConfigError
from mmsup.supervisor.config.server_options import OptionOrigin
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.repository.contents.model_files import ContentFindings
from mmsup.supervisor.repository.folders import missing_model_hint
from mmsup.supervisor.repository.scanner import ModelEntry, RepositoryScan

Report = dict[str, Any]  # JSON


def build_report(
    config: Settings | tuple[ConfigError, ...],
    repository: RepositoryScan | None = None,
    warnings: Iterable[ConfigError] = (),
    origins: Sequence[OptionOrigin] = (),
    contents: Callable[[ModelSpec], ContentFindings] = lambda _: ContentFindings(),
) -> Report:
    """`config` and `warnings` come from read_config; `repository` only if there are Settings; `origins` only for
    --explain; `contents` reads the files of a version."""
    found = RepositoryScan({}) if repository is None else with_contents(repository, contents)
    faults = [*(() if isinstance(config, Settings) else config), *found.errors]
    concerns = [*warnings]
    if isinstance(config, Settings) and repository is not None:
        concerns += collect_warnings(config, found)
        faults += [
            ConfigError("--load-model", f"no repository holds {name}")
            for name in config.load_models
            if name != "*" and name not in found.models
        ]
    reports = [_error(each) for each in faults]
    for entry in found.models.values():
        reports += [_error(each) for each in entry.errors]
    result: Report = {
        "ok": not reports,
        "faults": reports,
        "warnings": [_error(each) for each in concerns],
        "models": [_model(each) for each in found.models.values()],
    }
    if origins:
        result["options"] = [{"option": each.option, "value": each.value, "source": each.source} for each in origins]
    return result


def with_contents(found: RepositoryScan, contents: Callable[[ModelSpec], ContentFindings]) -> RepositoryScan:
    """With the faults and warnings that the files of the models show."""
    models = dict(found.models)
    for name, entry in models.items():
        read = [contents(spec) for spec in entry.specs]
        faults = dict.fromkeys(fault for each in read for fault in each.faults)  # one of all versions stands once
        warnings = dict.fromkeys(warning for each in read for warning in each.warnings)
        models[name] = replace(entry, errors=(*entry.errors, *faults), warnings=(*entry.warnings, *warnings))
    return replace(found, models=models)


def collect_warnings(settings: Settings, found: RepositoryScan) -> list[ConfigError]:
    """Warnings about the repositories and their models, which a server logs too at its start."""
    concerns = [*found.warnings]
    if not found.models and not found.errors:
        concerns += [ConfigError(each, f"holds no model{missing_model_hint(each)}") for each in settings.repositories]
    for entry in found.models.values():
        concerns += entry.warnings
    return concerns


def _error(fault: ConfigError) -> Report:
    """With `paste`, the lines of YAML that mend it, if there are some."""
    shown: Report = {"place": fault.place, "text": fault.text}
    return {**shown, "paste": fault.paste} if fault.paste else shown


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
