"""Histograms whose values are counted many at a time.

A histogram of Prometheus' client costs several microseconds for each value.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_BATCH = 512
"""Number of values that are counted together."""


class BatchHistogram:
    """Counts of values up to each bound."""

    __slots__ = ("_bounds", "_counts", "_recent", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._recent: list[float] = []
        """Values that are not counted yet."""

    def observe(self, value: float) -> None:
        """Count a value."""
        self._recent.append(value)
        if len(self._recent) == _BATCH:
            self._count_recent()

    def add(self, values: Iterable[float]) -> None:
        """Count many values."""
        values = sorted(values)  # so that each bound is searched once, not each value
        self._total += sum(values)
        before = 0
        for index, bound in enumerate(self._bounds):
            below = bisect_right(values, bound, before)
            self._counts[index] += below - before
            before = below
        self._counts[-1] += len(values) - before

    def _count_recent(self) -> None:
        recent, self._recent = self._recent, []
        self.add(recent)

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Add the histogram to a metric, in Prometheus' cumulative form. `labels`: values of the metric's labels."""
        self._count_recent()
        buckets, below = [], 0
        for bound, count in zip([*(str(float(bound)) for bound in self._bounds), "+Inf"], self._counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        family.add_metric(labels, buckets, self._total)


class HistogramCollector(Collector):
    """A metric that consists of one histogram. Call `observe` on the event loop."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        """`text`: description of the metric."""
        self._name, self._text = name, text
        self._histogram = BatchHistogram(bounds)
        self.observe = self._histogram.observe

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        family = HistogramMetricFamily(self._name, self._text)
        self._histogram.add_to(family, [])
        yield family
