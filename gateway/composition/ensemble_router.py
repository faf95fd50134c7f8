"""The router of a gateway, which knows ensembles: their requests go to no worker, but to the workers of their steps."""

from __future__ import annotations

import time
from typing import Protocol

from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.waking.request_wait import WaitingBody
from mmsup.ipc.messages.gateway_control import VersionState
from mmsup.ipc.specs import ENSEMBLE


class OpensEnsembles(Protocol):
    def open_ensemble(self, state: VersionState, version: str, deadline_ns: int) -> DispatchedRequest: ...


class EnsembleRouter(Router):
    composer: OpensEnsembles | None = None
    """Set when the gateway is made."""

    async def open(
        self, name: str, version: str, deadline: int | None = None, body: WaitingBody | None = None
    ) -> DispatchedRequest:
        state = self.find_version(name, version)
        if self.composer is None or state.spec is None or state.spec.engine != ENSEMBLE:
            return await super().open(name, version, deadline, body)
        if deadline is None:
            deadline = time.monotonic_ns() + int(state.spec.deadline_s * 1e9)
        return self.composer.open_ensemble(state, version, deadline)
