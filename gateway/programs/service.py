"""Order between programs, from their arrival and the service that they have attained. Pure: the caller passes the time.

The rank of a program is a time, in seconds of the caller's clock; the lowest goes first:

    rank = arrival + SERVICE_FACTOR * max(0, attained service / weight - GRANT_SECONDS)

Agents return from tools again and again, and a program that is done frees its KV. If newcomers overtook the programs
that run, all of them would hold KV and evict each other. So arrival counts most in `rank`: a program that returns from
a tool goes before programs that arrived after its rank. The rank of a program that has attained more than its grant is
later than its arrival, so a short program does not wait for all of a very long one. Without a grant, programs that
arrive together would take turns, and evict each other's KV at each turn.

The server's queue is made of deadlines of single calls. By default, `precedence` moves a call's deadline by the rank of
its program: at most `MAX_PRECEDENCE` earlier, relative to the average of its tenant. With `--no-pause-programs`,
`delay` alone moves it: without pauses, the order by arrival probably costs time (docs/benchmarks.md).

Starvation bound of `rank`, without the decay and the limits of `precedence`: let program A have rank r. A program that
arrives after time r never goes before A. A program B that arrives before r goes before A only until B has attained

    weight * (GRANT_SECONDS + (r - arrival of B) / SERVICE_FACTOR)

seconds of service. The sum over all such programs bounds the service that goes before A.
"""

from collections import OrderedDict
from collections.abc import Mapping

from gateway.programs.shared_table import SharedTable

SERVICE_FACTOR = 3.0
"""Seconds by which a program's rank grows for each second of attained service: `WORK_FACTOR` of single calls."""
GRANT_SECONDS = 300.0
"""Attained service, in seconds of engine time for weight 1, that leaves a program's rank at its arrival."""
HALF_LIFE = 3600.0
"""Time, in seconds, after which attained service counts half."""
IDLE_SECONDS = 3600.0
"""Time without a call, in seconds, after which a program counts as new. Without it, a program that once arrived early
would go before all others for ever."""
MAX_DELAY = 120.0
"""Maximum number of seconds by which attained service alone delays a call in the server's queue."""
MAX_PRECEDENCE = 300.0
"""Maximum number of seconds by which a call goes before an average call of its tenant. Otherwise a tenant could lower
its average by many small calls, and let one call go before all of other tenants."""
_AVERAGE_WEIGHT = 0.02
"""Weight of a call in the average of its tenant."""
_MAX_TENANTS = 10_000
"""Maximum number of tenants whose averages are remembered."""
MAX_PROGRAMS = 100_000
"""Maximum number of programs of all tenants together that are remembered. If there are more, the program of the tenant
with the most that was without a call for the longest time is forgotten."""
_MAX_FORGOTTEN = 256
"""Maximum number of programs that one call of `forget_some` forgets."""


class _Service:
    __slots__ = ("arrival", "attained", "attained_at", "last_call", "weight")

    def __init__(self, now: float, weight: float) -> None:
        self.arrival = self.attained_at = self.last_call = now
        self.attained = 0.0
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
        self._averages: OrderedDict[str, float] = OrderedDict()
        """Average lead of the tenants' calls, in seconds. The tenant that had a call last is the last one."""

    def __len__(self) -> int:
        return len(self._programs)

    def begin(self, program: str, tenant: str, now: float) -> None:
        """Record a call of a program. The first one, or one after `IDLE_SECONDS`, is the program's arrival."""
        service = self._programs.get(program)
        weight = self._weights.get(tenant, 1.0)
        if service is None or now - service.last_call > IDLE_SECONDS:
            service = _Service(now, weight)
            self._programs.put(tenant, program, service)
        service.last_call, service.weight = max(service.last_call, now), weight
        self._programs.touch(program)

    def charge(self, program: str, seconds: float, now: float) -> None:
        """Add service to a program. `seconds`: engine time. A program that was forgotten is not charged. Raises
        ValueError if the service is negative or not finite."""
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"a program cannot attain {seconds} seconds of service")
        service = self._programs.get(program)
        if service is not None:
            service.decay(now)
            service.attained += seconds
            service.last_call = max(service.last_call, now)
            self._programs.touch(program)

    def end(self, program: str) -> None:
        """Forget a program."""
        self._programs.pop(program)

    def forget_some(self, tenant: str) -> bool:
        """Forget programs of a tenant. Return False once there are none."""
        return bool(self._programs.pop_tenant(tenant, _MAX_FORGOTTEN))

    def delay(self, program: str, now: float) -> float:
        """Return by how much the service that a program has attained moves its rank behind its arrival, in seconds. For
        a program that is not known, 0."""
        service = self._programs.get(program)
        if service is None:
            return 0.0
        service.decay(now)
        return SERVICE_FACTOR * max(0.0, service.attained / service.weight - GRANT_SECONDS)

    def rank(self, program: str, now: float) -> float:
        """Return the rank of a program, in seconds. For a program that is not known, the time itself: it would arrive
        now."""
        service = self._programs.get(program)
        if service is None:
            return now
        return service.arrival + self.delay(program, now)

    def precedence(self, program: str, tenant: str, now: float) -> float:
        """Return by how many seconds a call of a program goes before the tenant's average call; negative: after it.

        The lead of a call is its time minus the rank of its program, at least -`MAX_DELAY` and at most `IDLE_SECONDS`.
        The average is subtracted because programs are ordered within their tenant only: otherwise calls of long
        programs would go before all calls of other tenants, and of sessions.
        """
        lead = min(IDLE_SECONDS, max(-MAX_DELAY, now - self.rank(program, now)))
        average = self._averages.pop(tenant, lead)
        average += _AVERAGE_WEIGHT * (lead - average)
        self._averages[tenant] = average
        if len(self._averages) > _MAX_TENANTS:
            self._averages.popitem(last=False)
        return min(MAX_PRECEDENCE, lead - average)
