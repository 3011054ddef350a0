"""gateway/telemetry/histogram.py, compared with Prometheus' own histograms."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry.histogram import HistogramCollector

BOUNDS = (0.01, 0.5, 1, 10)


def samples(registry: CollectorRegistry) -> dict[tuple[str, str | None], float]:
    text = generate_latest(registry).decode()
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, sample.labels.get("le")): round(sample.value, 6) for sample in found}


@given(st.lists(st.floats(0, 100) | st.sampled_from(BOUNDS), max_size=1_200))
def test_the_figures_are_those_of_prometheus(values: list[float]) -> None:
    expected, registry = CollectorRegistry(), CollectorRegistry()
    theirs = Histogram("seconds", "x", buckets=BOUNDS, registry=expected)
    ours = HistogramCollector("seconds", "x", BOUNDS)
    registry.register(ours)
    for index, value in enumerate(values):
        theirs.observe(value)
        ours.observe(value)
        if index == 700:  # a read between values changes nothing
            samples(registry)
    theirs_found = {key: value for key, value in samples(expected).items() if key[0] != "seconds_created"}
    assert samples(registry) == theirs_found
