"""Reports the readiness of the server to gateways and systemd when it changes, and announces READY once."""

from __future__ import annotations

from collections.abc import Callable

from mmsup.ipc.messages.gateway_control import Synced
from mmsup.ipc.messages.keeper_control import NotifySystemd
from mmsup.supervisor.controller.event_console import MODEL_COLUMNS, model_rows
from mmsup.supervisor.gateways.pool import GatewayPool
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.readiness import ModelReadiness, ServerReadiness, server_readiness
from mmsup.supervisor.observability.console import Console


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
        """`on_announced` gets the names of the wanted models that do not serve. `is_announced`: an earlier controller
        has announced READY."""
        self.is_announced = is_announced
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
        )

    def report(self) -> None:
        """Report the readiness if it has changed, and announce READY if every model has its outcome now."""
        now, context = self.readiness(), self._pool.context
        if now != self._reported:
            self._reported = now
            self._pool.broadcast(Synced(now.ready, now.reason))
            context.keeper.send(NotifySystemd(f"STATUS={'ready' if now.ready else now.reason}"))
        if self.is_announced or not self._pool.are_up() or not all(each.has_outcome for each in self._models()):
            return
        self.is_announced = True
        models = self._model_set.models
        self._console.log_table(MODEL_COLUMNS, model_rows([models[name] for name in sorted(models)]))
        text = now.reason or "every wanted model has its verdict"
        context.event_log.record("ready", text, addresses=context.addresses)
        context.keeper.send(NotifySystemd("READY=1"))
        self._on_announced([each.name for each in self._models() if not each.serving])

    def _models(self) -> list[ModelReadiness]:
        return [each.readiness for each in self._model_set.models.values() if each.readiness is not None]
