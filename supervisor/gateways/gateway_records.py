"""The gateways as they stand in the controller's checkpoint, and how the next controller makes them from there."""

from __future__ import annotations

from dataclasses import dataclass

from mmsup.supervisor.gateways.gateway_process import GatewayContext, GatewayProcess, GatewayRole
from mmsup.supervisor.gateways.pool import GatewayPool


@dataclass(frozen=True, slots=True)
class GatewayRecord:
    number: int
    counter_table: int
    generation: int
    spawned_s: float
    role: str


@dataclass(frozen=True, slots=True)
class GatewayRecords:
    gateways: tuple[GatewayRecord, ...]


def gateway_records(pool: GatewayPool) -> GatewayRecords:
    return GatewayRecords(tuple(_record(pool, each) for each in pool.processes()))


def _record(pool: GatewayPool, gateway: GatewayProcess) -> GatewayRecord:
    # A claimed standby has its seat before it is configured, and the next controller must know it by its seat.
    role = GatewayRole.SERVING if gateway in pool.seats else gateway.role
    return GatewayRecord(gateway.number, gateway.counter_table, gateway.generation, gateway.spawned_s, str(role))


def restore_gateways(pool: GatewayPool, records: GatewayRecords) -> None:
    restored = [_restore(each, pool.context) for each in records.gateways]
    seated = [each for each in restored if each.role is GatewayRole.SERVING][: len(pool.seats)]
    pool.seats[: len(seated)] = seated
    pool.unseated = [each for each in restored if each.role is GatewayRole.UNSEATED]
    pool.standby.gateway = next((each for each in restored if each.role is GatewayRole.STANDBY), None)


def _restore(record: GatewayRecord, context: GatewayContext) -> GatewayProcess:
    gateway = GatewayProcess(record.number, record.counter_table, context)
    gateway.generation, gateway.spawned_s = record.generation, record.spawned_s
    gateway.role = GatewayRole(record.role)
    return gateway
