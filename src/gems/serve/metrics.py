"""What a monitoring system reads at ``/metrics``, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gems.graph.state import Usage

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)


class Loaded(Protocol):
    """What knows how much is being done."""

    @property
    def load(self) -> tuple[int, int]:
        """Runs at work, and runs that wait."""
        ...


class Metrics(Collector):
    """Counters of one service; what is being done now is looked up when it is asked for."""

    def __init__(self, service: Loaded) -> None:
        self._service = service
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self._runs = Counter("gems_runs", "Runs that ended.", ["outcome"], registry=self._registry)
        self._seconds = Histogram("gems_run_seconds", "Time at work.", registry=self._registry, buckets=_SECONDS)
        self._spent = Counter("gems_spent", "What runs spent.", ["what"], registry=self._registry)
        self._refused = Counter(
            "gems_refused", "Requests for runs that were refused.", ["why"], registry=self._registry
        )
        self._requests = Counter(
            "gems_http_requests", "Requests.", ["method", "route", "status"], registry=self._registry
        )
        self._latency = Histogram(
            "gems_http_request_seconds",
            "Until the response's end.",
            ["route"],
            registry=self._registry,
            buckets=_SECONDS,
        )

    def collect(self) -> Iterable[Metric]:
        """The gauges."""
        at_work, queued = self._service.load
        yield GaugeMetricFamily("gems_runs_at_work", "Runs at work now.", value=at_work)
        yield GaugeMetricFamily("gems_runs_queued", "Runs that wait for their turn.", value=queued)

    def ended(self, outcome: str, seconds: float, usage: Usage) -> None:
        """A run ended."""
        self._runs.labels(outcome).inc()
        self._seconds.observe(seconds)
        for what, amount in (("images", usage.images), ("chat_calls", usage.chat_calls), ("tokens", usage.tokens)):
            self._spent.labels(what).inc(amount)

    def refused(self, why: str) -> None:
        """A run was not accepted."""
        self._refused.labels(why).inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)
