"""Order between programs, from their arrival, their progress and the service that they have attained. Pure: the caller
passes the time.

The rank of a program ("program rank" elsewhere, because a call has a rank too) and its due time are times, in seconds
of the caller's clock:

    rank = arrival + SERVICE_FACTOR * max(0, attained service / weight - GRANT_SECONDS)
    due time = rank - progress

The simulator's policy `myna` runs calls in the order of the due times of their programs. The server shifts the deadline
of each call by `lead`. Pauses compare ranks. The lowest goes first.

Agents return from tools again and again, and a program that is done frees its KV. If newcomers overtook the programs
that run, all of them would hold KV and evict each other. So arrival counts most. The rank of a program that has
attained more than its grant is later than its arrival, so a short program does not wait for all of a very long one.
Without a grant, programs that arrive together would take turns, and evict each other's KV at each turn.

The progress of a program says how near its end is expected. The prompt of an agent grows until the agent is done or the
window of its model is full. So an agent whose prompt nearly fills the window goes first, although it began later: the
mean time to completion is shortest if those with the least work left go first. A shorter prompt says little about the
work left, and does not count; see `progress`. A prompt counts only once a call has ended after it began, and only if
it extends an earlier call of the program: otherwise the prefill of a long first prompt would go before short calls of
programs that arrived earlier.

The gateway's pauses for upstream servers, and those of the simulator, compare ranks without progress: after
`MAX_PAUSE_SECONDS`, a call may displace only KV of programs with a higher rank (`engine.kv.pausing`). With progress,
programs that arrive together would evict each other, whenever the progress of one exceeds that of the other.

The server's queue is made of deadlines of single calls. By default, `lead` is subtracted from the deadline of a call:
the time since its program was due, negative if it is due later. With `--no-pause-programs`, the deadline only becomes
later, by `delay`: without pauses, the order by arrival probably costs time (docs/benchmarks.md).

Starvation bound: the due time of a program moves the deadline of a call by at most `MAX_LEAD`, in either direction. So
let a call arrive at time t. It is due at t + MAX_LEAD at the latest, and calls that arrive after t + 2 * MAX_LEAD never
go before it. This holds for any number of programs, whatever they do. While several tenants have calls,
`MAX_DIFFERENCE` is added to `MAX_LEAD`. The work of the calls is added as well, see `gateway.scheduler.priority`.
"""

from collections import OrderedDict
from collections.abc import Mapping

from gateway.programs.shared_table import SharedTable

SERVICE_FACTOR = 3.0
"""Seconds by which a program's rank grows for each second of attained service: `WORK_FACTOR` of single calls."""
GRANT_SECONDS = 300.0
"""Attained service, in seconds of engine time for weight 1, that leaves a program's rank at its arrival."""
PROGRESS_SECONDS = 3000.0
"""Progress for a prompt that fills the window of its model, in seconds. In the simulator, the mean completion with 6000
differed by less than 1%, and without progress it was 2% longer. The recorded sessions are cut at the window, so this
gains more there than for agents that shorten their prompts and go on (docs/benchmarks.md)."""
PROGRESS_FROM = 0.7
"""Part of the window up to which a prompt is no progress. In the simulator, the mean completion with 0.5 and with 0.9
differed by less than 1%. Progress from 0 on cost up to 19% where agents fill a small part of the window: the longest
prompts, whose calls cost most, then go first."""
MAX_LEAD = 14_400.0
"""Maximum number of seconds by which the deadline of a call is earlier or later because of its program. Without it,
many old programs together could go before a call for ever. In the simulator, this bound does not change the mean
completion. A bound of 7200 makes it 0.2% longer, and 1.3% in one setting."""
HALF_LIFE = 3600.0
"""Time, in seconds, after which attained service counts half."""
IDLE_SECONDS = 3600.0
"""Time without a call, in seconds, after which a program counts as new. Without it, a program that once arrived early
would go before all others for ever."""
MAX_DELAY = 120.0
"""Maximum number of seconds by which attained service alone delays a call in the server's queue."""
MAX_DIFFERENCE = 300.0
"""Maximum difference, in seconds, between the lead of a call and the average lead of its tenant, while other tenants
have calls. Otherwise a tenant could lower its average by many small calls, and let one call go before all others."""
_AVERAGE_WEIGHT = 0.02
"""Weight of a call in an average lead."""
_AVERAGE_SECONDS = 60.0
"""Time without calls of programs, in seconds, for which the average lead of all tenants stays."""
_AVERAGE_HALF_LIFE = 600.0
"""Time after that, in seconds, after which this average counts half."""
_ACTIVE_SECONDS = 600.0
"""Time after its latest call, in seconds, for which a tenant counts as one that has calls."""
_MAX_TENANTS = 10_000
"""Maximum number of tenants whose averages are remembered."""
MAX_PROGRAMS = 100_000
"""Maximum number of programs of all tenants together that are remembered. If there are more, the tenant with the most
programs loses the one whose latest call is the oldest."""
_MAX_FORGOTTEN = 256
"""Maximum number of programs that one call of `forget_some` forgets."""


def progress(filled: float) -> float:
    """Return by how many seconds a program is due earlier because of its progress: at most `PROGRESS_SECONDS`.

    `filled`: part of a model's window that the program's longest prompt fills, from 0 to 1, of those that count; see
    `ProgramService.begin`. Prompts of failed calls count. A client that sends a longer prompt changes the order of its
    own tenant. It also raises the average lead that the calls of all tenants get, so calls that wait already may go
    later, within `MAX_LEAD`.
    """
    return PROGRESS_SECONDS * max(0.0, filled - PROGRESS_FROM) / (1.0 - PROGRESS_FROM)


class _Average:
    """Moving average of leads, and the time of the latest one."""

    __slots__ = ("time", "value")

    def __init__(self) -> None:
        self.value = self.time = 0.0

    def faded(self, now: float) -> float:
        """Return the value, halved for each `_AVERAGE_HALF_LIFE` without calls after the first minute."""
        idle = max(0.0, now - self.time - _AVERAGE_SECONDS)
        return self.value * float(0.5 ** (idle / _AVERAGE_HALF_LIFE))

    def add(self, lead: float, now: float) -> None:
        if not self.time:
            self.value = lead
        self.value += _AVERAGE_WEIGHT * (lead - self.value)
        self.time = now


class _Service:
    __slots__ = ("arrival", "attained", "attained_at", "filled", "last_call", "latest", "weight")

    def __init__(self, now: float, weight: float) -> None:
        self.arrival = self.attained_at = self.last_call = now
        self.attained = 0.0
        self.filled = self.latest = 0.0
        """Parts of the window that the longest prompt fills: of those before the latest end of a call, and of all."""
        self.weight = weight

    def decay(self, now: float) -> None:
        """Let the attained service decay until now."""
        if now > self.attained_at:
            self.attained *= 0.5 ** ((now - self.attained_at) / HALF_LIFE)
            self.attained_at = now


class ProgramService:
    """Owner of the attained service of programs."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        """`weights`: weights of the tenants, greater than 0; 1 if not listed."""
        self._weights = {} if weights is None else weights
        self._programs: SharedTable[str, _Service] = SharedTable(MAX_PROGRAMS)
        self._averages: OrderedDict[str, _Average] = OrderedDict()
        """Average leads of the tenants. The tenant that had a call last is the last one."""
        self._average = _Average()
        """Average lead of all tenants' calls."""

    def __len__(self) -> int:
        return len(self._programs)

    def begin(self, program: str, tenant: str, now: float, filled: float = 0.0, *, extends: bool = False) -> None:
        """Record a call of a program. The first one, or one after `IDLE_SECONDS`, is the program's arrival.

        `filled`: part of the model's window that the prompt fills, see `progress`; more than 1 counts as 1. `extends`:
        whether the prompt extends an earlier call of the program. Otherwise `filled` does not count. It counts once a
        call of the program has ended, so not for this call and not for its copies.
        """
        service = self._programs.get(program)
        weight, filled = self._weights.get(tenant, 1.0), min(1.0, filled)
        if service is None or now - service.last_call > IDLE_SECONDS:
            service = _Service(now, weight)
            self._programs.put(tenant, program, service)
        service.last_call, service.weight = max(service.last_call, now), weight
        if extends:
            service.latest = max(service.latest, filled)
        self._programs.touch(program)

    def charge(self, program: str, seconds: float, now: float) -> None:
        """Record the end of a call, and add its service to its program. `seconds`: engine time. A program that was
        forgotten is not charged. Raises ValueError if the service is negative or not finite."""
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"a program cannot attain {seconds} seconds of service")
        service = self._programs.get(program)
        if service is not None:
            service.decay(now)
            service.attained += seconds
            service.filled = service.latest
            service.last_call = max(service.last_call, now)
            self._programs.touch(program)

    def forget_some(self, tenant: str) -> bool:
        """Forget programs of a tenant. Return False once there are none."""
        return bool(self._programs.pop_tenant(tenant, _MAX_FORGOTTEN))

    def delay(self, program: str, now: float) -> float:
        """Return by how many seconds the rank of a program is later than its arrival, because of the service that it
        has attained. For a program that is not known, 0."""
        service = self._programs.get(program)
        if service is None:
            return 0.0
        service.decay(now)
        return SERVICE_FACTOR * max(0.0, service.attained / service.weight - GRANT_SECONDS)

    def rank(self, program: str, now: float) -> float:
        """Return the rank of a program, in seconds. For a program that is not known, `now`, as if it arrived now."""
        service = self._programs.get(program)
        if service is None:
            return now
        return service.arrival + self.delay(program, now)

    def due(self, program: str, issued: float, now: float) -> float:
        """Return when a call of a program is due, in seconds: at the rank of the program less its progress, but within
        `MAX_LEAD` of the time at which the call arrived. For a program that is not known, when the call arrived.

        `issued`: arrival of the call, in seconds.
        """
        service = self._programs.get(program)
        if service is None:
            return issued
        due = self.rank(program, now) - progress(service.filled)
        return min(issued + MAX_LEAD, max(issued - MAX_LEAD, due))

    def lead(self, program: str, tenant: str, now: float) -> float:
        """Return the number of seconds that are subtracted from the deadline of a call, because of its program. Add it
        to the average leads.

        This is the time since the call was due, see `due`. While other tenants have calls, programs are ordered only
        within their tenant: the average lead of the tenant is replaced by that of all tenants, and the lead differs
        from it by at most `MAX_DIFFERENCE`.
        """
        lead = now - self.due(program, now, now)
        average = self._averages.pop(tenant, None) or _Average()
        has_others = bool(self._averages) and now - next(reversed(self._averages.values())).time <= _ACTIVE_SECONDS
        average.add(lead, now)
        self._remember(tenant, average)
        self._average.value = self._average.faded(now)  # as for calls that belong to no program
        self._average.add(lead, now)
        if not has_others:
            return lead
        difference = min(MAX_DIFFERENCE, max(-MAX_DIFFERENCE, lead - average.value))
        return self._average.value + difference

    def average_lead(self, tenant: str, now: float) -> float:
        """Count a call of a tenant that belongs to no program. Return the average lead of the latest calls of programs,
        in seconds; it fades without such calls.

        Such a call gets this lead, so that it does not wait for programs that are old.
        """
        lead = self._average.faded(now)
        average = self._averages.pop(tenant, None) or _Average()
        if not average.time:
            average.value = lead
        average.time = now
        self._remember(tenant, average)
        return lead

    def _remember(self, tenant: str, average: _Average) -> None:
        """Store the average of a tenant, as that of the latest call."""
        self._averages[tenant] = average
        if len(self._averages) > _MAX_TENANTS:
            self._averages.popitem(last=False)
