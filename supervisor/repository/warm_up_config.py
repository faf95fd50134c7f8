"""Judges `model_warmup` of a configuration: what a sample lacks by itself, and what does not fit the model's inputs.

Covers what can be told without running the model; the worker (worker/startup/warm_up_samples.py) judges the rest.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from mmsup.ipc.specs import WARM_UP_FOLDER, WARM_UP_STRINGS_BYTES
from mmsup.ipc.tensors.datatypes import from_config_name, size_bytes
from mmsup.supervisor.config import validators
from mmsup.supervisor.config.config_error import InvalidValue, displayed
from mmsup.supervisor.config.model_options import ModelOptions

WARM_UP_RUNS: Final = 10_000
"""Most runs of one sample of `model_warmup`; each takes at least its time in the model."""

Json = dict[str, Any]  # one JSON object


def warm_up_problems(samples: Sequence[Json], max_batch_size: int) -> list[tuple[str, str]]:
    """What is wrong with `model_warmup`, as key and text."""
    problems: list[tuple[str, str]] = []
    for at, sample in enumerate(samples):
        key = f"model_warmup[{at}]"
        size = sample.get("batch_size", 0)
        if size > max(max_batch_size, 1):
            problems.append((f"{key}.batch_size", f"{size} is more than max_batch_size, {max_batch_size}"))
        if sample.get("count", 0) > WARM_UP_RUNS:
            problems.append((f"{key}.count", f"{sample['count']} is more than {WARM_UP_RUNS} runs of one sample"))
        for name, given in sample.get("inputs", {}).items():
            place = f"{key}.inputs.{name}"
            if given.get("data_type", "TYPE_INVALID") == "TYPE_INVALID":
                problems.append((place, "has no data_type"))
            if any(each < 1 for each in given.get("dims", ())):
                problems.append((place, "has dims that are not positive: a sample has a size for each"))
            kinds = given.keys() & {"zero_data", "random_data", "input_data_file"}
            if not kinds:
                problems.append((place, "needs one of zero_data, random_data and input_data_file"))
            if "input_data_file" in given:
                try:
                    validators.file_name(given["input_data_file"])
                except InvalidValue as error:
                    problems += [(place, text) for _, text in error.problems]
    return problems


def sample_problems(samples: Sequence[Json], options: ModelOptions, directory: str) -> list[tuple[str, str]]:
    """What of `model_warmup` does not fit the declared inputs or the files in `warmup`, as key and text.

    `options`: of all layers. `directory`: of the model. A model that declares no inputs has them in its file, which is
    not opened here: then the files of the samples are judged alone.
    """
    declared: dict[str, Json] = {each["name"]: each for each in options.get("inputs", ())}
    max_batch_size: int = options.get("max_batch_size", 0)
    problems: list[tuple[str, str]] = []
    for at, sample in enumerate(samples):
        key, inputs = f"model_warmup[{at}]", sample.get("inputs", {})
        needed = [name for name, each in declared.items() if not each["optional"]]
        problems += [(key, f"has no input {displayed(name)}") for name in needed if name not in inputs]
        rows = max(sample.get("batch_size", 0), 1) if max_batch_size else 1
        for name, given in inputs.items():
            text = _contradiction(name, given, declared) or _file_problem(given, rows, directory)
            if text:
                problems.append((f"{key}.inputs.{name}", text))
    return problems


def _contradiction(name: str, given: Json, declared: dict[str, Json]) -> str:
    if not declared:
        return ""
    if name not in declared:
        return f"the model has no input {displayed(name)}; it has {', '.join(displayed(each) for each in declared)}"
    datatype, expected = from_config_name(given.get("data_type", "")), declared[name]["datatype"]
    return f"is {datatype}, and the input is declared as {expected}" if datatype not in (None, expected) else ""


def _file_problem(given: Json, rows: int, directory: str) -> str:
    """A file that is not there, or that holds neither one row nor all rows of the batch."""
    name, dims, datatype = given.get("input_data_file", ""), given.get("dims", ()), given.get("data_type", "")
    if not name or any(each < 1 for each in dims):
        return ""
    path = os.path.join(directory, WARM_UP_FOLDER, os.path.basename(name))
    if not os.path.isfile(path):
        return f"there is no file {displayed(f'{WARM_UP_FOLDER}/{name}')} in the model's folder"
    word = from_config_name(datatype)
    row = size_bytes(word, dims) if word else None
    size = os.path.getsize(path)
    if row is None and size > WARM_UP_STRINGS_BYTES:
        return f"{displayed(f'{WARM_UP_FOLDER}/{name}')} holds {size} bytes; at most {WARM_UP_STRINGS_BYTES} are read"
    if row is None or size in (row, rows * row):
        return ""
    whole = f", or {rows * row} for {rows} rows" if rows > 1 else ""
    return f"{displayed(f'{WARM_UP_FOLDER}/{name}')} holds {size} bytes, and {word} {list(dims)} takes {row}{whole}"
