"""The configuration that a client sends with files, as the text of a config.pbtxt. Pure."""

from __future__ import annotations

from typing import Final

from mmsup.ipc.errors import CallerError
from mmsup.supervisor.config.config_error import InvalidValue
from mmsup.supervisor.repository.config_pbtxt import as_pbtxt, read_json
from mmsup.supervisor.repository.execution_environment import PARAMETER
from mmsup.supervisor.repository.model_config import OPTION_PREFIX

_PLACE: Final = "parameter config"


def upload_config(model: str, config: str, *, may_hold_code: bool) -> str:
    """CallerError if it is no ModelConfig, or says what runs the model although no code may be sent."""
    try:
        pbtxt = as_pbtxt(config, _PLACE)
    except InvalidValue as error:
        raise CallerError("bad_request", f"failed to load '{model}': {_PLACE} {error}", model=model) from None
    given = read_json(config, _PLACE).config.get("parameters", {})
    options = [each for each in given if each.startswith(OPTION_PREFIX) or each == PARAMETER]
    if options and not may_hold_code:
        text = f"failed to load '{model}': the parameter '{options[0]:.80}' of its config may run any program"
        raise CallerError("forbidden", f"{text}: start the server with --allow-code-uploads", model=model)
    return pbtxt
