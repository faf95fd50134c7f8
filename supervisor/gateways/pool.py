"""All gateway processes: those in their seats, those that come or leave, and the standby.

There are as many seats as are configured. In an upgrade another gateway comes up unseated, takes a seat once it serves,
and the old one exits when its connections have closed. One that leaves is sent every message until its end, so that
requests on its last connections are served like all others. Each living gateway has a number and a counter table that
no other living one has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.transport.codec import encode
from mmsup.supervisor.gateways.gateway_process import GatewayContext, GatewayProcess, GatewayRole
from mmsup.supervisor.gateways.standby import Standby


@dataclass(frozen=True, slots=True)
class GatewayRecord:
    """One gateway in the controller's checkpoint."""

    number: int
    counter_table: int
    generation: int
    spawned_s: float
    role: str


@dataclass(frozen=True, slots=True)
class GatewayRecords:
    gateways: tuple[GatewayRecord, ...]


class GatewayPool:
    def __init__(self, context: GatewayContext) -> None:
        self.context = context
        context.respawn = self.respawn
        self.seats = [GatewayProcess(number, number, context) for number in range(context.settings.gateways)]
        self.unseated: list[GatewayProcess] = []
        self.standby = Standby(context)
        self.on_change: Callable[[], None] = lambda: None
        """A gateway has come up, exited or changed its role."""
        self._highest_generation = 0

    def processes(self) -> list[GatewayProcess]:
        return [*self.seats, *self.unseated, *([self.standby.gateway] if self.standby.gateway else [])]

    def find(self, number: int) -> GatewayProcess | None:
        return next((each for each in self.processes() if each.number == number), None)

    def are_up(self) -> bool:
        """Whether all seats have the whole state."""
        return all(gateway.synced for gateway in self.seats)

    def connected_numbers(self) -> frozenset[int]:
        """Numbers of those that live and have answered their configuration."""
        return frozenset(
            each.number for each in self.processes() if each.has_answered and each.process and not each.process.is_dead
        )

    def broadcast(self, message: object) -> None:
        data = encode(message)
        for gateway in self.processes():
            if (channel := gateway.channel) is not None:
                channel.send(data)

    def free_number(self) -> int | None:
        return self._free({each.number for each in self.processes()})

    def _free(self, taken: set[int]) -> int | None:
        return next((number for number in range(self.context.settings.gateway_seats) if number not in taken), None)

    def new_gateway(self) -> GatewayProcess | None:
        """Another gateway, not started; None if all numbers are taken."""
        number, table = self.free_number(), self._free({each.counter_table for each in self.processes()})
        return None if number is None or table is None else GatewayProcess(number, table, self.context)

    def reserve_generation(self, generation: int = 0) -> int:
        """The next generation, above all known ones and the one given, which a process has that nobody may know."""
        self._highest_generation = max(self._highest_generation, generation)
        return 1 + max(self._highest_generation, *(each.generation for each in self.processes()))

    def replace(self, old: GatewayProcess, new: GatewayProcess) -> None:
        """The unseated new one serves and gets the seat of the old one."""
        self.unseated.remove(new)
        self.seats[self.seats.index(old)] = new
        new.role, old.role = GatewayRole.SERVING, GatewayRole.UNSEATED
        if old.process is not None:
            self.unseated.append(old)
        else:
            old.timer.cancel()
        self.on_change()

    def respawn(self, gateway: GatewayProcess) -> None:
        """A seat needs a process: the standby's, if there is one that lives."""
        standby = self.standby.claim() if gateway in self.seats else None
        if standby is None:
            gateway.spawn()
            return
        self.seats[self.seats.index(gateway)] = standby
        # The table can be taken over: what the dead process had open is over when another one counts there.
        standby.timer.exits, standby.counter_table = gateway.timer.exits, gateway.counter_table
        number, generation = standby.number, standby.generation
        text = f"the standby, generation {generation}, takes the seat of gateway {gateway.number}"
        self.context.event_log.record("gateway_spawn", text, generation=generation, gateway=number)
        self.on_change()  # before it is configured: a next controller must not take it for a standby
        standby.configure()

    def remove(self, gateway: GatewayProcess) -> None:
        if gateway in self.unseated:
            self.unseated.remove(gateway)

    def close(self) -> None:
        """Cancel all timers; the processes go on without this one."""
        self.standby.close()
        for gateway in self.processes():
            gateway.timer.cancel()
            if gateway.process is not None:
                gateway.process.close()


def start_successor(pool: GatewayPool) -> GatewayProcess | None:
    """Start a gateway that is to replace another one; None while all numbers are taken."""
    gateway = pool.new_gateway()
    if gateway is not None:
        gateway.role = GatewayRole.UNSEATED
        gateway.spawn(pool.reserve_generation())
        pool.unseated.append(gateway)
        failpoint("brain.gateway_beside")
        pool.on_change()
    return gateway


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
    gateway.generation, gateway.spawned_s, gateway.started_s = record.generation, record.spawned_s, record.spawned_s
    gateway.role = GatewayRole(record.role)
    return gateway
