"""What Prometheus reads of a service, whatever the number of its replicas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Those of one replica."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        kept = self._registry
        self._requests = Counter(
            "lotlip_requests", "Requests answered", ["route", "status"], registry=kept
        )
        self._seconds = Histogram(
            "lotlip_request_seconds",
            "From a request to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=kept,
        )
        self._batches = Histogram(
            "lotlip_batch_size",
            "Requests embedded together",
            buckets=_SIZES,
            registry=kept,
        )
        self._reloads = Counter(
            "lotlip_reloads", "Loads of what an alias moved to", ["outcome"], registry=kept
        )
        self._images = Gauge("lotlip_index_images", "Images that are searched", registry=kept)
        self._model = Gauge(
            "lotlip_model",
            "1 for the one that is served",
            ["version", "weights"],
            registry=kept,
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batched(self, size: int) -> None:
        self._batches.observe(size)

    def reloaded(self, outcome: str) -> None:
        self._reloads.labels(outcome).inc()

    def describe(self, version: str, weights: str, num_images: int) -> None:
        """What is served now."""
        self._images.set(num_images)
        self._model.clear()
        self._model.labels(version, weights).set(1)

    def families(self) -> list[Metric]:
        return list(self._registry.collect())


class _Fixed:
    """A collector of metrics that were collected elsewhere."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> list[Metric]:
        return self._families


def merged(replicas: Sequence[tuple[str, Sequence[Metric]]]) -> bytes:
    """The metrics of all replicas as Prometheus reads them, with the label `replica`."""
    families: dict[str, Metric] = {}
    for replica, found in replicas:
        for family in found:
            kept = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                if sample.name.endswith("_created"):
                    continue  # a series more for each, which nobody asks for
                labels = {**sample.labels, "replica": replica}
                kept.samples.append(sample._replace(labels=labels))
    registry = CollectorRegistry()
    registry.register(_Fixed(families.values()))  # pyright: ignore[reportArgumentType]
    return generate_latest(registry)
