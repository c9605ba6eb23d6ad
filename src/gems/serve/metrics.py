"""Metrics for a monitoring system, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gems.graph.state import Usage

__all__ = ["CONTENT_TYPE", "HasLoad", "Metrics"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)


class HasLoad(Protocol):
    """An object that knows the current load."""

    @property
    def load(self) -> tuple[int, int]:
        """The number of runs in progress, and the number of queued runs."""
        ...


class Metrics(Collector):
    """The metrics of one service.

    Args:
        workers: Gives the current load when the metrics are read.
    """

    def __init__(self, workers: HasLoad) -> None:
        self._workers = workers
        self._registry = registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(registry=registry)
        self._runs = Counter("gems_runs", "Runs that ended.", ["outcome"], registry=registry)
        self._run_seconds = Histogram(
            "gems_run_seconds", "Time that runs were worked on.", registry=registry, buckets=_SECONDS
        )
        self._usage = Counter("gems_spent", "What runs used.", ["what"], registry=registry)
        self._refusals = Counter("gems_refused", "Requests for runs that were refused.", ["why"], registry=registry)
        self._requests = Counter("gems_http_requests", "Requests.", ["method", "route", "status"], registry=registry)
        self._request_seconds = Histogram(
            "gems_http_request_seconds", "Time to the response's end.", ["route"], registry=registry, buckets=_SECONDS
        )

    def collect(self) -> Iterable[Metric]:
        """The gauges."""
        running, queued = self._workers.load
        yield GaugeMetricFamily("gems_runs_at_work", "Runs that are being worked on.", value=running)
        yield GaugeMetricFamily("gems_runs_queued", "Runs that wait for a worker.", value=queued)

    def count_run(self, outcome: str, seconds: float, usage: Usage) -> None:
        """Count a run that ended."""
        self._runs.labels(outcome).inc()
        self._run_seconds.observe(seconds)
        for what in ("images", "chat_calls", "tokens", "lost_tokens"):
            self._usage.labels(what).inc(getattr(usage, what))

    def count_refusal(self, reason: str) -> None:
        """Count a run that was not accepted."""
        self._refusals.labels(reason).inc()

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All metrics."""
        return generate_latest(self._registry)
