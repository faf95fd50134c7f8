"""Files of labels that `label_filename` names in a configuration: those that the gateway will not read.

The gateway reads none without a word, and answers with numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmsup.ipc.specs import LABELS_LIMIT_BYTES
from mmsup.supervisor.config.config_error import InvalidValue, displayed
from mmsup.supervisor.config.yaml_file import read_text


def label_file_problems(directory: str, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and text of each file of labels that has no effect. `config`: ModelConfig as JSON."""
    for at, output in enumerate(config.get("output", ())):
        if name := output.get("label_filename"):
            problem = _problem(directory, str(name))
            if problem:
                yield f"output[{at}].label_filename", f"{displayed(name)} {problem}; classes are told without labels"


def _problem(directory: str, name: str) -> str:
    if os.path.basename(name) != name or "\0" in name:
        return "is no name of a file beside config.pbtxt"
    path = os.path.join(directory, name)
    if os.path.islink(path):
        return "is a link, which is not followed: copy the file"
    try:
        read_text(path, LABELS_LIMIT_BYTES)
    except InvalidValue as error:
        return str(error)
    return ""
