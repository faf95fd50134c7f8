"""Reports the readiness of the server to gateways and systemd when it changes, and announces READY once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mmsup.ipc.messages.gateway_control import Synced
from mmsup.ipc.messages.keeper_control import NotifySystemd
from mmsup.supervisor.controller.event_console import MODEL_COLUMNS, model_rows
from mmsup.supervisor.gateways.pool import GatewayPool
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.readiness import ModelReadiness, ServerReadiness, server_readiness
from mmsup.supervisor.observability.console import Console
from mmsup.supervisor.processes.launch_spec import public_addresses


class ReadinessReporter:
    def __init__(
        self,
        pool: GatewayPool,
        model_set: ModelSet,
        console: Console,
        on_announced: Callable[[list[str]], None],
        *,
        is_announced: bool,
    ) -> None:
        """`on_announced` gets the names of the wanted models that have failed: when READY is announced, and once more
        when all have been loaded or have failed, if that is later. `is_announced`: an earlier controller has announced
        READY."""
        self.is_announced = is_announced
        self._is_grace_over = self._is_settled = is_announced
        self._pool = pool
        self._model_set = model_set
        self._console = console
        self._on_announced = on_announced
        self._reported: ServerReadiness | None = None

    def readiness(self) -> ServerReadiness:
        return server_readiness(
            front=self._pool.are_up(),
            draining=self._pool.context.is_stopping,
            wanted=self._models(),
            strict=self._pool.context.settings.strict_readiness,
            is_grace_over=self._is_grace_over,
        )

    def report(self) -> None:
        """Report the readiness if it has changed; announce READY once every model has its outcome, or once the grace is
        over and the server is ready."""
        now, context = self.readiness(), self._pool.context
        if now != self._reported:
            self._reported = now
            self._pool.broadcast(Synced(now.ready, now.reason))
            context.keeper.send(NotifySystemd(f"STATUS={'ready' if now.ready else now.reason}"))
        models = self._models()
        is_settled = all(each.has_outcome and each.all_have_outcome for each in models)
        may_announce = all(each.has_outcome for each in models) or (self._is_grace_over and now.ready)
        if not self._pool.are_up() or not may_announce:
            return
        if not self.is_announced:
            self._announce(now)
        elif self._is_settled or not is_settled:
            return
        self._is_settled = is_settled
        has_failed = [each for each in models if each.has_outcome and not each.serving]
        has_failed += [each for each in models if each.serving and each.all_have_outcome and not each.all_serving]
        self._on_announced([each.name for each in has_failed])

    async def end_grace(self, after_s: float) -> None:
        """From then on no model that loads holds the server back."""
        await asyncio.sleep(max(after_s, 0.0))
        self._is_grace_over = True
        self.report()

    def _announce(self, now: ServerReadiness) -> None:
        context = self._pool.context
        self.is_announced = True
        models = self._model_set.models
        self._console.log_table(MODEL_COLUMNS, model_rows([models[name] for name in sorted(models)]))
        loading = [each.name for each in self._models() if not each.has_outcome]
        text = now.reason or "every wanted model has its verdict"
        text = f"the start-up grace is over; still loading: {', '.join(loading)}" if loading and now.ready else text
        context.event_log.record("ready", text, addresses=public_addresses(context.addresses))
        context.keeper.send(NotifySystemd("READY=1"))

    def _models(self) -> list[ModelReadiness]:
        return [each.readiness for each in self._model_set.models.values() if each.readiness is not None]
